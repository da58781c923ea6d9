"""Confidence intervals: Wilson's for shares, and the bootstrap for other means."""

import numpy as np
from jaxtyping import Bool, Float

from heads import accuracy_interval

DRAWS = 1000
WILSON = "95 % Wilson interval"
BOOTSTRAP = f"95 % bootstrap interval, {DRAWS} draws"


def wilson(right: Bool[np.ndarray, " N"]) -> tuple[float, float]:
    """Return (low, high) of Wilson's 95 % interval of a share, in percent."""
    low, high = accuracy_interval(int(right.sum()), len(right))
    return 100 * low, 100 * high


def bootstrap(values: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Return (low, high) of the 95 % percentile bootstrap interval of a mean. The seed is fixed."""
    random = np.random.RandomState(0)
    means = [values[random.randint(0, len(values), len(values))].mean() for _ in range(DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
