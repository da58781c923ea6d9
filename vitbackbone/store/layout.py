"""The files of a feature store. This module is the only definition of the layout.

    manifest.json              everything that decides the features: model, preprocessing, precision, tokens, layers
    inputs/00000.parquet       the inputs that one run added, in row order: `PLAN`
    index/00000.parquet        a row for every input of the shard, with its status: `INDEX`
    shards/00000.safetensors   features of the n images that were read, in row order
    shards/00000.json          the `Marker`, written last: the shard is complete
    lock*.json                 the processes that write the store now

Tensors of a shard. `L` is the number of patches of all its images, the sum of h * w:

    cls        (n, D)
    registers  (n, R, D)
    patches    (L, D)          image after image, each row-major over its own grid
    grid       (n, 2)  int32   (h, w) of each image's patches; stored with `patches`

These names hold the features of the last layer that was asked. Tensors of the other layers carry the layer's 0-based
index: `cls.3`, `registers.3`, `patches.3`. All layers share `grid`.

An input with the same content as an earlier input is a copy. It has a row of its own and the features of the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import torch
from pydantic import Field

from vitbackbone.files import read_json

SCHEMA = 2
TOKENS = ("cls", "registers", "patches")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MANIFEST = "manifest.json"

PLAN = pa.schema(
    {
        "path": pa.binary(),  # POSIX, from the root; for a member, the archive's path, "/" and the member's name
        "archive": pa.int32(),  # bytes of `path` that name the archive; 0 for a plain file
        "offset": pa.int64(),  # position in the archive
        "label": pa.int64(),  # index into the class names, -1 where unknown
        "bytes": pa.int64(),  # -1 if the file is missing
        "mtime": pa.int64(),  # modification time in nanoseconds; for a member, the archive's
        "sha256": pa.binary(32),  # of the content; null if it could not be read
        "same_as": pa.int64(),  # row of the original, if this is a copy; else null
    }
)

INDEX = pa.schema(
    {
        "row": pa.int64(),  # position among all inputs
        "path": pa.string(),  # bytes that are not UTF-8 are written \udcXX
        "label": pa.int64(),  # index into the class names, -1 where unknown
        "status": pa.string(),  # "ok", "failed" or, in the files, "copy"
        "reason": pa.string(),  # one of `locate.Reason` if it failed, else null
        "error": pa.string(),  # the reason as a sentence
        "width": pa.int32(),  # pixels of the upright photo; null if unknown
        "height": pa.int32(),
        "frames": pa.int32(),  # of an animation, or pages; only the first is embedded
        "sha256": pa.string(),  # of the content; null if it could not be read
        "same_as": pa.int64(),  # row of the original, if this is a copy; else null
    }
)


def shard_file(directory: Path, shard: int) -> Path:
    return directory / "shards" / f"{shard:05}.safetensors"


def marker_file(directory: Path, shard: int) -> Path:
    return directory / "shards" / f"{shard:05}.json"


def index_file(directory: Path, shard: int) -> Path:
    return directory / "index" / f"{shard:05}.parquet"


def inputs_file(directory: Path, generation: int) -> Path:
    return directory / "inputs" / f"{generation:05}.parquet"


def inputs_files(directory: Path) -> list[Path]:
    """Return the plan's files in order. Raises `ValueError` if one is missing."""
    files = sorted((directory / "inputs").glob("[0-9]*.parquet"))
    for number, file in enumerate(files):
        if file != inputs_file(directory, number):
            raise ValueError(
                f"{inputs_file(directory, number)} is missing, but {file.name} exists; restore the missing file"
            )
    return files


def tensor_name(kind: str, layer: int, layers: Sequence[int]) -> str:
    """Return the tensor name of one kind of tokens of `layer` in a store of `layers`."""
    return kind if layer == layers[-1] else f"{kind}.{layer}"


Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Marker:
    """The record that a shard is complete, with checksums of its files and of what it was made from."""

    rows: Count  # inputs of the shard
    read: Count  # inputs with features in this shard
    copies: Count  # inputs with the features of an earlier row
    sha256: str  # of the shard's tensors
    index_sha256: str
    manifest_sha256: str  # a shard of another manifest is not complete
    inputs_sha256: str  # nor is a shard of other inputs

    def __post_init__(self) -> None:
        if self.read + self.copies > self.rows:
            raise ValueError(f"read={self.read} and copies={self.copies} are more than rows={self.rows}")

    @property
    def failed(self) -> int:
        return self.rows - self.read - self.copies

    def fits(self, manifest_sha256: str, inputs_sha256: str, rows: int) -> bool:
        """Tell whether the shard was made with this manifest from these inputs."""
        return (self.manifest_sha256, self.inputs_sha256, self.rows) == (manifest_sha256, inputs_sha256, rows)


def read_marker(directory: Path, shard: int) -> Marker | None:
    """Return the marker of a shard; None if it is missing or damaged, so that the shard is computed again."""
    try:
        return read_json(marker_file(directory, shard), Marker)
    except (FileNotFoundError, ValueError):
        return None
