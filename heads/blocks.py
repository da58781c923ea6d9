"""Feature rows that are read a block at a time, so that they need not fit into memory.

Axes: `N` samples, `F` features, `n` rows of a block.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Array = NDArray[Any]
ROWS = 4096  # of a block: 13 MB of 768 features in float32, 64 MB of similarities of one block to another
DELAY = 2  # seconds that reading takes before there is a bar
INTERVAL = 0.1 if sys.stderr.isatty() else 10  # seconds between two states of it


@runtime_checkable
class Rows(Protocol):
    """Feature rows (N, F), read when asked for: `FeatureStore(...).rows`, or anything with these five."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> "Rows":
        """Those that a slice, a mask or indices choose; none is read."""

    def blocks(self, rows: int) -> Iterator[Array]:
        """All of them in order, (n, F), at most `rows` at a time."""


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
    """What features of a dtype are computed in: float64 stays, half precision and integers become float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def read(rows: Rows, work: str) -> Iterator[Array]:
    """The blocks of rows; once reading them from somewhere has taken a while, with a bar that says for which work."""
    stored = not isinstance(rows, InMemory)
    with tqdm(
        total=len(rows),
        desc=work,
        unit="row",
        unit_scale=True,
        leave=False,
        delay=DELAY,
        mininterval=INTERVAL,
        disable=not stored,
    ) as bar:
        for block in rows.blocks(ROWS):
            yield block
            bar.update(len(block))


def read_checked(rows: Rows, dtype: np.dtype[Any], work: str) -> Iterator[Array]:
    """The same in `dtype`, without the samples that hold NaN or inf. Raises `ValueError` after the last block if there
    are any."""
    wrong, first, start = 0, 0, 0
    for block in read(rows, work):
        block = np.asarray(block, dtype=dtype)
        finite = np.isfinite(block.sum(axis=1, dtype=np.float64))  # and no mask of the size of the block
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
            "these samples out, of X and of y, or extract them again in a higher precision"
        )
