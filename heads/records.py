"""Fitted tensors on disk, with a record of what they are: two files that belong together, safetensors and JSON.

`kind` names the files and speaks in errors: a `probe` lies in `probe.safetensors` and `probe.json`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from heads.options import check
from vitbackbone import publish_together, read_together

VERSION = 1
DIGEST = "record_sha256"  # of all else in the record


def write_record(
    folder: str | PathLike[str],
    kind: str,
    tensors: bytes,
    record: dict[str, Any],
    default: Callable[[object], Any] | None = None,
) -> None:
    """Write both files to a folder, made if missing. Files there are replaced together: a kill leaves the old ones or
    the new ones. `default`: as for `json.dumps`.

    Raises `ValueError` or `TypeError` on what JSON does not hold; nothing is written then.
    """
    # With the digest, a record beside the tensors of another is refused; with the second one, a record that was edited.
    record = {"version": VERSION, **record, "sha256": hashlib.sha256(tensors).hexdigest()}
    record = json.loads(json.dumps(record, allow_nan=False, default=default))
    text = json.dumps({**record, DIGEST: _digest(record)}, indent=2)
    with publish_together(Path(folder), kind) as temporary:
        (temporary / f"{kind}.safetensors").write_bytes(tensors)
        (temporary / f"{kind}.json").write_text(text + "\n", encoding="utf-8")


def read_record(folder: str | PathLike[str], kind: str) -> tuple[dict[str, Any], bytes]:
    """Return the record and the tensors. Raises `OSError` if a file cannot be read, and `ValueError` if they are not
    what `write_record` wrote. `check_unedited` is left to the caller: what it finds wrong says more."""
    names = [f"{kind}.safetensors", f"{kind}.json"]
    try:
        data, text = read_together(Path(folder), kind, names)
    except FileNotFoundError as error:
        missing = str(error.strerror).removeprefix("there is ")
        raise FileNotFoundError(
            f"{folder} has {missing}; want a folder written by save_{kind}, with {', '.join(names)}"
        ) from None
    try:
        record = json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{names[1]} is not a whole JSON file: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{names[1]} holds a {type(record).__name__}; want an object")
    check_fields(names[1], record, {"version": int, "sha256": str})
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']}; this release reads version {VERSION}")
    if record["sha256"] != hashlib.sha256(data).hexdigest():
        raise ValueError(f"{names[0]} is not the file that {names[1]} was written with (sha256)")
    return record, data


def check_unedited(record: Mapping[str, Any], kind: str) -> None:
    """Raise `ValueError` if the record is not as `write_record` wrote it."""
    if record.get(DIGEST) != _digest({key: value for key, value in record.items() if key != DIGEST}):
        raise ValueError(f"{kind}.json was edited after save_{kind} wrote it ({DIGEST}); save the {kind} again")


def check_fields(owner: str, record: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the record has each key wanted, with a value of its type."""
    missing = [key for key in wanted if key not in record]
    if missing:
        raise ValueError(f"{owner} has no {' and no '.join(missing)}")
    check(owner, wanted, {key: record[key] for key in wanted})


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("it names a key twice")
    return result
