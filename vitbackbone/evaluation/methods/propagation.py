"""Label propagation through a video by nearest patches (Jabri et al. 2020; Caron et al. 2021, DINO).

Axes: `T` frames of context, `h w` patch grid, `D` width, `M` objects, the background among them, `H W` pixels.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Shape = Literal["square", "circle"]


def propagate(
    current: Float[Tensor, "D h w"],
    context: Float[Tensor, "T D h w"],
    labels: Float[Tensor, "T M h w"],
    radius: int,
    shape: Shape,
    topk: int,
    temperature: float,
) -> Float[Tensor, "M h w"]:
    """Return the labels of a frame: a weighted mean of the labels of the nearest patches of all context frames.

    Features must have length 1. Each patch looks at patches at most `radius` rows and columns away (or in a circle). It
    keeps the `topk` most similar ones, and weighs them by exp(similarity / temperature).
    """
    (_, h, w), device = current.shape, current.device
    column = torch.arange(w, device=device)
    aside = (column[:, None] - column).float()  # columns between two patches
    rows = []
    for row in range(h):  # only the rows within reach are compared
        first, end = max(row - radius, 0), min(row + radius + 1, h)
        above = (torch.arange(first, end, device=device) - row).float()
        near = _near(aside, above, radius, shape)
        similarity = torch.einsum("dw,tdkv->wtkv", current[:, row], context[:, :, first:end])
        similarity = similarity.masked_fill(~near[:, None], -torch.inf).flatten(1)
        least = similarity.topk(min(topk, similarity.shape[1]), dim=1).values[:, -1:]
        weights = (similarity.masked_fill(similarity < least, -torch.inf) / temperature).softmax(dim=1)
        rows.append(weights @ labels[:, :, first:end].permute(0, 2, 3, 1).flatten(0, 2))
    return torch.stack(rows).permute(2, 0, 1)


def _near(aside: Float[Tensor, "w v"], above: Float[Tensor, " k"], radius: int, shape: Shape) -> Bool[Tensor, "w k v"]:
    if shape == "circle":
        return aside[:, None].square() + above[None, :, None].square() <= radius**2
    return (aside.abs() <= radius)[:, None].expand(-1, len(above), -1)


def stretched(labels: Float[Tensor, "M H W"], guarded: bool) -> Float[Tensor, "M H W"]:
    """Stretch each object's scores to [0, 1], so that small objects are not drowned by the background.

    `guarded`: constant scores become 0, as in DINOv3. DINO does not change scores of 0 or below.
    """
    low, high = labels.flatten(1).amin(dim=1), labels.flatten(1).amax(dim=1)
    scaled = (labels - low[:, None, None]) / (high - low)[:, None, None]
    if guarded:
        return scaled.nan_to_num(nan=0.0)
    return torch.where((high > 0)[:, None, None], scaled, labels)


def one_hot(mask: Float[Tensor, "h w"] | Tensor, objects: int) -> Float[Tensor, "M h w"]:
    """Return the labels of a mask of object indices. Indices of absent objects are background."""
    return F.one_hot(mask.long().clamp(max=objects), objects + 1).permute(2, 0, 1).float()
