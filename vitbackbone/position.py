"""Positions as pure functions: fixed sinusoids, rotary tables, relative indices, and the resampling of tables to
another patch grid.

Axes: `D` width, `d` width of a head, `h w` patch grid, `N` patches.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.config import Resampling, Rotary
from vitbackbone.packing import Layout


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
    Raises `ValueError` if the policy reads the table as a square and it is none.
    """
    if how.as_square == "always" or (how.as_square == "elsewhere" and old != new):
        old = square(old)
    if old == new:
        return table
    # Channels last, with the strides that say so: of an image in another layout, torch's antialiased bicubic loses the
    # rows where it makes it one column wide.
    image = table.float().contiguous().view(1, *old, -1).permute(0, 3, 1, 2)
    if how.offset:
        factor = [(n + how.offset) / m for n, m in zip(new, old, strict=True)]
        image = F.interpolate(image, scale_factor=factor, mode=how.mode, align_corners=False)
        if tuple(image.shape[-2:]) != new:
            raise RuntimeError(f"resampling {old} to {new} with offset {how.offset} gave {tuple(image.shape[-2:])}")
    else:
        image = F.interpolate(image, size=new, mode=how.mode, align_corners=False, antialias=how.antialias)
    return rearrange(image, "1 d h w -> (h w) d").to(table.dtype)


def square(grid: tuple[int, int]) -> tuple[int, int]:
    """Return the square grid of as many patches. Raises `ValueError` if there is none."""
    side = math.isqrt(grid[0] * grid[1])
    if side**2 != grid[0] * grid[1]:
        raise ValueError(
            f"the positions are for {grid[0]} x {grid[1]} patches, and transformers resizes them only if their number "
            f"is a square. Take images of {grid[0]} x {grid[1]} patches, or load the backbone with positions='timm'"
        )
    return side, side


# ---- what all blocks of a forward ask for -------------------------------------------------------------------------

P = ParamSpec("P")
R = TypeVar("R")


def kept(count: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keeps the latest `count` results of a function of values alone; none of a graph that is traced, nor a stand-in
    for a tensor, such as shape propagation makes."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        results: dict[object, R] = {}

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            result = results.get(args)
            if result is None:
                result = function(*args, **kwargs)
                if type(result) in (Tensor, np.ndarray):
                    while len(results) >= count:
                        results.pop(next(iter(results)), None)  # another thread may have taken it
                    results[args] = result
            return result

        return call

    return decorate


# ---- rotary -------------------------------------------------------------------------------------------------------


@kept(32)  # as many grids as a batch of `extract` may have
def rotary_table(rotary: Rotary, dim: int, grid: tuple[int, int], device: torch.device) -> Float[Tensor, "2 N d"]:
    """Cosines and sines of the angles by which the channels of a head of width `dim` turn, per patch, in float32."""
    with torch.inference_mode(False), torch.no_grad():
        steps = torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4)
        periods = rotary.theta**steps
        if rotary.bfloat16:
            periods = periods.bfloat16().float()
        axes = [torch.arange(side, dtype=torch.float32, device=device) for side in grid]
        if rotary.coordinates == "centred":
            axes = [2 * math.pi * (2 * (a + 0.5) / side - 1) for a, side in zip(axes, grid, strict=True)]
        else:
            axes = [a / side * span for a, side, span in zip(axes, grid, rotary.reference, strict=True)]
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        angle = torch.cat([axis.flatten()[:, None] / periods for axis in (rows, columns)], dim=1)
        angle = torch.cat([angle, angle], 1) if rotary.pairs == "halves" else angle.repeat_interleave(2, dim=1)
        return torch.stack([angle.cos(), angle.sin()])


def rotary_row(
    rotary: Rotary, dim: int, layout: Layout, num_prefix: int, device: torch.device
) -> Float[Tensor, "2 T d"]:
    """The tables of images that share a row, one after another, each behind prefix tokens that do not turn. Of one
    image it is its table alone."""
    if len(layout.grids) == 1:
        return rotary_table(rotary, dim, layout.grids[0], device)
    return _rotary_row(rotary, dim, layout, num_prefix, device)


@kept(2)
def _rotary_row(
    rotary: Rotary, dim: int, layout: Layout, num_prefix: int, device: torch.device
) -> Float[Tensor, "2 T d"]:
    with torch.inference_mode(False), torch.no_grad():
        still = torch.tensor([1.0, 0.0], dtype=torch.float32, device=device)[:, None, None].expand(-1, num_prefix, dim)
        tables = [rotary_table(rotary, dim, grid, device) for grid in layout.grids]
        return torch.cat([part for table in tables for part in (still, table)], dim=1)


