"""Alignment of feature maps: one map, resampled at the patch centres of another.

Axes: `B` batch, `D` width, `h w` patch grid.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vitbackbone.contract.features import Features
from vitbackbone.contract.geometry import Geometry
from vitbackbone.contract.tracing import any_size, copied


def align(features: Features, geometry: Geometry) -> Float[Tensor, "B D h w"]:
    """Resample a map bilinearly at the patch centres of another geometry of the same images.

    Centres beyond the outermost patches take the value of the edge patch. The strides decide where centres lie, not the
    grid sizes. If a stride does not divide the image, the two maps cover different parts of the padding. If both maps
    cover the same area, the result equals `F.interpolate(align_corners=False)`.
    """
    maps, ratio = features.patches, geometry.stride / features.geometry.stride
    if ratio == 1:
        return maps
    with any_size():
        sizes = zip(geometry.grid, maps.shape[-2:], strict=True)
        rows, columns = (_hats(*each, ratio, maps.device) for each in sizes)
        return multiply_axes(maps, rows.to(maps), columns.to(maps))


def multiply_axes(
    maps: Float[Tensor, "B D y x"], rows: Float[Tensor, "h y"], columns: Float[Tensor, "w x"]
) -> Float[Tensor, "B D h w"]:
    """Resample the rows and the columns of maps by a matrix each.

    It uses only products of two matrices, because tracers specialise other products on sides of size 1.
    """
    (batch, dim, y, x), (h, w) = maps.shape, (rows.shape[0], columns.shape[0])
    tall = (copied(maps.mT).view(batch * dim * x, y) @ rows.T).view(batch, dim, x, h)
    return (copied(tall.mT).view(batch * dim * h, x) @ columns.T).view(batch, dim, h, w)


def _hats(points: int, size: int, ratio: float, device: torch.device) -> Float[Tensor, "points size"]:
    """Return the weight of each of `size` samples at each of `points`, which lie `ratio` samples apart.

    Each row sums to 1.
    """
    centres = ((torch.arange(points, device=device) + 0.5) * ratio - 0.5).clamp(0, size - 1)
    return (1 - (centres[:, None] - torch.arange(size, device=device)).abs()).clamp(min=0)
