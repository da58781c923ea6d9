"""A store as arrays over all images, for the formats that hold arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vitbackbone.store.formats.columns import about, dtype, patches, spans
from vitbackbone.store.store import FeatureStore


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of one array: its rows from `start` on."""

    name: str
    start: int
    values: Any  # (n, ...); texts are objects


def shapes(store: FeatureStore) -> dict[str, tuple[tuple[int, ...], np.dtype[Any] | type[str]]]:
    """Return the shape and the dtype of each array."""
    count, features = len(store), dtype(store)
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any] | type[str]]] = {}
    for field in about(store, range(0)).schema:
        found[field.name] = (count,), str if pa.types.is_string(field.type) else np.dtype(field.type.to_pandas_dtype())
    for kind in store.manifest["tokens"]:
        if kind == "patches":
            size = store.patches(0).shape[0] if count else 0
            found["grid"] = (count, 2), np.dtype(np.int32)
            found["offsets"] = (count + 1,), np.dtype(np.int64)
            found["patches"] = (int(store.grids.prod(axis=1, dtype=np.int64).sum()), size), features
        else:
            found[kind] = (count, *store.read(kind, []).shape[1:]), features
    return found


def pieces(store: FeatureStore, progress: bool) -> Iterator[Piece]:
    """Yield all arrays in pieces, with the images of one shard at a time."""
    first = 0  # patch of the piece
    if "patches" in store.manifest["tokens"]:
        yield Piece("offsets", 0, np.zeros(1, np.int64))
    for _, span in spans(store, progress):
        known = about(store, span)
        for name in known.column_names:
            yield Piece(name, span.start, _without_nulls(known[name]).to_numpy())
        for kind in store.manifest["tokens"]:
            if kind == "patches":
                grids, values = patches(store, span)
                yield Piece("grid", span.start, grids)
                yield Piece("offsets", span.start + 1, first + grids.prod(axis=1, dtype=np.int64).cumsum())
                yield Piece("patches", first, values)
                first += len(values)
            else:
                yield Piece(kind, span.start, store.read(kind, span))


def _without_nulls(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Put a value in place of null, which arrays lack: an empty text, -1, or false."""
    if pa.types.is_string(column.type):
        return pc.fill_null(column, "")
    return pc.fill_null(column, pa.scalar(False if pa.types.is_boolean(column.type) else -1, column.type))
