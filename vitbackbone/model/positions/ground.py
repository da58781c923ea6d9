"""Positions that count metres on the ground (Clay Foundation, Clay v1.5).

Axes: `D` width, `h w` patch grid, `N` patches.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vitbackbone.model.positions.caching import cached

OTHERS = 8  # channels of the date and the place, which are 0 here, as upstream where they are unknown


@cached(32)
def ground2d(grid: tuple[int, int], dim: int, metres: float, device: torch.device) -> Float[Tensor, "N D"]:
    """Return the table (h*w, D): sines and cosines of the column, then of the row, and zeros for date and place.

    `metres`: the side of a pixel on the ground.
    Source: Clay-foundation/model, claymodel/utils.py, `posemb_sincos_2d_with_gsd`.
    """
    (h, w), own = grid, dim - OTHERS
    count = own // 4
    steps = torch.arange(count, dtype=torch.float64, device=device) / (count - 1)
    speed = metres * 10000.0 ** (-2 * steps / own)
    rows, columns = (torch.arange(side, device=device).double()[:, None] * speed for side in (h, w))
    across = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(h, w, 2 * count)
    down = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(h, w, 2 * count)
    rest = across.new_zeros(h, w, OTHERS)
    return torch.cat([across, down, rest], dim=2).view(h * w, dim).float()
