"""Where everything lies in a feature store, and what it is called. This page is the layout's one definition.

    manifest.json              what decides features: model, preprocessing, precision, tokens, layers
    inputs/00000.parquet       what one run added, in the order of the rows: `PLAN`
    index/00000.parquet        a row for every input of the shard, and what became of it: `INDEX`
    shards/00000.safetensors   features of its n images that were read, in row order
    shards/00000.json          the `Marker`: written last, and only then is the shard done
    lock*.json                 who is writing; gone when nobody is

Tensors of a shard, where `L` patches is the sum of h * w over its images:

    cls        (n, D)
    registers  (n, R, D)
    patches    (L, D)          image after image, each row-major over its own grid
    grid       (n, 2)  int32   (h, w) of each image's patches; there if `patches` is

These are of the layer that was asked last. If more than one was asked, the tensors of every other layer carry its
0-based index: `cls.3`, `registers.3`, `patches.3`. All layers share `grid`.

An input with the same content as an earlier one is a copy: it has a row, and its features are those of the other.
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
        "path": pa.binary(),  # POSIX, from the root; of an archive's image, that of the archive, "/" and its name
        "archive": pa.int32(),  # how many bytes of `path` are the archive's; 0 for a file by itself
        "offset": pa.int64(),  # where in the archive
        "label": pa.int64(),  # index into the class names, -1 where unknown
        "bytes": pa.int64(),  # -1 where there is no such file
        "mtime": pa.int64(),  # nanoseconds; of an archive's image, the archive's
        "sha256": pa.binary(32),  # of the content; null if it could not be read
        "same_as": pa.int64(),  # row of the first input with the same content, null if this is the one
    }
)

INDEX = pa.schema(
    {
        "row": pa.int64(),  # position among all inputs
        "path": pa.string(),  # bytes of a name that are not UTF-8 are written \udcXX
        "label": pa.int64(),  # index into the class names, -1 where unknown
        "status": pa.string(),  # "ok", "failed" or, in the files, "copy"
        "reason": pa.string(),  # why it failed, one of `locate.Reason`, else null
        "error": pa.string(),  # the same at length
        "width": pa.int32(),  # pixels of the upright photo; null if they could not be read
        "height": pa.int32(),
        "frames": pa.int32(),  # of an animation, or pages: the first counts
        "sha256": pa.string(),  # of the content; null if it could not be read
        "same_as": pa.int64(),  # of a copy, the row that has its features
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
    """In order. Raises `ValueError` if one is missing."""
    files = sorted((directory / "inputs").glob("[0-9]*.parquet"))
    for number, file in enumerate(files):
        if file != inputs_file(directory, number):
            raise ValueError(f"{inputs_file(directory, number)} is missing, while {file.name} is there; put it back")
    return files


def tensor_name(kind: str, layer: int, layers: Sequence[int]) -> str:
    """Name in a shard of the tokens `kind` of `layer`, where `layers` were asked."""
    return kind if layer == layers[-1] else f"{kind}.{layer}"


Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Marker:
    """Says that a shard is done, and how to tell that its files are still what was written."""

    rows: Count  # inputs of the shard
    read: Count  # those that have features in it
    copies: Count  # those that have them elsewhere, or earlier in it
    sha256: str  # of the shard
    index_sha256: str
    manifest_sha256: str  # a shard made under another manifest does not count,
    inputs_sha256: str  # nor one made of other inputs

    def __post_init__(self) -> None:
        if self.read + self.copies > self.rows:
            raise ValueError(f"read={self.read} and copies={self.copies} are more than rows={self.rows}")

    @property
    def failed(self) -> int:
        return self.rows - self.read - self.copies

    def fits(self, manifest_sha256: str, inputs_sha256: str, rows: int) -> bool:
        """Tell whether the shard was made under this manifest, of these inputs."""
        return (self.manifest_sha256, self.inputs_sha256, self.rows) == (manifest_sha256, inputs_sha256, rows)


def read_marker(directory: Path, shard: int) -> Marker | None:
    """Return the marker of a shard; None if there is none or it is damaged, so that the shard is not done."""
    try:
        return read_json(marker_file(directory, shard), Marker)
    except (FileNotFoundError, ValueError):
        return None
