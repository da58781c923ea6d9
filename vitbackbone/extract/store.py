"""The features of many images, read from the files of `layout.py`.

Axes: `N` images that were read, `R` register tokens, `D` width, `h w` patch grid of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitbackbone.extract.layout import MANIFEST, Marker, index_file, read_marker, shard_file, tensor_name
from vitbackbone.extract.manifest import Manifest, fingerprint, parse


@dataclass(frozen=True, eq=False)
class _Shard:
    """An open shard: its tensors are memory-mapped."""

    file: Any  # of safetensors, which is not typed
    grid: Int[np.ndarray, "n 2"]
    starts: Int[np.ndarray, " n"]  # where the patches of each image begin


class FeatureStore:
    """What `extract` wrote, memory-mapped: a thousand shards open without being read.

    `cls`, `patches`, `registers`, `paths` and `labels` cover the images that were read, N = `len(store)`, and are
    aligned with each other; `failed` has the others, and `index` a row for every input. Features are of the layer
    that was asked last; `layer(i)` gives another of `layers`. bfloat16 comes back as float32, as numpy has none.

    Raises `ValueError` if the directory is not a store or not a complete one.
    """

    def __init__(self, directory: str | PathLike[str], layer: int | None = None) -> None:
        self.directory = Path(directory)
        self.manifest = _read_manifest(self.directory)
        self.layers: tuple[int, ...] = tuple(self.manifest["layers"])  # 0-based, in the order asked
        self.class_names: list[str] = list(self.manifest["class_names"])
        self._layer = self.layers[-1] if layer is None else self._resolve(layer)
        self._reads = np.array([marker.read for marker in _markers(self.directory, self.manifest)])
        self._starts = self._reads.cumsum() - self._reads  # row of the first image of each shard
        self._open: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return int(self._reads.sum())

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.directory)!r}, layer={self._layer}): {len(self)} images"

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path, int]]:
        return FeatureStore, (self.directory, self._layer)  # a memory map does not pickle, but opens again

    def layer(self, layer: int) -> "FeatureStore":
        """The same store with the features of another layer, 0-based or negative from the model's end.

        Raises `ValueError` if that layer is not stored.
        """
        return FeatureStore(self.directory, self._resolve(layer))

    @cached_property
    def cls(self) -> Float[np.ndarray, "N D"]:
        """The CLS tokens. Of several shards, they are copied together on first use; of one, they stay on disk."""
        return self._all("cls")

    @cached_property
    def registers(self) -> Float[np.ndarray, "N R D"]:
        """The register tokens; memory as for `cls`."""
        return self._all("registers")

    def patches(self, i: int) -> Float[np.ndarray, "D h w"]:
        """The feature map of image `i`, as every image has its own grid; only its own bytes are read.

        Raises `IndexError` if there is no such image, `ValueError` if patches were not stored.
        """
        name = self._name("patches")
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of a store of {len(self)} images")
        i %= len(self)
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        row = i - self._starts[number]
        shard = self._shard(number)
        (h, w), start = shard.grid[row], shard.starts[row]
        tokens = _numpy(shard.file.get_tensor(name)[start : start + h * w])
        return tokens.reshape(h, w, -1).transpose(2, 0, 1)

    @property
    def tokens(self) -> "StoredTokens":
        """The patches of each image as a sequence, (h*w, D), row-major, as `Features.tokens`: read when asked for."""
        self._name("patches")
        return StoredTokens(self, np.arange(len(self)))

    @cached_property
    def index(self) -> pa.Table:
        """A row for every input, in order; the columns are those of `layout.INDEX`."""
        files = (index_file(self.directory, shard) for shard in range(len(self._reads)))
        return pa.concat_tables(pq.ParquetFile(file).read() for file in files)

    @cached_property
    def paths(self) -> list[str]:
        return self._rows("ok")["path"].to_pylist()

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Indices into `class_names`, (N,), -1 where unknown."""
        return self._rows("ok")["label"].to_numpy()

    @cached_property
    def failed(self) -> list[tuple[str, str]]:
        """(path, reason) of each input that has no features."""
        rows = self._rows("failed")
        return list(zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True))

    def _rows(self, status: str) -> pa.Table:
        return self.index.filter(pc.equal(self.index["status"], status))

    def _all(self, kind: str) -> Float[np.ndarray, "N ..."]:
        name = self._name(kind)
        parts = [self._shard(number).file.get_tensor(name) for number in range(len(self._reads))]
        return _numpy(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _name(self, kind: str) -> str:
        if kind not in self.manifest["tokens"]:
            raise ValueError(
                f"{self.directory} has no {kind}, it stores {self.manifest['tokens']}; extract them with "
                f"--tokens {','.join([*self.manifest['tokens'], kind])} into another directory"
            )
        return tensor_name(kind, self._layer, self.layers)

    def _resolve(self, layer: int) -> int:
        depth = self.manifest["model"]["spec"]["depth"]
        index = layer + depth if layer < 0 else layer
        if index not in self.layers:
            raise ValueError(f"{self.directory} has no layer {layer}, it stores {list(self.layers)} of {depth}")
        return index

    def _shard(self, number: int) -> _Shard:
        if number not in self._open:
            path = shard_file(self.directory, number)
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, FileNotFoundError) as error:
                raise ValueError(f"{path} is damaged ({error}); run the same extraction again to redo it") from error
            grid = file.get_tensor("grid").numpy() if "patches" in self.manifest["tokens"] else np.empty((0, 2), int)
            sizes = grid.astype(np.int64).prod(axis=1)
            self._open[number] = _Shard(file, grid, sizes.cumsum() - sizes)
        return self._open[number]


class StoredTokens(Sequence[Float[np.ndarray, "T D"]]):
    """The patch tokens of some images of a store. An index reads one image; a slice, a mask or indices choose images
    and read none."""

    def __init__(self, store: FeatureStore, rows: Int[np.ndarray, " n"]) -> None:
        self.store = store
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            maps = self.store.patches(int(self.rows[index]))
            return maps.reshape(len(maps), -1).T
        return StoredTokens(self.store, self.rows[index])


def _numpy(tensor: Tensor) -> Float[np.ndarray, "..."]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _read_manifest(directory: Path) -> Manifest:
    try:
        return parse((directory / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory} is not a feature store: it has no {MANIFEST}") from error
    except ValueError as error:
        raise ValueError(f"{directory} is not a feature store: {error}") from error


def _markers(directory: Path, manifest: Manifest) -> list[Marker]:
    """One for each shard. Raises `ValueError` if one is not done."""
    count = -(-manifest["inputs"]["count"] // manifest["shard_size"])
    expected = fingerprint(manifest)
    markers = [read_marker(directory, shard) for shard in range(count)]
    done = [marker for marker in markers if marker is not None and marker.manifest_sha256 == expected]
    if len(done) < count:
        raise ValueError(
            f"{directory} is incomplete: {count - len(done)} of {count} shards are missing; run the same extraction "
            "again to finish it"
        )
    return done
