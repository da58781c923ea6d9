"""One feature map on the grid of another: what it shows at other places of the same images.

Axes: `B` batch, `D` width, `h w` patch grid.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vitbackbone.contract.features import Features
from vitbackbone.contract.geometry import Geometry


def align(features: Features, geometry: Geometry) -> Float[Tensor, "B D h w"]:
    """The map at the patch centres of another geometry of the same images: bilinear, and at the edges the edge patch.

    By strides, not by grid sizes: where a stride does not divide the image, the maps cover different parts of padding.
    Where both cover the same, this is `F.interpolate(align_corners=False)`.
    """
    maps, ratio = features.patches, geometry.stride / features.geometry.stride
    if ratio == 1:
        return maps
    rows, columns = (_hats(*sizes, ratio, maps.device) for sizes in zip(geometry.grid, maps.shape[-2:], strict=True))
    return rows.to(maps) @ maps @ columns.to(maps).T


def _hats(points: int, size: int, ratio: float, device: torch.device) -> Float[Tensor, "points size"]:
    """How much of each of `size` samples is in each of `points`, which are `ratio` samples apart; rows sum to 1."""
    centres = ((torch.arange(points, device=device) + 0.5) * ratio - 0.5).clamp(0, size - 1)
    return (1 - (centres[:, None] - torch.arange(size, device=device)).abs()).clamp(min=0)
