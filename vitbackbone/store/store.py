"""Read the features of many images from the files of `layout.py`.

Axes: `N` images that were read, `R` register tokens, `D` width, `h w` patch grid of one image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitbackbone.store.layout import (
    INDEX,
    MANIFEST,
    Marker,
    index_file,
    marker_file,
    read_marker,
    shard_file,
    tensor_name,
)
from vitbackbone.store.manifest import Manifest, manifest_sha256, parse
from vitbackbone.store.parquet import open_parquet
from vitbackbone.store.plan import Outline, read_outline


@dataclass(frozen=True, eq=False)
class _Shard:
    """An open shard: its tensors are memory-mapped."""

    file: Any  # an untyped class of safetensors
    grid: Int[np.ndarray, "n 2"]
    starts: Int[np.ndarray, " n"]  # first patch of each image


class FeatureStore:
    """A store that `extract` wrote. It is memory-mapped: opening a thousand shards reads none of their features.

    `cls`, `patches`, `registers`, `paths` and `labels` cover the N = `len(store)` images that were read, in one order.
    `failed` lists the other inputs, and `index` has a row for every input. Features are those of the last layer that
    was asked; `layer(i)` gives another of `layers`. bfloat16 is returned as float32, because NumPy has no bfloat16.
    Images with the same content have the same features, which are stored once.

    `layer`: the layer to show, 0-based or negative from the model's end. `partial`: open a store that is not complete;
    `missing` counts the shards that it lacks.
    Raises `ValueError` if the directory is not a store, or not a complete store.
    """

    def __init__(self, directory: str | PathLike[str], layer: int | None = None, *, partial: bool = False) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        self.layers: tuple[int, ...] = tuple(self.manifest["layers"])  # 0-based, in the order asked
        outline = read_outline(self.directory)
        if not outline.shards:
            raise ValueError(f"{self.directory} is incomplete: it has no plan; run the same extraction again")
        self.class_names: list[str] = list(outline.class_names)
        self._layer = self.layers[-1] if layer is None else self._resolve(layer)
        self._partial = partial
        markers = _markers(self.directory, self.manifest, outline, partial)
        self.missing = len(outline.shards) - len(markers)
        self._numbers = list(markers)  # of the complete shards
        self._copies = sum(marker.copies for marker in markers.values())
        self._reads = np.array([marker.read for marker in markers.values()], dtype=np.int64)
        self._starts = self._reads.cumsum() - self._reads  # row of each shard's first feature
        self._open: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return len(self.paths) if self._copies else int(self._reads.sum())

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.directory)!r}, layer={self._layer}): {len(self)} images"

    def __reduce__(self) -> tuple[Callable[..., "FeatureStore"], tuple[Path, int, bool]]:
        return _reopened, (
            self.directory,
            self._layer,
            self._partial,
        )  # a memory map cannot be pickled, so the copy opens the files

    def layer(self, layer: int) -> "FeatureStore":
        """Return the store with the features of another layer, 0-based or negative from the model's end.

        Raises `ValueError` if that layer is not stored.
        """
        return FeatureStore(self.directory, self._resolve(layer), partial=self._partial)

    @cached_property
    def cls(self) -> Float[np.ndarray, "N D"]:
        """The CLS tokens. The first use copies them into memory; those of a single shard stay on disk."""
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
        feature = int(self._features[i])
        number = int(np.searchsorted(self._starts, feature, side="right")) - 1
        row = feature - self._starts[number]
        shard = self._shard(number)
        (h, w), start = shard.grid[row], shard.starts[row]
        tokens = _numpy(shard.file.get_slice(name)[int(start) : int(start + h * w)])
        return tokens.reshape(h, w, -1).transpose(2, 0, 1)

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
    def index(self) -> pa.Table:
        """A row for every input, in order, with the columns of `layout.INDEX`. A copy has the status of its original.
        The status is "pending" if the original's shard is not complete."""
        if not self._numbers:
            return INDEX.empty_table()
        files = (index_file(self.directory, number) for number in self._numbers)
        table = pa.concat_tables(_read_index(file) for file in files)
        return _resolve_copies(table) if self._copies else table

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
    def _features(self) -> Int[np.ndarray, " N"]:
        """The row of each image's features, counted over all shards."""
        if not self._copies:
            return np.arange(len(self))
        ok = self.images
        original = ok["same_as"].is_null().to_numpy()
        wanted = pc.coalesce(ok["same_as"], ok["row"]).to_numpy()
        return np.searchsorted(ok["row"].to_numpy()[original], wanted)

    def _all(self, kind: str) -> Float[np.ndarray, "N ..."]:
        name = self._name(kind)
        parts = [self._shard(number).file.get_tensor(name) for number in range(len(self._numbers))]
        stored = _numpy(parts[0] if len(parts) == 1 else torch.cat(parts))
        return stored[self._features] if self._copies else stored

    def read(self, kind: str, images: Sequence[int] | Int[np.ndarray, " n"]) -> Float[np.ndarray, "n ..."]:
        """Read `cls` (n, D) or `registers` (n, R, D) of some images, in the given order. Returns a copy."""
        name = self._name(kind)
        features = self._features[np.asarray(images, dtype=np.int64)]
        numbers = np.searchsorted(self._starts, features, side="right") - 1
        parts = [self._shard(0).file.get_slice(name)[0:0]] if not len(features) else []
        for number, rows in _runs(numbers, features - self._starts[numbers]):
            low, high = int(rows.min()), int(rows.max()) + 1
            parts.append(self._shard(number).file.get_slice(name)[low:high][torch.from_numpy(rows - low)])
        return _numpy(torch.cat(parts))

    def _name(self, kind: str) -> str:
        if kind not in self.manifest["tokens"]:
            raise ValueError(
                f"{self.directory} has no {kind}, only {', '.join(self.manifest['tokens'])}; extract with "
                f"--tokens {','.join([*self.manifest['tokens'], kind])} into another folder"
            )
        return tensor_name(kind, self._layer, self.layers)

    def _resolve(self, layer: int) -> int:
        depth = self.manifest["model"]["spec"]["depth"]
        index = layer + depth if layer < 0 else layer
        if index not in self.layers:
            raise ValueError(f"{self.directory} has no layer {layer}; it stores {list(self.layers)} of {depth} layers")
        return index

    def _shard(self, number: int) -> _Shard:
        if number not in self._open:
            path = shard_file(self.directory, self._numbers[number])
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, FileNotFoundError) as error:
                raise ValueError(f"{path} is damaged ({error}); run the same extraction again to repair it") from error
            _check_shapes(path, file, int(self._reads[number]))
            grid = file.get_tensor("grid").numpy() if "patches" in self.manifest["tokens"] else np.empty((0, 2), int)
            sizes = grid.astype(np.int64).prod(axis=1)
            self._check_tensors(path, file, int(sizes.sum()))
            self._open[number] = _Shard(file, grid, sizes.cumsum() - sizes)
        return self._open[number]

    def _check_tensors(self, path: Path, file: Any, patches: int) -> None:
        """Raise `ValueError` if a shard does not have the tensors of its manifest."""
        for layer in self.layers:
            for kind in self.manifest["tokens"]:
                name = tensor_name(kind, layer, self.layers)
                shape = file.get_slice(name).get_shape() if name in file.keys() else None  # noqa: SIM118  # no dict
                if shape is None or (kind == "patches" and shape[0] != patches):
                    raise ValueError(f"{path} is damaged ({name}: {shape}); run the same extraction again to repair it")