def rotate(
    x: Float[Tensor, "*batch T d"], table: Float[Tensor, "2 N d"], rotary: Rotary
) -> Float[Tensor, "*batch T d"]:
    """Queries or keys with the last N of their T tokens, the patches, turned by the angles of `rotary_table`."""
    cos, sin = table
    prefix, patches = x[..., : -len(cos), :], x[..., -len(cos) :, :]
    if rotary.pairs == "halves":
        first, second = patches.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    else:
        across = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([prefix, (patches * cos + across * sin).type_as(x)], dim=-2)


# ---- relative -----------------------------------------------------------------------------------------------------


@kept(2)  # of N² numbers each
def relative_index(grid: tuple[int, int], device: torch.device) -> Int[Tensor, "T T"]:
    """The row of BEiT's bias table for each pair of the T = 1 + h*w tokens: one row for every difference of places, and
    three more for CLS to a patch, a patch to CLS, and CLS to itself (microsoft/unilm, beit/modeling_finetune.py)."""
    h, w = grid
    with torch.inference_mode(False):
        y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
        differences = (2 * h - 1) * (2 * w - 1)
        index = torch.full((1 + h * w, 1 + h * w), differences, dtype=torch.int32)
        index[1:, 0] = differences + 1
        index[0, 0] = differences + 2
        index[1:, 1:] = (y[:, None] - y + h - 1) * (2 * w - 1) + x[:, None] - x + w - 1
        return index.to(device)


def resample_relative(
    table: Float[Tensor, "M heads"], old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Float[Tensor, "K heads"]:
    """Resize the part of BEiT's bias table that belongs to differences of places, from patch grid `old` to `new`.

    `how.relative`: `"spline"` is the authors' (a cubic spline over places that lie the further apart the further out
    they are, in geometric progression: microsoft/unilm, beit/run_class_finetuning.py); `"geometric"` is timm's, linear
    between the same places; `"bilinear"` is transformers', over evenly spaced ones.
    """
    if old == new and (how.relative != "bilinear" or old[0] == old[1]):
        return table
    before, after = ((2 * grid[0] - 1, 2 * grid[1] - 1) for grid in (old, new))
    if how.relative == "bilinear":  # transformers takes rows for columns, which shows where the grid is no square
        body = rearrange(table[:-3].float(), "(y x) heads -> heads y x", y=before[1])
        body = F.interpolate(body[None], size=after, mode="bilinear", align_corners=False)[0]
    else:
        body = rearrange(table[:-3].float(), "(y x) heads -> heads y x", y=before[0])
        degree = {"spline": 3, "geometric": 1}[how.relative]
        rows, columns = (
            torch.from_numpy(_geometric(a, b, degree)).to(table.device) for a, b in zip(before, after, strict=True)
        )
        body = einsum(rows, columns, body, "v y, u x, heads y x -> heads v u")
    return torch.cat([rearrange(body, "heads v u -> (v u) heads").to(table.dtype), table[-3:]])


@kept(64)
def _geometric(old: int, new: int, degree: int) -> Float[np.ndarray, "new old"]:
    """The matrix that interpolates `new` evenly spaced values from `old` ones, both centred, the latter in geometric
    progression. Its ratio is found by bisection in [1.01, 1.5], as coarsely as upstream does, for equal results."""
    from scipy.interpolate import make_interp_spline

    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2:
            high = ratio
        else:
            low = ratio
    outwards = np.cumsum(ratio ** np.arange(old // 2))
    places = np.concatenate([-outwards[::-1], [0.0], outwards])
    wanted = np.clip(np.arange(new) - new // 2, places[0], places[-1])
    return make_interp_spline(places, np.eye(old), k=min(degree, old - 1))(wanted).astype(np.float32)


def resample_line(table: Float[Tensor, "M d"], side: int) -> Float[Tensor, "K d"]:
    """Resize a table of the 2n - 1 differences of rows, or columns, to those of `side` of them
    (facebookresearch/segment-anything, modeling/image_encoder.py)."""
    if len(table) == 2 * side - 1:
        return table
    line = F.interpolate(rearrange(table.float(), "m d -> 1 d m"), size=2 * side - 1, mode="linear")
    return rearrange(line, "1 d m -> m d").to(table.dtype)
