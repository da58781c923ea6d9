"""Rotary positions: the angles by which queries and keys of each patch turn (Su et al. 2021, "RoFormer").

Axes: `d` width of a head, `h w` patch grid, `N` patches, `T` tokens of a row.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.model.config import Rotary
from vitbackbone.model.packing import Layout
from vitbackbone.model.positions.caching import cached
from vitbackbone.model.positions.golden import golden_table
from vitbackbone.model.positions.resampling import as_tensor


@cached(32)  # a batch of `extract` has at most this many grids
def rotary_table(
    rotary: Rotary, dim: int, grid: tuple[int, int], device: torch.device, steps: int = 1
) -> Float[Tensor, "2 *heads N d"]:
    """Return cosines and sines of the rotation angles of each patch, for heads of width `dim`, in float32.

    They have an axis of heads if each head has its own. `steps`: the time steps of a clip. Its patches come step by
    step.
    """
    if rotary.heads:
        return golden_table(rotary, dim, grid, [as_tensor(side, device) for side in grid])
    pairs = dim // (6 if rotary.time else 4)  # pairs of channels for each axis
    progression = torch.arange(pairs, dtype=torch.float32, device=device) / pairs
    between = 0.5 / pairs if rotary.interleaved else 0.0  # half a step of the progression
    periods = [rotary.theta**progression, rotary.theta ** (progression + between)]
    if rotary.bfloat16:
        periods = [each.bfloat16().float() for each in periods]
    axes = _coordinates(rotary, grid, device)
    rows, columns = (axis[:, None] / each for axis, each in zip(axes, periods, strict=True))
    (h, w), angles = grid, [rows[None, :, None], columns[None, None]]
    if rotary.time:
        times = torch.arange(steps, dtype=torch.float32, device=device)
        angles = [(times[:, None] / periods[0])[:, None, None], *angles]
    each = [axis.expand(steps, h, w, pairs) for axis in angles]
    if rotary.repeated:
        angle = torch.cat([part for axis in each for part in (axis, axis)], dim=3).view(steps * h * w, -1)
        angle = F.pad(angle, (0, dim - angle.shape[1]))
    else:
        angle = torch.cat(each, dim=3).view(steps * h * w, -1)
        angle = F.pad(angle, (0, dim // 2 - angle.shape[1]))
        angle = torch.cat([angle, angle], 1) if rotary.pairs == "halves" else angle.repeat_interleave(2, dim=1)
    return torch.stack([angle.cos(), angle.sin()])


def _coordinates(rotary: Rotary, grid: tuple[int, int], device: torch.device) -> list[Float[Tensor, " side"]]:
    """Return the coordinates of the rows and of the columns."""
    axes = [torch.arange(side, dtype=torch.float32, device=device) for side in grid]
    counts = [as_tensor(side, device) for side in grid]
    if rotary.coordinates == "same":
        return [torch.full_like(a, rotary.offset) for a in axes]
    if rotary.coordinates == "centred":
        return [2 * math.pi * (2 * (a + 0.5) / side - 1) for a, side in zip(axes, counts, strict=True)]
    if rotary.coordinates == "corners" and rotary.reference is not None:
        spans = zip(axes, counts, rotary.reference, strict=True)
        return [a * (span - 1) / (side - 1).clamp(min=1) for a, side, span in spans]
    axes = [a + rotary.offset for a in axes]
    if rotary.reference is None:
        return axes
    return [a / side * span for a, side, span in zip(axes, counts, rotary.reference, strict=True)]


def rotary_row(
    rotary: Rotary, dim: int, layout: Layout, num_prefix: int, device: torch.device
) -> Float[Tensor, "2 *heads T d"]:
    """Return the rotary table of a row of tokens.

    For a row of one image, it is the table of the patches. For several images, it is their tables in order, each after
    the identity for `num_prefix` prefix tokens.
    """
    if len(layout.grids) == 1:
        return rotary_table(rotary, dim, layout.grids[0], device, layout.steps)
    return _rotary_row(rotary, dim, layout, num_prefix, device)


def rotary_row_with_cls(rotary: Rotary, angles: Float[Tensor, " half"], layout: Layout) -> Float[Tensor, "2 T d"]:
    """Return the rotary table of a row whose images have one prefix token each, which turns by `angles`."""
    both = torch.cat([angles, angles]) if rotary.pairs == "halves" else angles.repeat_interleave(2)
    cls = torch.stack([both.float().cos(), both.float().sin()])[:, None]
    tables = [rotary_table(rotary, len(both), grid, angles.device) for grid in layout.grids]
    return torch.cat([part for table in tables for part in (cls, table)], dim=1)


@cached(2)
def _rotary_row(
    rotary: Rotary, dim: int, layout: Layout, num_prefix: int, device: torch.device
) -> Float[Tensor, "2 *heads T d"]:
    tables = [rotary_table(rotary, dim, grid, device) for grid in layout.grids]
    zeros = tables[0].new_zeros(*tables[0].shape[1:-2], num_prefix, dim)
    still = torch.stack([zeros + 1, zeros])
    return torch.cat([part for table in tables for part in (still, table)], dim=-2)


def rotate(
    x: Float[Tensor, "*batch T d"], table: Float[Tensor, "2 *heads N d"], rotary: Rotary
) -> Float[Tensor, "*batch T d"]:
    """Rotate the last N of the T tokens of queries or keys, which are the patches, by the angles of `rotary_table`."""
    cos, sin = table
    start = x.shape[-2] - cos.shape[-2]
    prefix, patches = x[..., :start, :], x[..., start:, :]
    if rotary.pairs == "halves":
        first, second = patches.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    else:
        across = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([prefix, (patches * cos + across * sin).type_as(x)], dim=-2)
