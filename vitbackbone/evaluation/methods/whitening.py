"""PCA whitening as DINO's copy detection learns it.

Axes: `N` images, `D` width.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEAST = 1e-5  # share of the largest eigenvalue below which others are raised


@dataclass(frozen=True, eq=False)
class Whitening:
    """The mean that is removed, and the matrix that is applied."""

    mean: Float[np.ndarray, " D"]
    matrix: Float[np.ndarray, "D D"]

    def __call__(self, features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        return (features - self.mean) @ self.matrix.T


def fit_whitening(features: Float[np.ndarray, "N D"]) -> Whitening:
    """Learn a whitening: eigenvectors over the root of their eigenvalues, largest first.

    (facebookresearch/dino, eval_copy_detection.py and utils.py, `PCA`) As in the authors' code, the second moments are
    not centred, although the mean is removed when the whitening is applied.
    """
    wide = features.astype(np.float64)
    values, vectors = np.linalg.eigh(wide.T @ wide / len(wide))
    values = np.maximum(values, LEAST * values.max())
    order = np.argsort(values)[::-1]
    return Whitening(wide.mean(axis=0), (vectors[:, order] / np.sqrt(values[order])).T)
