"""Where everything lies in a feature store, and what it is called. This page is the layout's one definition.

    manifest.json              what decides the features: model, preprocessing, tokens, layers, input list
    index/00000.parquet        a row for every input of the shard: `INDEX`
    shards/00000.safetensors   features of its n images that were read, in row order
    shards/00000.json          the `Marker`: written last, and only then is the shard done

Tensors of a shard, where `L` patches is the sum of h * w over its images:

    cls        (n, D)
    registers  (n, R, D)
    patches    (L, D)          image after image, each row-major over its own grid
    grid       (n, 2)  int32   (h, w) of each image's patches; there if `patches` is

These are of the layer that was asked last. If more than one was asked, the tensors of every other layer carry its
0-based index: `cls.3`, `registers.3`, `patches.3`. All layers share `grid`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

SCHEMA = 1
TOKENS = ("cls", "registers", "patches")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MANIFEST = "manifest.json"

INDEX = pa.schema(
    {
        "row": pa.int64(),  # position in the input list
        "path": pa.string(),  # bytes of a name that are not UTF-8 are written \udcXX
        "label": pa.int64(),  # index into the class names, -1 where unknown
        "status": pa.string(),  # "ok" or "failed"
        "error": pa.string(),  # why it failed, else null
        "width": pa.int32(),  # pixels of the upright photo; null if they could not be read
        "height": pa.int32(),
        "sha256": pa.string(),  # of the file; null if it could not be read
    }
)


def shard_file(directory: Path, shard: int) -> Path:
    return directory / "shards" / f"{shard:05}.safetensors"


def marker_file(directory: Path, shard: int) -> Path:
    return directory / "shards" / f"{shard:05}.json"


def index_file(directory: Path, shard: int) -> Path:
    return directory / "index" / f"{shard:05}.parquet"


def tensor_name(kind: str, layer: int, layers: Sequence[int]) -> str:
    """Name in a shard of the tokens `kind` of `layer`, where `layers` were asked."""
    return kind if layer == layers[-1] else f"{kind}.{layer}"


@dataclass(frozen=True)
class Marker:
    """Says that a shard is done, and how to tell that its files are still what was written."""

    rows: int  # inputs of the shard
    read: int  # those that have features
    sha256: str  # of the shard
    index_sha256: str
    manifest_sha256: str  # a shard made under another manifest does not count


def read_marker(directory: Path, shard: int) -> Marker | None:
    """The marker of a shard; None if there is none or it is damaged, so that the shard is not done."""
    try:
        return Marker(**json.loads(marker_file(directory, shard).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # TypeError: valid JSON with other fields
        return None
