"""Files written whole or not at all, JSON read through a schema, and the progress bars and hints of all packages."""

from vitbackbone.files.atomic import beside, flush, leftovers, publish, publish_text, publish_together, read_together
from vitbackbone.files.bucket_clients import has_clients
from vitbackbone.files.cloud_requests import ServiceDown, ServiceError
from vitbackbone.files.json_schema import SHORT, Record, check_record, parse_json, read_bytes, read_json
from vitbackbone.files.libraries import is_installed, is_utf8
from vitbackbone.files.local_storage import LIMITS, LocalStorage, full, private_folder, sweep_folder
from vitbackbone.files.object_storage import READ_PART, open_bucket
from vitbackbone.files.progress import bars_are_hidden, no_progress_bars, progress_bar
from vitbackbone.files.ranged import FilePart, OpenFile, RangedContent, RangedFile
from vitbackbone.files.storage import READS, Storage, Stored, open_storage, read_checked, read_chunks
from vitbackbone.files.suggestions import did_you_mean
from vitbackbone.files.web import MAX_BYTES, FileTooLarge, fetch, size_of

__all__ = [
    "LIMITS",
    "MAX_BYTES",
    "READS",
    "READ_PART",
    "SHORT",
    "FilePart",
    "FileTooLarge",
    "LocalStorage",
    "OpenFile",
    "RangedContent",
    "RangedFile",
    "Record",
    "ServiceDown",
    "ServiceError",
    "Storage",
    "Stored",
    "bars_are_hidden",
    "beside",
    "check_record",
    "did_you_mean",
    "fetch",
    "flush",
    "full",
    "has_clients",
    "is_installed",
    "is_utf8",
    "leftovers",
    "no_progress_bars",
    "open_bucket",
    "open_storage",
    "parse_json",
    "private_folder",
    "progress_bar",
    "publish",
    "publish_text",
    "publish_together",
    "read_bytes",
    "read_checked",
    "read_chunks",
    "read_json",
    "read_together",
    "size_of",
    "sweep_folder",
]
