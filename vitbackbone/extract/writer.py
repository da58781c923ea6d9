"""Puts files into a store so that each is there whole or not at all."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file
from torch import Tensor

from vitbackbone.extract.layout import (
    INDEX,
    MANIFEST,
    Marker,
    index_file,
    marker_file,
    read_marker,
    shard_file,
)
from vitbackbone.extract.manifest import Manifest, differences, fingerprint, parse, serialise
from vitbackbone.extract.reader import Record
from vitbackbone.extract.source import Inputs
from vitbackbone.files import publish


def claim(directory: Path, manifest: Manifest) -> None:
    """Makes `directory` the store of this manifest, or checks that it is one already.

    Raises `ValueError` if it is the store of another, with each difference.
    """
    target = directory / MANIFEST
    if not target.exists():
        for folder in ("shards", "index"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        with publish(target) as temporary:
            temporary.write_bytes(serialise(manifest))
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


def write_shard(
    directory: Path,
    manifest: Manifest,
    shard: int,
    inputs: Inputs,
    records: Sequence[Record],
    tensors: Mapping[str, Tensor],
) -> None:
    """Publishes the features, then the rows of the index, then the marker that says that both are there."""
    marker_file(directory, shard).unlink(missing_ok=True)  # of files that are about to be replaced
    with publish(shard_file(directory, shard)) as temporary:
        save_file(dict(tensors), temporary)
        sha256 = _sha256(temporary)
    with publish(index_file(directory, shard)) as temporary:
        pq.write_table(_index(shard * manifest["shard_size"], inputs, records), temporary)
        index_sha256 = _sha256(temporary)
    read = sum(record.error is None for record in records)
    marker = Marker(len(records), read, sha256, index_sha256, fingerprint(manifest))
    with publish(marker_file(directory, shard)) as temporary:
        temporary.write_text(json.dumps(asdict(marker), indent=2) + "\n")


def verified(directory: Path, manifest: Manifest, shard: int) -> Marker | None:
    """The marker of a shard that is done and whose files are what was written; otherwise None. Reads them whole."""
    marker = read_marker(directory, shard)
    if marker is None or marker.manifest_sha256 != fingerprint(manifest):
        return None
    try:
        intact = (
            _sha256(shard_file(directory, shard)) == marker.sha256
            and _sha256(index_file(directory, shard)) == marker.index_sha256
        )
    except FileNotFoundError:
        return None
    return marker if intact else None


def _index(first: int, inputs: Inputs, records: Sequence[Record]) -> pa.Table:
    rows = range(first, first + len(records))
    columns = {
        "row": list(rows),
        "path": [inputs.paths[row].encode("utf-8", "backslashreplace").decode() for row in rows],
        "label": [inputs.labels[row] for row in rows],
        "status": ["ok" if record.error is None else "failed" for record in records],
        "error": [record.error for record in records],
        "width": [record.width for record in records],
        "height": [record.height for record in records],
        "sha256": [record.sha256 for record in records],
    }
    return pa.table(columns, INDEX)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
