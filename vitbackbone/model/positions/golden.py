"""Rotary positions with a direction for each pair of channels of each head (SigLino).

Axes: `N` patches, `d` width of a head.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.model.config import Rotary


def golden_table(
    rotary: Rotary, dim: int, grid: tuple[int, int], counts: Sequence[Float[Tensor, ""]]
) -> Float[Tensor, "2 heads N d"]:
    """Return cosines and sines of the angles of each patch, for heads of width `dim`, in float32.

    A pair of channels turns by the patch's place along its direction, times its frequency. `counts`: the sides of the
    grid, as tensors.
    """
    pairs, device = dim // 4, counts[0].device
    frequencies = rotary.theta ** torch.linspace(0, 1, pairs, device=device)
    directions = _directions(rotary.heads * pairs).to(device).view(rotary.heads, pairs, 2) * frequencies[:, None]
    places = (2 * torch.arange(side, dtype=torch.float32, device=device) for side in grid)
    rows, columns = (
        (place / (side - 1).clamp(min=1) - 1) * (side / other) ** 0.5
        for place, side, other in zip(places, counts, counts[::-1], strict=True)
    )
    along = rows[:, None, None, None] * directions[..., 0] + columns[:, None, None] * directions[..., 1]
    angle = F.pad(along.flatten(0, 1).transpose(0, 1), (0, dim // 2 - pairs))  # heads N d/2; the rest is still
    angle = torch.cat([angle, angle], 2) if rotary.pairs == "halves" else angle.repeat_interleave(2, dim=2)
    return torch.stack([angle.cos(), angle.sin()])


def _directions(count: int) -> Float[Tensor, "count 2"]:
    """Return unit vectors that cover the circle evenly, however many are taken.

    A sequence of low discrepancy, by powers of the plastic number, is mapped to normal deviates, and each pair of these
    is scaled to length 1 (tiiuae/siglino, rope.py).
    """
    plastic = 2.0  # ten steps to the real root of x³ = x + 1, as the weights were trained: 4e-8 away from it
    for _ in range(10):
        plastic = (1 + plastic) ** (1 / 3)
    powers = (1 / plastic) ** torch.arange(1, 3, dtype=torch.float64, device="cpu")
    even = (torch.arange(1, count + 1, dtype=torch.float64, device="cpu")[:, None] * powers) % 1.0
    normal = torch.erfinv(2 * even - 1)
    return (normal / normal.norm(dim=1, keepdim=True)).float()
