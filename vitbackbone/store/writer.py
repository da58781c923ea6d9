"""Write the files of a store. Each is there whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from safetensors.torch import save_file
from torch import Tensor

from vitbackbone.store.labels import as_utf8
from vitbackbone.store.layout import (
    INDEX,
    MANIFEST,
    Marker,
    index_file,
    marker_file,
    shard_file,
)
from vitbackbone.store.manifest import Manifest, differences, manifest_sha256, parse, serialise
from vitbackbone.store.parquet import write_parquet
from vitbackbone.store.plan import PlannedShard
from vitbackbone.store.publication import published
from vitbackbone.store.reader import Outcome

COPY = Outcome()  # the outcome of an input whose content an earlier row has


def check_manifest(directory: Path, manifest: Manifest) -> None:
    """Raise `ValueError` with each difference if `directory` is a store with another manifest."""
    target = directory / MANIFEST
    if not target.exists():
        return
    try:
        stored = parse(target.read_bytes())
    except ValueError as error:
        raise ValueError(f"{directory}: {error}; give another --out") from error
    different = differences(stored, manifest)
    if different:
        raise ValueError(
            f"{directory} was made with other settings; give another --out, or the same settings:\n  "
            + "\n  ".join(different)
        )


def claim(directory: Path, manifest: Manifest) -> None:
    """Make `directory` a store with this manifest. Does nothing if it is one."""
    for folder in ("shards", "index"):
        (directory / folder).mkdir(exist_ok=True)
    if not (directory / MANIFEST).exists():
        with published(directory / MANIFEST) as temporary:
            temporary.write_bytes(serialise(manifest))


def write_shard(
    directory: Path, manifest: Manifest, shard: PlannedShard, outcomes: Sequence[Outcome], tensors: Mapping[str, Tensor]
) -> Marker:
    """Write the features of a shard, then its index, then the marker that both are complete.

    `outcomes`: one for each input that is not a copy.
    """
    marker_file(directory, shard.number).unlink(missing_ok=True)  # its files are about to be replaced
    with published(shard_file(directory, shard.number)) as temporary:
        save_file(dict(tensors), temporary)
        sha256 = file_sha256(temporary)
    with published(index_file(directory, shard.number)) as temporary:
        write_parquet(_index(shard, outcomes), temporary)
        index_sha256 = file_sha256(temporary)
    read = sum(outcome.reason is None for outcome in outcomes)
    copies = len(shard) - len(outcomes)
    marker = Marker(len(shard), read, copies, sha256, index_sha256, manifest_sha256(manifest), shard.sha256)
    with published(marker_file(directory, shard.number)) as temporary:
        temporary.write_text(json.dumps(asdict(marker), indent=2) + "\n")
    return marker


def broken_files(directory: Path, number: int, marker: Marker) -> list[Path]:
    """Read the files of a shard, and return those whose checksum differs or that are missing."""
    wanted = {shard_file(directory, number): marker.sha256, index_file(directory, number): marker.index_sha256}
    return [file for file, sha256 in wanted.items() if not file.is_file() or file_sha256(file) != sha256]


def _index(shard: PlannedShard, outcomes: Sequence[Outcome]) -> pa.Table:
    inputs = {name: shard.table[name].to_pylist() for name in ("path", "sha256", "same_as")}
    read = iter(outcomes)
    rows = [COPY if original is not None else next(read) for original in inputs["same_as"]]
    columns = {
        "row": list(shard.rows),
        "path": [shown(path) for path in inputs["path"]],
        "label": shard.table["label"],
        "status": ["copy" if row is COPY else "failed" if row.reason else "ok" for row in rows],
        "reason": [row.reason for row in rows],
        "error": [row.error and as_utf8(row.error) for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "frames": [row.frames for row in rows],
        "sha256": [digest.hex() if digest else None for digest in inputs["sha256"]],
        "same_as": inputs["same_as"],
    }
    return pa.table(columns, INDEX)


def shown(path: bytes) -> str:
    """Return a path as users see it: bytes that are not UTF-8 are written \\udcXX."""
    return as_utf8(os.fsdecode(path))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
