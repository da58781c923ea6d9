"""The columns of an export: what is known of each image, and its tokens. Every format writes these."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from vitbackbone.files import progress_bar
from vitbackbone.store.store import FeatureStore

ABOUT = ("path", "label", "width", "height", "sha256")
OF_FRAMES = ("stream", "frame", "pts", "time_base", "keyframe")  # in a store that has frames of videos


def spans(store: FeatureStore, progress: bool) -> Iterator[tuple[int, range]]:
    """Yield the number and the images of each piece of the export. A piece has the size of a shard."""
    size = store.manifest["shard_size"]
    found = [range(start, min(start + size, len(store))) for start in range(0, len(store), size)]
    yield from enumerate(progress_bar(found, "exporting", progress, unit="shard"))


def about(store: FeatureStore, span: range) -> pa.Table:
    """Return what is known of some images: path, label, class name, size and sha256."""
    names = ABOUT + (OF_FRAMES if store.images["stream"].null_count < len(store.images) else ())
    rows = store.images.slice(span.start, len(span)).select(names)
    known = [*store.class_names, None]  # label -1 is unknown
    classes = pa.array([known[label] for label in rows["label"].to_pylist()], pa.string())
    return rows.add_column(2, "class", classes)


def table(store: FeatureStore, span: range, flat: bool = False) -> pa.Table:
    """Return what is known of some images and their tokens.

    `flat`: registers and patches are lists of numbers, without a list for each token.
    """
    found = about(store, span)
    for kind in store.manifest["tokens"]:
        for name, column in _columns(store, kind, span, flat).items():
            found = found.append_column(name, column)
    return found


def _columns(store: FeatureStore, kind: str, span: range, flat: bool) -> dict[str, pa.Array]:
    if kind != "patches":
        tokens = store.read(kind, span)
        return {kind: lists(tokens.reshape(len(tokens), math.prod(tokens.shape[1:])) if flat else tokens)}
    grids, values = patches(store, span)
    counts = grids.prod(axis=1, dtype=np.int64)
    width = values.shape[1]
    offsets = np.cumsum([0, *counts]) * (width if flat else 1)
    column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), lists(values.reshape(-1) if flat else values))
    return {"patches": column, "grid": lists(grids)}


def lists(array: Any) -> Any:
    """Return (n, D) as n lists of D numbers, and (n, R, D) as n lists of R such lists."""
    found = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in array.shape[:0:-1]:
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def patches(store: FeatureStore, span: range) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, "L D"]]:
    """Return the grids (h, w) of some images, and their patches, one image after the other, each row-major."""
    maps = [store.patches(i) for i in span]
    grids = np.array([one.shape[1:] for one in maps], dtype=np.int32).reshape(-1, 2)
    none = np.empty((0, len(maps[0]) if maps else 0), dtype(store))
    return grids, np.concatenate([none, *(one.reshape(len(one), -1).T for one in maps)])


def dtype(store: FeatureStore) -> np.dtype[Any]:
    """Return the dtype of the features in NumPy, which has no bfloat16."""
    return np.dtype("float16" if store.manifest["dtype"] == "float16" else "float32")
