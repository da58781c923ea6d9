"""Standardisation of features: mean and scale from one pass over rows that need not fit into memory.

Axes: `N` samples, `F` features, `n` rows of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from heads.probes.rows import Array, Rows, read_checked

ROUNDING = 16 * np.finfo(np.float64).eps  # relative; a feature that varies less varies only by rounding
SAFE = 1e30  # float32 is enough for (x - mean) / scale if the mean and the scale are within this factor of 1


@dataclass(frozen=True)
class Scaling:
    """The map (x - mean) / scale of features x. `scale` is infinite for a constant feature, which becomes 0.

    A nearly constant feature has a scale far below its mean. The mean is subtracted first, because this difference is
    exact. Coefficients for raw features would lose all digits.
    """

    mean: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]

    @classmethod
    def of(cls, rows: Rows, dtype: np.dtype[Any]) -> "Scaling":
        """Compute the mean and standard deviation of each feature, in float64. Raises `ValueError` on NaN or inf.

        Values are taken relative to the first row, and blocks are merged by their means (Chan et al. 1979), so a large
        mean costs no digits.
        """
        count, width = 0, rows.shape[1]
        first, mean, squares = np.zeros(width), np.zeros(width), np.zeros(width)
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            for block in read_checked(rows, dtype, "mean and variance"):
                first = block[0].astype(np.float64) if count == 0 else first
                shifted = block - first
                by = shifted.mean(axis=0)
                shifted -= by
                by_rounding = shifted.mean(axis=0)
                delta, total = by - mean, count + len(block)
                squares += np.einsum("nf,nf->f", shifted, shifted) - len(block) * by_rounding**2
                squares += delta**2 * (count * len(block) / total)
                mean += delta * (len(block) / total)
                count = total
        scale = np.sqrt(squares.clip(min=0) / count)
        if not np.isfinite(scale).all():
            column = int(np.argmin(np.isfinite(scale)))
            raise ValueError(f"feature {column} has values whose squares overflow float64; divide it by a constant")
        mean = first + mean
        scale[scale <= ROUNDING * np.abs(mean)] = np.inf
        return cls(mean, scale)

    def without_scale(self) -> "Scaling":
        """Return the scaling that only subtracts the mean."""
        return Scaling(self.mean, np.ones_like(self.scale))

    def of_block(self, block: Array, dtype: np.dtype[Any]) -> Array:
        """Scale a block (n, F), in `dtype`."""
        finite = self.scale[np.isfinite(self.scale)]
        safe = (finite > 1 / SAFE).all() and (finite < SAFE).all() and (np.abs(self.mean) < SAFE).all()
        exact = dtype if safe else np.dtype(np.float64)
        scaled = np.subtract(block, self.mean.astype(exact), dtype=exact)
        scaled /= self.scale.astype(exact)
        return scaled.astype(dtype, copy=False)


def unit_length(block: Float[np.ndarray, "n F"]) -> Float[np.ndarray, "n F"]:
    """Divide each row by its length. A zero row stays.

    If squares of a row could overflow or vanish, the row is first divided by its largest value.
    """
    with np.errstate(over="ignore", under="ignore"):
        squares = np.einsum("nf,nf->n", block, block)
    limits = np.finfo(block.dtype)
    odd = ~((squares > limits.tiny / limits.eps) & (squares < limits.max))
    if odd.any():
        block = block.copy()
        largest = np.abs(block[odd]).max(axis=1, keepdims=True)
        block[odd] /= np.where(largest > 0, largest, 1)
        squares[odd] = np.einsum("nf,nf->n", block[odd], block[odd])
    return block / np.sqrt(np.where(squares > 0, squares, 1))[:, None]


@dataclass(frozen=True)
class Scaled:
    """Rows that are scaled as they are read."""

    source: Rows
    scaling: Scaling
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> "Scaled":
        return Scaled(self.source[index], self.scaling, self.dtype)

    def blocks(self, rows: int) -> Iterator[Array]:
        return (self.scaling.of_block(block, self.dtype) for block in self.source.blocks(rows))
