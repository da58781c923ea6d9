"""Confidence intervals of figures: Wilson's for shares of images, and the bootstrap for all others. The seed is fixed.

A unit is what is drawn: images, queries, or pairs. Units that share a photo are drawn together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from heads import accuracy_interval

SUMS, DRAWS = 1000, 200  # draws of figures of sums, and of figures that are computed from all rows again
BLOCK = 100  # draws whose sums are computed at once
SEED = 0
LEVELS = (2.5, 97.5)
WILSON = "95 % Wilson interval"
BOOTSTRAP = "95 % percentile bootstrap over {of}, {draws} draws"
ERROR = "95 % normal interval with the bootstrap's standard error over {of}, {draws} draws"

Rows = Int[np.ndarray, " _"]


class Interval(NamedTuple):
    """An interval of a figure."""

    bounds: tuple[float, float] | None  # in the figure's unit
    method: str  # how it is computed, or why there is none


def none(reason: str) -> Interval:
    """Return no interval."""
    return Interval(None, f"no interval: {reason}")


def wilson(right: Bool[np.ndarray, " N"]) -> Interval:
    """Return Wilson's interval of a share, in percent."""
    low, high = accuracy_interval(int(right.sum()), len(right))
    return Interval((100 * low, 100 * high), WILSON)


def of_sums(
    items: Shaped[np.ndarray, "N *shape"],
    figure: Callable[[Float[np.ndarray, "*shape"]], float],
    of: str,
    scale: float = 1.0,
) -> Interval:
    """Return the bootstrap interval of a figure of the items' sum, times `scale`.

    `of`: the items in words. `figure` takes the sum of N items that are drawn with replacement.
    """
    if len(items) < 2:
        return none(f"there are not several {of}")
    random = np.random.default_rng(SEED)
    flat = items.reshape(len(items), -1).astype(np.float64)
    found = []
    for _ in range(0, SUMS, BLOCK):
        drawn = [random.integers(len(items), size=len(items)) for _ in range(BLOCK)]
        weights = np.stack([np.bincount(rows, minlength=len(items)) for rows in drawn]).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a draw may make the figure divide by zero
            found += [figure(total.reshape(items.shape[1:])) for total in weights @ flat]
    return _percentiles(scale * np.array(found), BOOTSTRAP.format(of=of, draws=SUMS))


def of_mean(values: Float[np.ndarray, " N"], of: str, scale: float = 1.0) -> Interval:
    """Return the bootstrap interval of a mean, times `scale`. NaN items are left out."""
    known = values[~np.isnan(values)]
    return of_sums(known, lambda total: float(total / len(known)), of, scale)


def bootstrap(figure: Callable[..., float], counts: Sequence[int], of: str) -> Interval:
    """Return the bootstrap interval of a figure of several kinds of units. Each kind is drawn by itself.

    `figure` takes the rows that are drawn of each kind. Draws without a figure, NaN, are left out.
    """
    if max(counts) < 2:
        return none(f"there are not several {of}")
    return _percentiles(np.array([figure(*rows) for rows in _draws(counts)]), BOOTSTRAP.format(of=of, draws=DRAWS))


def standard_error(value: float, figure: Callable[[Rows], float], count: int, of: str) -> Interval:
    """Return value ± 1.96 standard errors, which the bootstrap measures.

    It is for figures that repeated images bias, such as the mutual information of a table.
    """
    if count < 2:
        return none(f"there are not several {of}")
    half = 1.96 * float(np.nanstd([figure(rows) for (rows,) in _draws([count])], ddof=1))
    return Interval((value - half, value + half), ERROR.format(of=of, draws=DRAWS))


def _draws(counts: Sequence[int]) -> Iterator[tuple[Rows, ...]]:
    random = np.random.RandomState(SEED)
    for _ in range(DRAWS):
        yield tuple(random.randint(0, count, count) for count in counts)


def _percentiles(found: Float[np.ndarray, " N"], method: str) -> Interval:
    if np.isnan(found).all():
        return none("no draw has a figure")
    low, high = np.nanpercentile(found, LEVELS)
    return Interval((float(low), float(high)), method)
