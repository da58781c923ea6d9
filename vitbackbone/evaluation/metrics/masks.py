"""Region similarity J and contour accuracy F of masks (Perazzi et al. 2016, DAVIS)."""

import math

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import distance_transform_edt

BOUND = 0.008  # share of the diagonal by which a contour may be off

Mask = Bool[np.ndarray, "H W"]


def jaccard(predicted: Mask, truth: Mask) -> float:
    """Return the IoU of two masks, 1 if both are empty."""
    union = int((predicted | truth).sum())
    return float((predicted & truth).sum()) / union if union else 1.0


def contour(mask: Mask) -> Mask:
    """Return the pixels whose right, lower or lower right neighbour is on the other side of the mask's border.

    Contours are one pixel wide and lie half a pixel towards the origin. Pixels beyond the image do not count.
    """
    here = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ here[:-1, 1:]) | (mask ^ here[1:, :-1]) | (mask ^ here[1:, 1:])


def contour_f(predicted: Mask, truth: Mask) -> float:
    """Return the F-measure of the contours of two masks.

    (davisvideochallenge/davis2017-evaluation, davis2017/metrics.py)

    A contour pixel is right if the other contour lies within a disk of 0.8 % of the image's diagonal, rounded up.
    """
    found, wanted = contour(predicted), contour(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    radius = math.ceil(BOUND * math.hypot(*truth.shape))
    precision = _share_near(found, wanted, radius)
    recall = _share_near(wanted, found, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(contour: Mask, other: Mask, radius: int) -> float:
    """Return the share of a contour that lies within `radius` of the other one."""
    return float((distance_transform_edt(~other)[contour] <= radius).mean())
