"""Errors of predicted depth on one image (Eigen et al. 2014). The figure of a set is the mean over its images."""

import numpy as np
from jaxtyping import Bool, Float

NAMES = ("rmse", "abs_rel", "a1", "a2", "a3", "log_10", "silog")


def depth_errors(
    predicted: Float[np.ndarray, "H W"], truth: Float[np.ndarray, "H W"], known: Bool[np.ndarray, "H W"]
) -> dict[str, float]:
    """Measure one image at the pixels of `known`. All are NaN if there is none.

    `rmse` is in the unit of depth; `a1` to `a3` are the shares of pixels within 1.25, 1.25² and 1.25³; `silog` is in
    percent (facebookresearch/dinov3, eval/depth/metrics.py). Depths must be above 0.
    """
    p, t = predicted[known].astype(np.float64), truth[known].astype(np.float64)
    if not len(t):
        return dict.fromkeys(NAMES, float("nan"))
    error, logs = p - t, np.log(p) - np.log(t)
    ratio = np.maximum(p / t, t / p)
    return {
        "rmse": float(np.sqrt((error**2).mean())),
        "abs_rel": float((np.abs(error) / t).mean()),
        "a1": float((ratio < 1.25).mean()),
        "a2": float((ratio < 1.25**2).mean()),
        "a3": float((ratio < 1.25**3).mean()),
        "log_10": float(np.abs(logs).mean() / np.log(10)),
        "silog": float(100 * np.sqrt(max((logs**2).mean() - logs.mean() ** 2, 0.0))),
    }


def box_mask(size: tuple[int, int], shares: tuple[float, float, float, float]) -> Bool[np.ndarray, "H W"]:
    """Return the mask of a box. `shares`: its top, bottom, left and right as shares of the height and the width."""
    (height, width), (top, bottom, left, right) = size, shares
    mask = np.zeros(size, dtype=bool)
    mask[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return mask
