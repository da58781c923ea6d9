"""Confidence intervals: Wilson's for shares, a normal one for sums of shares, and the bootstrap for other figures."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from heads import accuracy_interval

DRAWS = 200
WILSON = "95 % Wilson interval"
BOOTSTRAP = f"95 % percentile bootstrap over images, {DRAWS} draws"
NORMAL = "95 % normal interval of the errors, as independent shares"


def wilson(right: Bool[np.ndarray, " N"]) -> tuple[float, float]:
    """Return (low, high) of Wilson's 95 % interval of a share, in percent."""
    low, high = accuracy_interval(int(right.sum()), len(right))
    return 100 * low, 100 * high


def bootstrap(figure: Callable[[Int[np.ndarray, " N"]], float], count: int) -> tuple[float, float]:
    """Return (low, high) of the 95 % percentile bootstrap interval of a figure. The seed is fixed.

    `figure` takes the rows of `count` images that are drawn. Draws without a figure, NaN, are left out.
    """
    random = np.random.RandomState(0)
    low, high = np.nanpercentile([figure(random.randint(0, count, count)) for _ in range(DRAWS)], [2.5, 97.5])
    return float(low), float(high)


def spread(shares: Sequence[tuple[float, float, int]]) -> float:
    """Return half of the 95 % normal interval of a weighted sum of shares: (weight, share, images that it is of)."""
    variance = sum(weight**2 * share * (1 - share) / count for weight, share, count in shares)
    return 1.96 * math.sqrt(variance)
