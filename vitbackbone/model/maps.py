"""Resizing of feature maps, which exporters and compilers can follow.

Axes: `B` batch, `D` width, `h w` patch grid.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import multiply_axes, numbers
from vitbackbone.model.positions.resampling import resampling_matrix


def resize_maps(maps: Float[Tensor, "B D y x"], size: tuple[int, int]) -> Float[Tensor, "B D h w"]:
    """Resize maps to `size`, (h, w), bilinearly and with antialiasing.

    It equals `F.interpolate(antialias=True)`. A traced graph has a matrix for each axis instead, because exporters lack
    an antialiased resize, and takes maps of any grid. Weights are float32, because torch cannot resize bfloat16 with
    antialiasing on the CPU.
    """
    given = (maps.shape[2], maps.shape[3])
    traced = torch.compiler.is_compiling() or not numbers(*given)
    if not traced and given == size:
        return maps
    if traced:
        rows, columns = (
            resampling_matrix(old, new, "bilinear", True, 0.0, maps.device)
            for old, new in zip(given, size, strict=True)
        )
        return multiply_axes(maps.float(), rows, columns).to(maps.dtype)
    resized = F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.to(maps.dtype)
