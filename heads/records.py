"""Fitted tensors on disk with a record of what they are: a safetensors file and a JSON file that belong together.

`kind` names the files and is used in errors: a `probe` is kept in `probe.safetensors` and `probe.json`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from heads.options import check
from vitbackbone import parse_json, publish_together, read_together

VERSION = 1
DIGEST = "record_sha256"  # the checksum of every other field of the record


def write_record(
    folder: str | PathLike[str],
    kind: str,
    tensors: bytes,
    record: dict[str, Any],
    default: Callable[[object], Any] | None = None,
) -> None:
    """Write both files to a folder, which is made if missing.

    Files in the folder are replaced together: a crash leaves both old files or both new ones. `default` is passed to
    `json.dumps`.

    Raises `ValueError` or `TypeError`, before anything is written, if the record does not fit into JSON.
    """
    # The first checksum ties the record to its tensors. The second one shows that nobody edited the record.
    record = {"version": VERSION, **record, "sha256": hashlib.sha256(tensors).hexdigest()}
    record = json.loads(json.dumps(record, allow_nan=False, default=default))
    text = json.dumps({**record, DIGEST: _digest(record)}, indent=2)
    with publish_together(Path(folder), kind) as temporary:
        (temporary / f"{kind}.safetensors").write_bytes(tensors)
        (temporary / f"{kind}.json").write_text(text + "\n", encoding="utf-8")


def read_record(folder: str | PathLike[str], kind: str) -> tuple[dict[str, Any], bytes]:
    """Return the record and the bytes of the tensors.

    The caller should run `check_unedited` after its own checks, because their errors say more.

    Raises `OSError` if a file cannot be read, and `ValueError` if `write_record` did not write it.
    """
    names = [f"{kind}.safetensors", f"{kind}.json"]
    try:
        data, text = read_together(Path(folder), kind, names)
    except FileNotFoundError as error:
        missing = str(error.strerror).removeprefix("there is ")
        raise FileNotFoundError(
            f"{folder} has {missing}; want a folder written by save_{kind}, with {', '.join(names)}"
        ) from None
    record: dict[str, Any] = parse_json(text, dict, names[1])
    check_fields(names[1], record, {"version": int, "sha256": str})
    if record["version"] != VERSION:
        raise ValueError(f"{names[1]} has version {record['version']}; this release reads version {VERSION}")
    if record["sha256"] != hashlib.sha256(data).hexdigest():
        raise ValueError(f"{names[0]} is not the file that {names[1]} was written with (sha256)")
    return record, data


def check_unedited(record: Mapping[str, Any], kind: str) -> None:
    """Raise `ValueError` if the record changed after `write_record` wrote it."""
    if record.get(DIGEST) != _digest({key: value for key, value in record.items() if key != DIGEST}):
        raise ValueError(f"{kind}.json was edited after save_{kind} wrote it ({DIGEST}); save the {kind} again")


def check_fields(owner: str, record: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the record has each key of `wanted`, with a value of its type."""
    missing = [key for key in wanted if key not in record]
    if missing:
        raise ValueError(f"{owner} has no {' and no '.join(missing)}")
    check(owner, wanted, {key: record[key] for key in wanted})


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