def _check_shapes(path: Path, file: Any, rows: int) -> None:
    """Raise `ValueError` if a shard does not have a row for each image."""
    for name in file.keys():  # noqa: SIM118  # no dict
        shape = file.get_slice(name).get_shape()
        if not name.startswith("patches") and shape[0] != rows:
            raise ValueError(
                f"{path} is damaged ({name} has {shape[0]} rows, want {rows}); run the same extraction again to "
                "repair it"
            )


class StoredTokens(Sequence[Float[np.ndarray, "T D"]]):
    """The patch tokens of some images of a store. An integer index reads one image. A slice, a mask or an array of
    indices selects images and reads nothing."""

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


def _reopened(directory: Path, layer: int, partial: bool) -> FeatureStore:
    return FeatureStore(directory, layer, partial=partial)


def _runs(numbers: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> Iterator[tuple[int, Int[np.ndarray, " m"]]]:
    """Yield each run of consecutive equal numbers, with its rows."""
    ends = np.flatnonzero(np.diff(numbers, append=-1)) + 1
    for start, end in pairwise([0, *ends.tolist()]):
        yield int(numbers[start]), rows[start:end]


def _resolve_copies(table: pa.Table) -> pa.Table:
    """Give each copy the status of its original."""
    rows = table["row"].to_numpy()
    wanted = pc.coalesce(table["same_as"], table["row"])
    at = pc.index_in(wanted, value_set=pa.array(rows))
    of_original = table.take(at.combine_chunks())
    for name in ("status", "reason", "error", "width", "height", "frames"):
        column = of_original[name]
        if name == "status":
            column = pc.fill_null(column, "pending")
        table = table.set_column(
            table.schema.get_field_index(name), INDEX.field(name), column.cast(INDEX.field(name).type)
        )
    return table


def _read_index(file: Path) -> pa.Table:
    try:
        with open_parquet(file) as parquet:
            return parquet.read().cast(INDEX)
    except (pa.ArrowException, FileNotFoundError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); run the same extraction again to repair it") from error


def _numpy(tensor: Tensor) -> Float[np.ndarray, "..."]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a store. Raises `ValueError` if the directory is not a store."""
    try:
        return parse((directory / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory} is not a feature store: it has no {MANIFEST}") from error
    except ValueError as error:
        raise ValueError(f"{directory} is not a feature store: {error}") from error


def _markers(directory: Path, manifest: Manifest, outline: Outline, partial: bool) -> dict[int, Marker]:
    """Return the markers of complete shards. Raises `ValueError` if one is missing, unless `partial`."""
    expected = manifest_sha256(manifest)
    found = {number: read_marker(directory, number) for number in range(len(outline.shards))}
    done = {
        number: marker
        for number, marker in found.items()
        if marker is not None and marker.fits(expected, outline.shards[number], outline.rows[number])
    }
    if len(done) < len(found) and not partial:
        broken = [marker_file(directory, number) for number in found if number not in done]
        wrong = [f"; {file} is damaged or belongs to other inputs" for file in broken if file.exists()]
        raise ValueError(
            f"{directory} is incomplete: {len(found) - len(done)} of {len(found)} shards are missing; run the same "
            f"extraction again to finish it{''.join(wrong[:3])}"
        )
    return done
