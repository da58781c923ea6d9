"""Area under the curve of per-region overlap, PRO (Bergmann et al. 2020, Uninformed Students)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import label

EIGHT = np.ones((3, 3), dtype=int)  # neighbours of a pixel, diagonal ones included


def pro_curve(
    maps: Sequence[Float[np.ndarray, "_ _"]], masks: Sequence[Bool[np.ndarray, "_ _"]]
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Return the false positive rate and the mean overlap of all regions, for every threshold of the scores.

    Each connected region of a mask has the same weight, whatever its size. The rate is over all defect-free pixels of
    all images (MVTec's evaluation script, pro_curve_util.py).
    """
    scores = np.concatenate([each.ravel() for each in maps])
    clean, overlap, regions = [], [], 0
    for mask in masks:
        labelled, count = label(mask, EIGHT)
        sizes = np.bincount(labelled.ravel(), minlength=count + 1)
        share = 1.0 / sizes
        share[0] = 0.0
        overlap.append(share[labelled].ravel())
        clean.append((labelled == 0).ravel())
        regions += count
    if not regions:
        raise ValueError("the masks have no region; PRO needs at least one defect")
    order = np.argsort(scores)[::-1]
    last = np.append(np.diff(scores[order]) != 0, True)  # pixels of equal scores enter together
    false = np.cumsum(np.concatenate(clean)[order])[last]
    found = np.cumsum(np.concatenate(overlap)[order])[last]
    rates, overlaps = false / max(int(false[-1]), 1), np.minimum(found / regions, 1.0)
    return np.concatenate([[0.0], rates, [1.0]]), np.concatenate([[0.0], overlaps, [1.0]])


def area_until(x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"], limit: float) -> float:
    """Return the area under a curve from 0 to `limit`, by the trapezoidal rule. `x` ascends, equal values included."""
    inside = x <= limit
    x_cut, y_cut = x[inside], y[inside]
    if x_cut[-1] < limit:
        i = len(x_cut)
        slope = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
        x_cut, y_cut = np.append(x_cut, limit), np.append(y_cut, y[i - 1] + slope * (limit - x[i - 1]))
    return float(np.trapezoid(y_cut, x_cut))


def pro(
    maps: Sequence[Float[np.ndarray, "_ _"]], masks: Sequence[Bool[np.ndarray, "_ _"]], limit: float = 0.3
) -> float:
    """Return the area under the PRO curve up to a false positive rate of `limit`, as a share of `limit`."""
    return area_until(*pro_curve(maps, masks), limit) / limit
