"""Read the features of many images from the files of `layout.py`.

Axes: `N` images that were read, `R` register tokens, `D` width, `h w` patch grid of one image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vitbackbone.files import open_storage
from vitbackbone.store.layout import DTYPES, tensor_name
from vitbackbone.store.objects import Damaged
from vitbackbone.store.snapshots import latest, open_snapshot, read_classes, read_manifest
from vitbackbone.store.table import Table, read_all
from vitbackbone.store.tensors import TensorFile, open_tensors


class FeatureStore:
    """One snapshot of a store that `extract` wrote. Later runs do not change it.

    Files of this machine are memory-mapped: opening a thousand shards reads none of their features.

    `cls`, `patches`, `registers`, `paths` and `labels` cover the N = `len(store)` images that were read, in one order.
    `failed` lists the other inputs, and `index` has a row for every input. Features come from the last layer that was
    asked for; `layer(i)` gives another of `layers`. bfloat16 is returned as float32, because NumPy has no bfloat16.
    Images with the same content have the same features, which are stored once.
    Features are compared with their checksums as they are read; features that differ raise `ValueError`.

    `directory`: a folder, or a URL such as s3://bucket/features. `layer`: the layer to show, 0-based or negative from
    the model's end. `snapshot`: the number of a snapshot; by default the last complete one. `partial`: open the last
    snapshot even if it is not complete; `missing` counts the shards that it lacks.
    Raises `ValueError` if there is no store, or no complete snapshot.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        layer: int | None = None,
        *,
        partial: bool = False,
        snapshot: int | None = None,
    ) -> None:
        self.storage = open_storage(directory)
        self.directory = Path(directory)
        self.snapshot = open_snapshot(self.storage, snapshot, partial)
        self.manifest = read_manifest(self.storage, self.snapshot)
        self.layers: tuple[int, ...] = tuple(self.manifest["layers"])  # 0-based, in the order asked
        self.class_names: list[str] = read_classes(self.storage, self.snapshot)
        self._layer = self.layers[-1] if layer is None else self._resolve(layer)
        self._open: dict[int, TensorFile] = {}

    def __len__(self) -> int:
        return len(self.paths) if self.snapshot.work else self.snapshot.counts.read

    def __repr__(self) -> str:
        where = f"{self.storage.url!r}, layer={self._layer}, snapshot={self.snapshot.number}"
        return f"FeatureStore({where}): {len(self)} images"

    def __getstate__(self) -> dict[str, Any]:
        # A memory map cannot be pickled, so the copy opens the files and reads again what was read.
        read = {name for name, value in vars(type(self)).items() if isinstance(value, cached_property)}
        return {name: value for name, value in vars(self).items() if name not in read} | {"_open": {}}

    def layer(self, layer: int) -> "FeatureStore":
        """Return the store with the features of another layer, 0-based or negative from the model's end.

        Raises `ValueError` if that layer is not stored.
        """
        other = copy(self)
        other._layer = self._resolve(layer)
        return other

    @cached_property
    def cls(self) -> Float[np.ndarray, "N D"]:
        """The CLS tokens. The first use copies them into memory. The tokens of a single shard stay on disk."""
        return self._all("cls")

    @cached_property
    def registers(self) -> Float[np.ndarray, "N R D"]:
        """The register tokens. They take memory as `cls` does."""
        return self._all("registers")

    def patches(self, i: int) -> Float[np.ndarray, "D h w"]:
        """Return the feature map of image `i` and read only its bytes. Every image may have another grid.

        Raises `IndexError` if there is no such image, `ValueError` if patches were not stored.
        """
        name = self._name("patches")
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of a store of {len(self)} images")
        number, row = (int(values[i]) for values in self._features)
        with self._naming_a_pruned_snapshot():
            shard = self._shard(number)
            h, w = shard.grid[row].tolist()
            tokens = _numpy(shard.read(name, row, row + 1))
        return tokens.reshape(h, w, -1).transpose(2, 0, 1)

    @cached_property
    def grids(self) -> Int[np.ndarray, "N 2"]:
        """(h, w) of each image's patches."""
        self._name("patches")
        numbers, rows = self._features
        with self._naming_a_pruned_snapshot():
            found = [self._shard(int(number)).grid[run] for number, run in _runs(numbers, rows)]
        return np.concatenate([np.empty((0, 2), np.int32), *found]).astype(np.int32)

    @property
    def tokens(self) -> "StoredTokens":
        """The patches of each image, (h*w, D) and row-major as `Features.tokens`, read on access."""
        self._name("patches")
        return StoredTokens(self, np.arange(len(self)))

    @property
    def rows(self) -> "StoredRows":
        """The CLS tokens, (N, D), read in blocks on access. `LinearProbe` and `KnnProbe` fit on them if `cls` exceeds
        memory."""
        self._name("cls")
        return StoredRows(self, np.arange(len(self)))

    @cached_property
    def table(self) -> Table:
        """All rows and results of the snapshot, as they are stored."""
        with self._naming_a_pruned_snapshot():
            return read_all(self.storage, self.snapshot)

    @property
    def missing(self) -> int:
        """The number of shards that are not computed yet."""
        return self.table.pending if self.snapshot.work else 0

    @cached_property
    def index(self) -> pa.Table:
        """A row for every input, in order, with the columns of `layout.INDEX`. The status is "pending" if its shard is
        not computed yet."""
        return self.table.index()

    @cached_property
    def images(self) -> pa.Table:
        """The rows of `index` that were read, aligned with the features."""
        return self._with("ok")

    @cached_property
    def paths(self) -> list[str]:
        return self.images["path"].to_pylist()

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Indices into `class_names`, (N,), -1 where unknown."""
        return self.images["label"].to_numpy()

    @cached_property
    def failed(self) -> list[tuple[str, str]]:
        """(path, error) of each input without features. `index` also has the kind of reason."""
        rows = self._with("failed")
        return list(zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True))

    def _with(self, status: str) -> pa.Table:
        return self.index.filter(pc.equal(self.index["status"], status))

    @cached_property
    def _features(self) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """The shard of each image, as an index into the shards, and the row in this shard."""
        return self.table.features()

    def _all(self, kind: str) -> Float[np.ndarray, "N ..."]:
        name = self._name(kind)
        if not self.table.names:
            return self.read(kind, [])
        if self.table.is_plain:  # a single shard stays a memory map
            with self._naming_a_pruned_snapshot():
                parts = [self._shard(number).read(name) for number in range(len(self.table.names))]
            return _numpy(parts[0] if len(parts) == 1 else torch.cat(parts))
        return self.read(kind, np.arange(len(self)))

    def read(
        self, kind: str, images: Sequence[int] | Int[np.ndarray, " n"] | Bool[np.ndarray, " N"]
    ) -> Float[np.ndarray, "n ..."]:
        """Read `cls` (n, D) or `registers` (n, R, D) of some images, in the order of their indices. Returns a copy."""
        name = self._name(kind)
        chosen = np.asarray(images) if len(images) else np.empty(0, np.int64)
        numbers, rows = (values[chosen] for values in self._features)
        parts = []
        for number, run in _runs(numbers, rows):
            low, high = int(run.min()), int(run.max()) + 1
            with self._naming_a_pruned_snapshot():
                parts.append(self._shard(number).read(name, low, high)[torch.from_numpy(run - low)])
        return _numpy(torch.cat(parts) if parts else self._empty(kind))

    def _empty(self, kind: str) -> Tensor:
        spec = self.manifest["model"]["spec"]
        before = (spec["num_registers"],) if kind == "registers" else ()
        return torch.empty(0, *before, spec["dims"][self._layer], dtype=DTYPES[self.manifest["dtype"]])

    def _name(self, kind: str) -> str:
        if kind not in self.manifest["tokens"]:
            raise ValueError(
                f"{self.storage.url} has no {kind}, only {', '.join(self.manifest['tokens'])}; extract with "
                f"--tokens {','.join([*self.manifest['tokens'], kind])} into another folder"
            )
        return tensor_name(kind, self._layer, self.layers)

    def _resolve(self, layer: int) -> int:
        depth = self.manifest["model"]["spec"]["depth"]
        index = layer + depth if layer < 0 else layer
        if index not in self.layers:
            raise ValueError(
                f"{self.storage.url} has no layer {layer}; it stores {list(self.layers)} of {depth} layers"
            )
        return index

    @contextmanager
    def _naming_a_pruned_snapshot(self) -> Iterator[None]:
        """Raise a clearer error if an object is missing because the snapshot has been pruned meanwhile."""
        try:
            yield
        except (Damaged, FileNotFoundError) as error:
            number = self.snapshot.number
            last = latest(self.storage)
            if last is None or number >= last.oldest:
                raise
            text = f"{self.storage.url}: snapshot {number} was pruned while it was open; open the store again"
            raise ValueError(text) from error

    def _shard(self, number: int) -> TensorFile:
        if number not in self._open:
            shard = open_tensors(self.storage, self.table.names[number])
            shard.check(self.manifest["tokens"], self.layers, int(self.table.reads[number]))
            self._open[number] = shard
        return self._open[number]


class StoredTokens(Sequence[Float[np.ndarray, "T D"]]):
    """The patch tokens of some images of a store. An integer index reads one image. A slice, a mask or an array of
    indices selects images and reads nothing."""

    def __init__(self, store: FeatureStore, rows: Int[np.ndarray, " n"]) -> None:
        self.store = store
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        chosen = self.rows[index]
        if chosen.ndim:
            return StoredTokens(self.store, chosen)
        maps = self.store.patches(int(chosen))
        return maps.reshape(len(maps), -1).T


class StoredRows:
    """The CLS tokens (n, D) of some images. A slice, a mask or an array of indices selects images; `blocks` reads."""

    def __init__(self, store: FeatureStore, chosen: Int[np.ndarray, " n"]) -> None:
        self.store = store
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.chosen), self.store.manifest["model"]["spec"]["dims"][self.store._layer]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("float16" if self.store.manifest["dtype"] == "float16" else "float32")

    def __getitem__(self, index: Any) -> "StoredRows":
        return StoredRows(self.store, np.atleast_1d(self.chosen[index]))

    def blocks(self, rows: int) -> Iterator[Float[np.ndarray, "n D"]]:
        """Yield all features in order, at most `rows` at a time."""
        for start in range(0, len(self), rows):
            yield self.store.read("cls", self.chosen[start : start + rows])


def _runs(numbers: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> Iterator[tuple[int, Int[np.ndarray, " m"]]]:
    """Yield each run of consecutive equal numbers, with its rows."""
    ends = np.flatnonzero(np.diff(numbers, append=-1)) + 1
    for start, end in pairwise([0, *ends.tolist()]):
        yield int(numbers[start]), rows[start:end]


def _numpy(tensor: Tensor) -> Float[np.ndarray, "..."]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
