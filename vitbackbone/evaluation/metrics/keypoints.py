"""Percentage of correct keypoints, PCK, of semantic correspondence."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Rule = Literal["<=", "<"]  # whether a keypoint exactly at the threshold is right
Mean = Literal["pair", "point", "category"]  # what has the same weight


def within(distances: Float[np.ndarray, " K"], size: float, alpha: float, rule: Rule) -> Bool[np.ndarray, " K"]:
    """Return which keypoints are right: at most (or less than) `alpha * size` from the truth.

    `size`: the longer side of the target's box, in the unit of the distances.
    """
    return distances <= alpha * size if rule == "<=" else distances < alpha * size


def mean_pck(pairs: Mapping[str, Sequence[Bool[np.ndarray, " _"]]], mean: Mean) -> float:
    """Return the PCK of all pairs. `pairs`: for each category and pair, which keypoints are right.

    `"pair"` averages the PCK of pairs, `"point"` averages all keypoints, and `"category"` averages the PCK over
    keypoints of each category. The three differ by several points.
    """
    if mean == "category":
        return float(np.mean([np.concatenate(list(right)).mean() for right in pairs.values()]))
    each = [right for of_category in pairs.values() for right in of_category]
    return float(np.concatenate(each).mean()) if mean == "point" else float(np.mean([right.mean() for right in each]))
