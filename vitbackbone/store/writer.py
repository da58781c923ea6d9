"""Puts files into a store so that each is there whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from safetensors.torch import save_file
from torch import Tensor

from vitbackbone.store.labels import printable
from vitbackbone.store.layout import (
    INDEX,
    MANIFEST,
    Marker,
    index_file,
    marker_file,
    shard_file,
)
from vitbackbone.store.manifest import Manifest, differences, fingerprint, parse, serialise
from vitbackbone.store.parquet import write_parquet
from vitbackbone.store.plan import PlannedShard
from vitbackbone.store.publication import published
from vitbackbone.store.reader import Record

COPY = Record()  # what becomes of an input whose content an earlier row has


def check_manifest(directory: Path, manifest: Manifest) -> None:
    """Raises `ValueError` if `directory` is the store of another manifest, with each difference."""
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
            f"{directory} holds features of another run, give another --out or ask for the same:\n  "
            + "\n  ".join(different)
        )


def claim(directory: Path, manifest: Manifest) -> None:
    """Makes `directory` the store of this manifest, if it is not one already."""
    for folder in ("shards", "index"):
        (directory / folder).mkdir(exist_ok=True)
    if not (directory / MANIFEST).exists():
        with published(directory / MANIFEST) as temporary:
            temporary.write_bytes(serialise(manifest))


def write_shard(
    directory: Path, manifest: Manifest, shard: PlannedShard, records: Sequence[Record], tensors: Mapping[str, Tensor]
) -> Marker:
    """Publishes the features, then the rows of the index, then the marker that says that both are there. `records`: of
    the inputs that are no copies."""
    marker_file(directory, shard.number).unlink(missing_ok=True)  # of files that are about to be replaced
    with published(shard_file(directory, shard.number)) as temporary:
        save_file(dict(tensors), temporary)
        sha256 = file_sha256(temporary)
    with published(index_file(directory, shard.number)) as temporary:
        write_parquet(_index(shard, records), temporary)
        index_sha256 = file_sha256(temporary)
    read = sum(record.reason is None for record in records)
    copies = len(shard) - len(records)
    marker = Marker(len(shard), read, copies, sha256, index_sha256, fingerprint(manifest), shard.sha256)
    with published(marker_file(directory, shard.number)) as temporary:
        temporary.write_text(json.dumps(asdict(marker), indent=2) + "\n")
    return marker


def damaged(directory: Path, number: int, marker: Marker) -> list[Path]:
    """The files of a shard that are not what was written. Reads them whole."""
    wanted = {shard_file(directory, number): marker.sha256, index_file(directory, number): marker.index_sha256}
    return [file for file, sha256 in wanted.items() if not file.is_file() or file_sha256(file) != sha256]


def _index(shard: PlannedShard, records: Sequence[Record]) -> pa.Table:
    inputs = {name: shard.table[name].to_pylist() for name in ("path", "sha256", "same_as")}
    read = iter(records)
    rows = [COPY if original is not None else next(read) for original in inputs["same_as"]]
    columns = {
        "row": list(shard.rows),
        "path": [shown(path) for path in inputs["path"]],
        "label": shard.table["label"],
        "status": ["copy" if row is COPY else "failed" if row.reason else "ok" for row in rows],
        "reason": [row.reason for row in rows],
        "error": [row.error and printable(row.error) for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "frames": [row.frames for row in rows],
        "sha256": [digest.hex() if digest else None for digest in inputs["sha256"]],
        "same_as": inputs["same_as"],
    }
    return pa.table(columns, INDEX)


def shown(path: bytes) -> str:
    """As users see it: bytes that are not UTF-8 are written \\udcXX."""
    return printable(os.fsdecode(path))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
