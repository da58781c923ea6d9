"""Files: writing them whole or not at all, and reading JSON from outside through a schema."""

from vitbackbone.files.atomic import leftovers, publish, publish_text, publish_together, read_together
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
