"""Files: written whole or not at all, and outside JSON read through a schema."""

from vitbackbone.files.publish import leftovers, publish, publish_text, publish_together, read_together
from vitbackbone.files.records import SHORT, Record, check_record, parse_json, read_bytes, read_json

__all__ = [
    "SHORT",
    "Record",
    "check_record",
    "leftovers",
    "parse_json",
    "publish",
    "publish_text",
    "publish_together",
    "read_bytes",
    "read_json",
    "read_together",
]
