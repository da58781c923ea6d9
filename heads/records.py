"""Fitted tensors on disk, with a record of what they are: two files that belong together, safetensors and JSON.

`kind` names the files and speaks in errors: a `probe` lies in `probe.safetensors` and `probe.json`.
"""

import hashlib
import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

VERSION = 1


def write_record(
    folder: str | PathLike[str],
    kind: str,
    tensors: bytes,
    record: dict[str, Any],
    default: Callable[[object], Any] | None = None,
) -> None:
    """Writes both files to a folder, made if missing; those there are replaced. `default`: as for `json.dumps`.

    Raises `ValueError` or `TypeError` on what JSON does not hold; nothing is written then.
    """
    # With the digest, a record beside the tensors of another is refused.
    record = {"version": VERSION, **record, "sha256": hashlib.sha256(tensors).hexdigest()}
    text = json.dumps(record, indent=2, allow_nan=False, default=default)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.safetensors").write_bytes(tensors)
    (folder / f"{kind}.json").write_text(text + "\n", encoding="utf-8")


def read_record(folder: str | PathLike[str], kind: str) -> tuple[dict[str, Any], bytes]:
    """The record and the tensors. Raises `OSError` if a file cannot be read, and `KeyError`, `TypeError` or
    `ValueError` if the two are not what `write_record` wrote."""
    names = [f"{kind}.safetensors", f"{kind}.json"]
    folder = Path(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; want a folder written by save_{kind}, with {', '.join(names)}"
        )
    data, text = ((folder / name).read_bytes() for name in names)
    record = json.loads(text)
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']}; this release reads version {VERSION}")
    if record["sha256"] != hashlib.sha256(data).hexdigest():
        raise ValueError(f"{names[0]} is not the file that {names[1]} was written with (sha256)")
    return record, data
