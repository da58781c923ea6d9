"""Feature rows that are read a block at a time, so that they need not fit into memory.

Axes: `N` samples, `F` features, `n` rows of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitbackbone import progress_bar

Array = NDArray[Any]
ROWS = 4096  # rows of a block: 13 MB of 768 features in float32, and 64 MB of similarities between two blocks


@runtime_checkable
class Rows(Protocol):
    """Feature rows (N, F) that are read on demand: `FeatureStore(...).rows`, or any object with these five members."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> "Rows":
        """Select rows by a slice, a mask or indices, without reading any."""

    def blocks(self, rows: int) -> Iterator[Array]:
        """Yield all rows in order as blocks (n, F) of at most `rows` rows."""


@dataclass(frozen=True)
class InMemory:
    """An array as `Rows`."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> "InMemory":
        return InMemory(self.array[index])

    def blocks(self, rows: int) -> Iterator[Array]:
        return (self.array[start : start + rows] for start in range(0, len(self), rows))


def precision(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype to compute in: float64 stays, and half precision and integers become float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def read(rows: Rows, work: str) -> Iterator[Array]:
    """Yield the blocks of rows. If reading stored rows takes a while, a progress bar names the `work`."""
    stored = not isinstance(rows, InMemory)
    with progress_bar(what=work, shown=stored, passing=True, total=len(rows), unit="row", unit_scale=True) as bar:
        for block in rows.blocks(ROWS):
            yield block
            bar.update(len(block))


def read_checked(rows: Rows, dtype: np.dtype[Any], work: str) -> Iterator[Array]:
    """Yield the blocks of rows in `dtype`, without samples that hold NaN or inf.

    Raises `ValueError` after the last block if there were such samples.
    """
    wrong, first, start = 0, 0, 0
    for block in read(rows, work):
        block = np.asarray(block, dtype=dtype)
        finite = np.isfinite(block.sum(axis=1, dtype=np.float64))  # a mask as large as the block would cost memory
        finite[~finite] = np.isfinite(block[~finite]).all(axis=1)  # a sum of finite values may overflow
        if not finite.all():
            first = first if wrong else start + int(np.argmin(finite))
            wrong += int((~finite).sum())
            block = block[finite]
        start += len(finite)
        if len(block):
            yield block
    if wrong:
        raise ValueError(
            f"the features of {wrong} of {len(rows)} samples hold NaN or inf, first sample {first}; leave "
            "these samples out of X and of y, or extract them again in a higher precision"
        )
