"""Fixed tables of sines and cosines.

Axes: `D` width, `h w` patch grid, `N` patches.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitbackbone.model.positions.caching import cached


def _angles(positions: Int[Tensor, " N"], dim: int) -> Float[Tensor, "N half"]:
    """Return the angles of dim/2 wavelengths from 2π to 10000·2π, in float64."""
    steps = torch.arange(dim // 2, dtype=torch.float64, device=positions.device) / (dim / 2)
    frequency = 10000.0**-steps
    return positions.double()[:, None] * frequency


def sincos1d(grid: tuple[int, int], dim: int) -> Float[Tensor, "N D"]:
    """Return the fixed table over the patches in raster order, (h*w, D).

    Even channels are sines and odd channels cosines (Vaswani et al. 2017, section 3.5).
    """
    angle = _angles(torch.arange(grid[0] * grid[1]), dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()


def sincos(positions: Int[Tensor, " N"], dim: int) -> Float[Tensor, "N D"]:
    """Return all sines, and then all cosines, of positions on one axis."""
    angle = _angles(positions, dim)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sincos2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "N D"]:
    """Return the fixed table over columns and rows, (h*w, D).

    The first half of the channels encodes the column, and the second half the row. Each half is all sines, and then all
    cosines (facebookresearch/mae, util/pos_embed.py).
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    halves = [_angles(columns.flatten(), dim // 2), _angles(rows.flatten(), dim // 2)]
    return torch.cat([f(angle) for angle in halves for f in (torch.sin, torch.cos)], dim=1).float()


@cached(32)
def computed2d(grid: tuple[int, int], dim: int, device: torch.device) -> Float[Tensor, "N D"]:
    """Return the table of `sincos2d` for a grid whose sides a tracer may leave open, (h*w, D)."""
    (h, w), parts = grid, []
    for side in (w, h):
        parts.append(sincos(torch.arange(side, device=device), dim // 2))
    columns, rows = parts
    both = [columns[None].expand(h, w, dim // 2), rows[:, None].expand(h, w, dim // 2)]
    return torch.cat(both, dim=2).view(h * w, dim)
