"""Files written whole or not at all, JSON read through a schema, and the progress bars and hints of all packages."""

from vitbackbone.files.atomic import leftovers, publish, publish_text, publish_together, read_together
from vitbackbone.files.local_storage import LocalStorage
from vitbackbone.files.progress import bars_are_hidden, no_progress_bars, progress_bar
from vitbackbone.files.records import SHORT, Record, check_record, parse_json, read_bytes, read_json
from vitbackbone.files.storage import Storage, Stored, open_storage, read_chunks
from vitbackbone.files.suggestions import did_you_mean

__all__ = [
    "SHORT",
    "LocalStorage",
    "Record",
    "Storage",
    "Stored",
    "bars_are_hidden",
    "check_record",
    "did_you_mean",
    "leftovers",
    "no_progress_bars",
    "open_storage",
    "parse_json",
    "progress_bar",
    "publish",
    "publish_text",
    "publish_together",
    "read_bytes",
    "read_chunks",
    "read_json",
    "read_together",
]
