"""Read the tensors of a shard: memory-mapped from a file of this machine, or by ranges from a bucket or a file that
safetensors cannot open."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitbackbone.files import Storage, is_utf8
from vitbackbone.store.layout import object_key, tensor_name
from vitbackbone.store.objects import Damaged

MOST_HEADER = 1 << 20  # bytes of a header; a shard has a few tensors
CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32"}


class TensorFile(ABC):
    """The open features of one shard."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage, self.key = storage, key
        self.grid: Int[np.ndarray, "n 2"] = np.empty((0, 2), np.int64)
        self.starts: Int[np.ndarray, " n"] = np.empty(0, np.int64)  # first patch of each image

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor."""

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read the rows [start, stop) of a tensor."""

    def check(self, kinds: Sequence[str], layers: Sequence[int], images: int) -> None:
        """Read the grid. Raises `Damaged` if the tensors do not hold that number of images."""
        shapes = self.shapes()
        patches = 0
        if "patches" in kinds:
            if shapes.get("grid") != (images, 2):
                raise Damaged(self.storage, self.key, f"grid: {shapes.get('grid')}")
            self.grid = self.read("grid").numpy().astype(np.int64)
            sizes = self.grid.prod(axis=1)
            self.starts = sizes.cumsum() - sizes
            patches = int(sizes.sum())
        for name in (tensor_name(kind, layer, layers) for layer in layers for kind in kinds):
            shape = shapes.get(name)
            rows = patches if name.startswith("patches") else images
            if shape is None or shape[0] != rows:
                raise Damaged(self.storage, self.key, f"{name}: {shape}, want {rows} rows")


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
        self._file: Any = safe_open(path, framework="pt")  # an untyped class

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor: Tensor = (
            self._file.get_tensor(name) if (start, stop) == (0, None) else self._file.get_slice(name)[start:stop]
        )
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

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        rows, *rest = self._shapes[name]
        dtype = self._dtypes[name]
        count = (rows if stop is None else stop) - start
        size = int(np.prod(rest, dtype=np.int64)) * dtype.itemsize  # bytes of a row
        if not count * size:
            return torch.empty(count, *rest, dtype=dtype)
        data = self.storage.get_range(self.key, self._begin + self._offsets[name] + start * size, count * size)
        if len(data) != count * size:
            raise Damaged(self.storage, self.key, f"it ends after {len(data)} of {count * size} bytes")
        return torch.frombuffer(bytearray(data), dtype=dtype).view(count, *rest)
