"""Position tables as pure functions: the fixed sinusoids and the resampling of a table to another patch grid.

Axes: `D` width, `h w` patch grid.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.config import Resampling


def _angles(positions: Int[Tensor, " N"], dim: int) -> Float[Tensor, "N half"]:
    """Angles of dim/2 wavelengths from 2π to 10000·2π, in float64."""
    frequency = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    return positions.double()[:, None] * frequency


def sincos1d(grid: tuple[int, int], dim: int) -> Float[Tensor, "N D"]:
    """Fixed table over the raster order of the patches, (h*w, D): sines at the even channels and cosines at the odd
    ones (Vaswani et al. 2017, section 3.5)."""
    angle = _angles(torch.arange(grid[0] * grid[1]), dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()


def sincos2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "N D"]:
    """Fixed table over columns and rows, (h*w, D): the column in the first half of the width, the row in the second,
    each as all its sines and then all its cosines (facebookresearch/mae, util/pos_embed.py)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    halves = [_angles(columns.flatten(), dim // 2), _angles(rows.flatten(), dim // 2)]
    return torch.cat([f(angle) for angle in halves for f in (torch.sin, torch.cos)], dim=1).float()


def resample(
    table: Float[Tensor, "M D"], old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Float[Tensor, "N D"]:
    """Resize a table (h*w, D) from patch grid `old` to `new`, in float32, by the checkpoint's own policy.

    Grids are compared as (h, w): 14 x 14 and 7 x 28 have as many patches and are not the same grid.
    """
    if old == new:
        return table
    image = rearrange(table.float(), "(h w) d -> 1 d h w", h=old[0])
    if how.offset:
        factor = [(n + how.offset) / m for n, m in zip(new, old, strict=True)]
        image = F.interpolate(image, scale_factor=factor, mode=how.mode, align_corners=False)
        if tuple(image.shape[-2:]) != new:
            raise RuntimeError(f"resampling {old} to {new} with offset {how.offset} gave {tuple(image.shape[-2:])}")
    else:
        image = F.interpolate(image, size=new, mode=how.mode, align_corners=False, antialias=how.antialias)
    return rearrange(image, "1 d h w -> (h w) d").to(table.dtype)
