"""One box around the main object of an image, without training: LOST and TokenCut.

Axes: `N` patches, `D` width, `h w` patch grid.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.linalg import eigh
from scipy.ndimage import label
from torch import Tensor
from torch.nn import functional as F

Box = Float[np.ndarray, "4"]  # left, top, right, bottom in pixels


def lost(features: Float[Tensor, "D h w"], k: int) -> Bool[np.ndarray, "h w"]:
    """Return the patches of the main object (Siméoni et al. 2021, LOST).

    The seed is the patch with the fewest patches of positive correlation. Among the `k` patches with the fewest, those
    that correlate with the seed vote for the patches of the object, by their summed products. The object is
    the 4-connected component of the seed.
    """
    grid = features.shape[1:]
    tokens = features.flatten(1).T
    products = tokens @ tokens.T
    others = products.clone().fill_diagonal_(0)
    degree = (others > 0).sum(dim=1)
    order = torch.argsort(-degree.float(), descending=True)
    seed, candidates = order[0], order[:k]
    friends = candidates[products[seed, candidates] > 0]
    votes = products[friends].sum(dim=0)
    return _component((votes > 0).reshape(grid).cpu().numpy(), int(seed))


def tokencut(features: Float[Tensor, "D h w"], tau: float, epsilon: float) -> Bool[np.ndarray, "h w"]:
    """Return the patches of the main object (Wang et al. 2022, TokenCut).

    Patches whose cosine is above `tau` are joined by an edge of 1, and others by one of `epsilon`. The second
    eigenvector of the normalised cut is split at its mean. The object is the 4-connected component of its largest
    absolute value, on the side of that value.
    """
    grid = features.shape[1:]
    tokens = F.normalize(features.flatten(1).T, dim=1)
    edges = np.where((tokens @ tokens.T).cpu().numpy() > tau, 1.0, epsilon)
    degrees = np.diag(edges.sum(axis=1))
    # The authors ask for the third eigenvector too, which changes the second one if both have the same eigenvalue.
    asked = [1, min(2, len(edges) - 1)]
    vector = eigh(degrees - edges, degrees, subset_by_index=asked)[1][:, 0]
    seed = int(np.argmax(np.abs(vector)))
    side = vector > vector.mean()
    return _component((side == side[seed]).reshape(grid), seed)


def _component(mask: Bool[np.ndarray, "h w"], seed: int) -> Bool[np.ndarray, "h w"]:
    components, _ = label(mask)
    return components == components.reshape(-1)[seed]


def box_of(mask: Bool[np.ndarray, "h w"], stride: int, size: tuple[int, int]) -> Box:
    """Return the box around patches in pixels of an image of (H, W). Padding at the right and bottom is cut off."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    right, bottom = (stride * (int(each[-1]) + 1) for each in (columns, rows))
    left, top = (stride * int(each[0]) for each in (columns, rows))
    return np.array([left, top, min(right, size[1]), min(bottom, size[0])], dtype=np.float64)
