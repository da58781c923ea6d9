"""Intervals of a figure by the bootstrap over its items."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

DRAWS, SEED = 1000, 0
METHOD = f"95 % percentile bootstrap over {{of}}, {DRAWS} draws"


def interval(items: Shaped[np.ndarray, "N *shape"], figure: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of a figure of the items' sum, over random draws with replacement.

    `figure` takes the sum of N drawn items. For a mean, pass `lambda total: total / len(items)`.
    """
    rng = np.random.default_rng(SEED)
    flat = items.reshape(len(items), -1).astype(np.float64)
    found = []
    for _ in range(DRAWS):
        weights = np.bincount(rng.integers(len(items), size=len(items)), minlength=len(items))
        found.append(figure((weights @ flat).reshape(items.shape[1:])))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Return the bootstrap interval of a mean. NaN items are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    return interval(known, lambda total: float(total / len(known)))
