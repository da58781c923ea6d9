"""Keypoints of one photo found in another by their features: the reads and matches of SPair-71k's evaluations.

Axes: `K` keypoints, `D` width, `h w` patch grid. Points are (x, y). Features have length 1.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Read = Literal["nearest", "inside", "bilinear"]
Match = Literal["argmax", "window", "kernel"]


def read_at(features: Float[Tensor, "D h w"], points: Float[Tensor, "K 2"], read: Read) -> Float[Tensor, "K D"]:
    """Return the feature of each point. `points` are in [0, 1] of the width and the height of the map.

    `"nearest"` rounds to a patch's index, as if patches had their centres at whole numbers (INSID3). `"inside"` takes
    the patch that holds the point (GeoAware-SC). `"bilinear"` interpolates with the centres of the outermost patches
    at 0 and 1 (Probe3D).
    """
    h, w = features.shape[1:]
    if read == "bilinear":
        found = F.grid_sample(features[None], points[None, None] * 2 - 1, mode="bilinear", align_corners=True)
        return found[0, :, 0].T
    cells = points * torch.tensor([w, h]).to(points)
    cells = (cells.round() if read == "nearest" else cells.floor()).long()
    return features[:, cells[:, 1].clamp(0, h - 1), cells[:, 0].clamp(0, w - 1)].T


def match(
    described: Float[Tensor, "K D"],
    features: Float[Tensor, "D h w"],
    how: Match,
    sigma: float,
    window: int,
    temperature: float,
) -> Float[Tensor, "K 2"]:
    """Return the place of each description in a map, as (column, row), whole or in between.

    `"argmax"` is the most similar patch. `"window"` is the mean place by softmax over similarities that are 0 farther
    than `window` patches from the most similar one (GeoAware-SC, soft evaluation). `"kernel"` is the same with
    similarities multiplied by a Gaussian of `sigma` patches around the most similar one (INSID3, SFNet).
    """
    h, w = features.shape[1:]
    similarity = described @ features.flatten(1)
    best = similarity.argmax(dim=1)
    peak = torch.stack([best % w, best // w], dim=1).to(similarity)
    if how == "argmax":
        return peak
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([columns, rows], dim=-1).flatten(0, 1).to(similarity)  # N 2
    offset = places - peak[:, None]  # K N 2
    if how == "window":
        weight = (offset.abs() <= window).all(dim=2).to(similarity)
    else:
        weight = torch.exp(-offset.square().sum(dim=2) / (2 * sigma**2))
    return (similarity * weight / temperature).softmax(dim=1) @ places
