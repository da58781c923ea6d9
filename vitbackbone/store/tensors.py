"""Read the tensors of a shard: memory-mapped from a file of this machine, or by ranges from a bucket or a file that
safetensors cannot open.

A reader that reads some images of a shard cannot use the checksum that names the object. So each tensor has a checksum
for each image, which every read compares.

Axes: `n` images of the shard. An image has one row of a tensor, or one for each of its patches. `bounds`: the first row
of each image, and the end.
"""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitbackbone.files import READS, Storage, is_utf8
from vitbackbone.store.layout import checksum_name, object_key, tensor_name
from vitbackbone.store.objects import Damaged

MOST_HEADER = 1 << 20  # bytes of a header; a shard has a few tensors
CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "I64": "int64"}


class TensorFile(ABC):
    """The open features of one shard."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage, self.key = storage, key
        self.grid: Int[np.ndarray, "n 2"] = np.empty((0, 2), np.int64)
        self._images: Int[np.ndarray, " bounds"] = np.zeros(1, np.int64)  # of tensors with a row for each image
        self._patches: Int[np.ndarray, " bounds"] = np.zeros(1, np.int64)  # of tensors with a row for each patch
        self._sums: dict[str, Int[np.ndarray, " n"]] = {}

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor."""

    @abstractmethod
    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows [start, stop) of a tensor."""

    def _whole(self, name: str) -> Tensor:
        """Read all rows of a tensor."""
        return self._rows(name, 0, self.shapes()[name][0])

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Read the rows of the images [first, last) of a tensor. Raises `Damaged` if they differ from their
        checksums."""
        bounds = self._bounds(name)[first : None if last is None else last + 1]
        for _ in range(READS):
            whole = first == 0 and last is None
            rows = self._whole(name) if whole else self._rows(name, int(bounds[0]), int(bounds[-1]))
            wrong = self._differing(name, first, rows, bounds - bounds[0])
            if wrong is None:
                return rows
        raise Damaged(self.storage, self.key, f"{name}: the checksum of image {wrong} of the shard differs")

    def _bounds(self, name: str) -> Int[np.ndarray, " bounds"]:
        return self._patches if name.startswith("patches") else self._images

    def _differing(self, name: str, first: int, rows: Tensor, bounds: Int[np.ndarray, " bounds"]) -> int | None:
        """Return the first image whose rows differ from their checksum, if there is one."""
        if name not in self._sums:
            self._sums[name] = self._rows(checksum_name(name), 0, len(self._images) - 1).numpy()
        want = self._sums[name][first : first + len(bounds) - 1]
        differing = np.flatnonzero(_checksums(rows, bounds) != want)
        if not len(differing):
            return None
        del self._sums[name]  # they may be what is damaged
        return first + int(differing[0])

    def check(self, kinds: Sequence[str], layers: Sequence[int], images: int) -> None:
        """Read the grid. Raises `Damaged` if the tensors do not hold that number of images."""
        shapes = self.shapes()
        self._images = np.arange(images + 1)
        patches = 0
        if "patches" in kinds:
            if shapes.get("grid") != (images, 2):
                raise Damaged(self.storage, self.key, f"grid: {shapes.get('grid')}")
            self._check_rows(shapes, checksum_name("grid"), images)
            self.grid = self.read("grid", 0, images).numpy().astype(np.int64)
            self._patches = np.concatenate([[0], self.grid.prod(axis=1).cumsum()])
            patches = int(self._patches[-1])
        for name in (tensor_name(kind, layer, layers) for layer in layers for kind in kinds):
            self._check_rows(shapes, name, patches if name.startswith("patches") else images)
            self._check_rows(shapes, checksum_name(name), images)

    def _check_rows(self, shapes: dict[str, tuple[int, ...]], name: str, rows: int) -> None:
        shape = shapes.get(name)
        if not shape or shape[0] != rows:
            raise Damaged(self.storage, self.key, f"{name}: {shape}, want {rows} rows")


def with_checksums(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a shard, each with the checksums of its images."""
    grid = tensors.get("grid")
    patches = [0] if grid is None else [0, *grid.prod(dim=1).cumsum(0).tolist()]
    sums = {
        checksum_name(name): _checksums(
            rows, np.array(patches) if name.startswith("patches") else np.arange(len(rows) + 1)
        )
        for name, rows in tensors.items()
    }
    return {**tensors, **{name: torch.from_numpy(values) for name, values in sums.items()}}


def _checksums(rows: Tensor, bounds: Int[np.ndarray, " bounds"]) -> Int[np.ndarray, " m"]:
    """Return the CRC-32 of the bytes of each image, whose rows begin and end at `bounds`."""
    data = rows.contiguous().view(-1).view(torch.uint8).numpy().data
    width = len(data) // max(1, len(rows))
    spans = pairwise((bounds * width).tolist())
    return np.array([zlib.crc32(data[start:stop]) for start, stop in spans], dtype=np.int64)


def open_tensors(storage: Storage, name: str) -> TensorFile:
    """Open the features of a shard. Raises `Damaged` if they are missing or no safetensors."""
    key = object_key(name)
    path = storage.local_path(key)
    try:
        return _Mapped(storage, key, path) if path is not None and is_utf8(path) else _Ranged(storage, key)
    except FileNotFoundError:
        raise Damaged(storage, key, "it is missing") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Damaged(storage, key, str(error)) from error


class _Mapped(TensorFile):
    def __init__(self, storage: Storage, key: str, path: Path) -> None:
        super().__init__(storage, key)
        self._path = path
        self._file: Any = safe_open(path, framework="pt")  # an untyped class

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        rows: Tensor = self._file.get_slice(name)[start:stop]
        return rows.clone()  # no part of the map, which the caller could change

    def _whole(self, name: str) -> Tensor:
        tensor: Tensor = safe_open(self._path, framework="pt").get_tensor(name)  # a map that is the caller's own
        return tensor


class _Ranged(TensorFile):
    """The format: eight bytes with the length of a JSON header, the header, and the tensors that it describes."""

    def __init__(self, storage: Storage, key: str) -> None:
        super().__init__(storage, key)
        length = int.from_bytes(storage.get_range(key, 0, 8), "little")
        if not 2 <= length <= MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(storage.get_range(key, 8, length))
        header.pop("__metadata__", None)
        self._begin = 8 + length
        self._shapes = {name: tuple(map(int, about["shape"])) for name, about in header.items()}
        self._dtypes = {name: getattr(torch, CODES[about["dtype"]]) for name, about in header.items()}
        self._offsets = {name: int(about["data_offsets"][0]) for name, about in header.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        rest = self._shapes[name][1:]
        dtype = self._dtypes[name]
        count = stop - start
        size = int(np.prod(rest, dtype=np.int64)) * dtype.itemsize  # bytes of a row
        if not count * size:
            return torch.empty(count, *rest, dtype=dtype)
        data = self.storage.get_range(self.key, self._begin + self._offsets[name] + start * size, count * size)
        if len(data) != count * size:
            raise Damaged(self.storage, self.key, f"it ends after {len(data)} of {count * size} bytes")
        return torch.frombuffer(bytearray(data), dtype=dtype).view(count, *rest)
