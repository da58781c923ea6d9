"""zarr, version 3: arrays in many small files or few large ones, for xarray and dask."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from vitbackbone.store.formats.arrays import pieces, shapes
from vitbackbone.store.store import FeatureStore

CHUNK_BYTES = 1 << 20  # bytes of a chunk, the smallest part that can be read
CHUNKS = 64  # chunks of a shard, which is one file


def write(store: FeatureStore, folder: Path, progress: bool) -> None:
    """Write one group of arrays."""
    group = zarr.open_group(folder / "features.zarr", mode="w", zarr_format=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")  # of texts
        arrays = {name: _array(group, name, shape, dtype) for name, (shape, dtype) in shapes(store).items()}
        for piece in pieces(store, progress):
            arrays[piece.name][piece.start : piece.start + len(piece.values)] = piece.values


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any] | type[str]) -> Any:
    width = 64 if dtype is str else np.dtype(dtype).itemsize * int(np.prod(shape[1:], dtype=np.int64))
    rows = max(1, CHUNK_BYTES // max(width, 1))
    chunks = (min(rows, max(shape[0], 1)), *shape[1:])
    shards = (chunks[0] * CHUNKS, *shape[1:]) if chunks[0] < shape[0] else None
    return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, shards=shards)
