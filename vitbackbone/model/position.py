"""Positions as pure functions: fixed sinusoids, rotary tables, relative indices, and resampling to another grid.

Axes: `D` width, `d` width of a head, `h w` patch grid, `N` patches.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import copied, numbers
from vitbackbone.model.config import Mode, Resampling, Rotary
from vitbackbone.model.golden import golden_table
from vitbackbone.model.packing import Layout


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


# ---- caching ------------------------------------------------------------------------------------------------------

P = ParamSpec("P")
R = TypeVar("R")


def kept(count: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Cache the latest `count` results of a function whose arguments are plain values.

    Nothing is cached while a graph is traced, and neither are stand-ins for tensors, such as fake tensors.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        results: dict[object, R] = {}

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            result = results.get(args)
            if result is None:
                with torch.inference_mode(False), torch.no_grad():  # autograd cannot use inference tensors later
                    result = function(*args, **kwargs)
                if type(result) in (Tensor, np.ndarray):
                    while len(results) >= count:
                        results.pop(next(iter(results)), None)  # another thread may have taken it
                    results[args] = result
            return result

        return call

    return decorate


@kept(32)
def computed2d(grid: tuple[int, int], dim: int, device: torch.device) -> Float[Tensor, "N D"]:
    """Return the table of `sincos2d` for a grid whose sides a tracer may leave open, (h*w, D)."""
    (h, w), parts = grid, []
    for side in (w, h):
        parts.append(sincos(torch.arange(side, device=device), dim // 2))
    columns, rows = parts
    both = [columns[None].expand(h, w, dim // 2), rows[:, None].expand(h, w, dim // 2)]
    return torch.cat(both, dim=2).view(h * w, dim)


# ---- tables of positions ------------------------------------------------------------------------------------------


def resample(
    table: Float[Tensor, "M D"], old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Float[Tensor, "N D"]:
    """Resize a table (h*w, D) from patch grid `old` to `new`, in float32, by the checkpoint's own policy.

    Grids are compared as (h, w): 14 x 14 and 7 x 28 have the same number of patches, but are different grids.
    Raises `ValueError` if the policy reads the table as a square grid, and the number of patches is no square.
    """
    if how.as_square == "always":
        old = square(old)
    if numbers(*new) and old == new and how.fit != "buckets":  # rounding moves a few rows to another bucket
        return table
    read_as = square(old) if how.as_square == "elsewhere" else old
    result = _resized(table.float(), read_as, new, how)
    if not numbers(*new) and (how.offset or read_as != old):  # the graph decides whether the size is native
        native = _count(new[0], table.device).eq(old[0]) & _count(new[1], table.device).eq(old[1])
        result = torch.where(native, _resized(table.float(), old, new, replace(how, offset=0.0)), result)
    return result.to(table.dtype)


def square(grid: tuple[int, int]) -> tuple[int, int]:
    """Return the square grid with the same number of patches. Raises `ValueError` if there is none."""
    side = math.isqrt(grid[0] * grid[1])
    if side**2 != grid[0] * grid[1]:
        raise ValueError(
            f"the positions are for {grid[0]} x {grid[1]} patches, and transformers resizes them only if their number "
            f"is a square. Use images of {grid[0]} x {grid[1]} patches, or load the backbone with positions='timm'"
        )
    return side, side


def _resized(
    table: Float[Tensor, "M D"], old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Float[Tensor, "N D"]:
    """Resize a table by torch's interpolation, or in a graph by matrices, which serve any size and need no `Resize`."""
    if _traced(*new) or how.fit in PICKED:
        return _multiplied(table, *resampling_matrices(old, new, how, table.device))
    # Channels last, with the strides that say so: of an image in another layout, torch's antialiased bicubic loses the
    # rows if it makes it one column wide.
    image = table.contiguous().view(1, *old, -1).permute(0, 3, 1, 2)
    if how.offset:
        factor = [(n + how.offset) / m for n, m in zip(new, old, strict=True)]
        image = F.interpolate(image, scale_factor=factor, mode=how.mode, align_corners=False)
        if tuple(image.shape[-2:]) != new:
            raise RuntimeError(f"resampling {old} to {new} with offset {how.offset} gave {tuple(image.shape[-2:])}")
    else:
        size = (max(new),) * 2 if how.fit == "square" else new
        image = F.interpolate(
            image, size=size, mode=how.mode, align_corners=how.align_corners, antialias=how.antialias
        )[:, :, : new[0], : new[1]]
    return rearrange(image, "1 d h w -> (h w) d")


def _traced(*sizes: int) -> bool:
    """Whether a tracer follows, so that a size may be a symbol."""
    return torch.compiler.is_compiling() or not numbers(*sizes)


def resampling_matrices(
    old: tuple[int, int], new: tuple[int, int], how: Resampling, device: torch.device
) -> tuple[Float[Tensor, "h y"], Float[Tensor, "w x"]]:
    """Return the matrices that resize the rows and the columns of a table, equal to torch's interpolation."""
    if how.fit in PICKED:
        rows, columns = (PICKED[how.fit](m, n, device) for m, n in zip(old, new, strict=True))
    else:
        longer = _longer(new, device) if how.fit == "square" else None
        rows, columns = (
            resampling_matrix(m, n, how.mode, how.antialias, how.offset, device, how.align_corners, longer)
            for m, n in zip(old, new, strict=True)
        )
    return rows, columns


def _longer(grid: tuple[int, int], device: torch.device) -> int | Float[Tensor, ""]:
    """Return the longer side of a grid, as a tensor if it is a symbol."""
    return max(grid) if numbers(*grid) else torch.maximum(_count(grid[0], device), _count(grid[1], device))


def _tiled(old: int, new: int, device: torch.device) -> Float[Tensor, "new old"]:
    """Return the matrix that repeats `old` samples."""
    places, samples = (torch.arange(n, device=device) for n in (new, old))
    return (places[:, None] % old == samples).float()


def _buckets(old: int, new: int, device: torch.device) -> Float[Tensor, "new old"]:
    """Return the matrix that picks one of `old` samples for each of `new` places, by the fraction of the side.

    The fractions and the bounds of the buckets are rounded to float32 as in transformers (modeling_idefics2.py),
    because a fraction may lie on a bound.
    """
    bounds = torch.arange(1 / old, 1.0, 1 / old, dtype=torch.float32, device=device)
    places, samples = torch.arange(new, dtype=torch.float32, device=device), torch.arange(old, device=device)
    fractions = (places * (1.0 / _count(new, device))).clamp(max=1.0 - 1e-6)
    picked = (fractions[:, None] >= bounds).sum(dim=1)
    return (picked[:, None] == samples).float()


# Fits that take the table's own values
PICKED: dict[str, Callable[[int, int, torch.device], Tensor]] = {"tile": _tiled, "buckets": _buckets}


def _multiplied(
    table: Float[Tensor, "M D"], rows: Float[Tensor, "h y"], columns: Float[Tensor, "w x"]
) -> Float[Tensor, "N D"]:
    """Resize a table of y * x positions to h * w by a matrix for each axis.

    It uses only products of two matrices, because tracers specialise other products on sides of size 1.
    """
    (h, y), (w, x), d = rows.shape, columns.shape, table.shape[1]
    wide = copied((rows @ table.reshape(y, x * d)).view(h, x, d).transpose(0, 1))
    image = copied((columns @ wide.view(x, h * d)).view(w, h, d).transpose(0, 1))
    return image.view(h * w, d)


def _count(side: int, device: torch.device) -> Float[Tensor, ""]:
    """Return a side as a tensor, because exporters do not divide by a symbol."""
    return torch.full((), float(side), device=device) if numbers(side) else torch.ones(side, device=device).sum()


def _cubic(x: Float[Tensor, "*shape"], a: float) -> Float[Tensor, "*shape"]:
    """Return the cubic weight of a sample at distance x (Keys 1981, "Cubic convolution interpolation")."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _hat(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return (1 - x.abs()).clamp(min=0)


@kept(64)
def resampling_matrix(
    old: int,
    new: int,
    mode: Mode,
    antialias: bool,
    offset: float,
    device: torch.device,
    align_corners: bool = False,
    span: int | Tensor | None = None,
) -> Float[Tensor, "new old"]:
    """Return the matrix that resizes `old` samples to `new`, as `F.interpolate` does.

    Each row holds the weights of all samples for one position. The matrix is built from plain arithmetic, which every
    exporter supports. torch's antialiased resize is missing or wrong in several runtimes.
    `span`: resize to this many positions, and keep the first `new` of them. None stands for `new`.
    """
    count = span if isinstance(span, Tensor) else _count(new if span is None else span, device)
    places, samples = (torch.arange(n, dtype=torch.float32, device=device) for n in (new, old))
    known = _count(old, device)
    scale = (known - 1) / (count - 1).clamp(min=1) if align_corners else known / (count + offset)
    if antialias:
        distance = (samples + 0.5 - (places[:, None] + 0.5) * scale) / scale.clamp(min=1)
        weights = _cubic(distance, -0.5) if mode == "bicubic" else _hat(distance)
        return weights / weights.sum(dim=1, keepdim=True)
    centres = places * scale if align_corners else (places + 0.5) * scale - 0.5
    centres = centres if mode == "bicubic" else centres.clamp(min=0)
    first = centres.floor()
    matrix = torch.zeros((), device=device)
    for step in (-1, 0, 1, 2) if mode == "bicubic" else (0, 1):
        tap = first + step
        weight = _cubic(centres - tap, -0.75) if mode == "bicubic" else _hat(centres - tap)
        matrix = matrix + torch.where(tap.clamp(0, old - 1)[:, None] == samples, weight[:, None], 0.0)
    return matrix


# ---- rotary -------------------------------------------------------------------------------------------------------


@kept(32)  # a batch of `extract` has at most this many grids
def rotary_table(
    rotary: Rotary, dim: int, grid: tuple[int, int], device: torch.device, steps: int = 1
) -> Float[Tensor, "2 *heads N d"]:
    """Return cosines and sines of the rotation angles of each patch, for heads of width `dim`, in float32.

    They have an axis of heads if each head has its own. `steps`: of time in a clip, whose patches come step by step.
    """
    if rotary.heads:
        return golden_table(rotary, dim, grid, [_count(side, device) for side in grid])
    pairs = dim // (6 if rotary.time else 4)  # of channels, for each axis
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
    counts = [_count(side, device) for side in grid]
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

    For a row of one image, it is the table of the patches. For several images, it is their tables in order, each behind
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


@kept(2)
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


# ---- relative -----------------------------------------------------------------------------------------------------


@kept(2)  # each has N² numbers
def relative_index(grid: tuple[int, int], device: torch.device) -> Int[Tensor, "T T"]:
    """Return the row of BEiT's bias table for each pair of the T = 1 + h*w tokens.

    The table has one row for each difference of positions, and then three rows: CLS to a patch, a patch to CLS, and CLS
    to itself (microsoft/unilm, beit/modeling_finetune.py).
    """
    h, w = grid
    y, x = (copied(axis).view(h * w) for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    patches = ((y[:, None] - y + h - 1) * (2 * w - 1) + x[:, None] - x + w - 1).int()
    differences = (2 * h - 1) * (2 * w - 1)
    to_cls, from_cls = torch.ones_like(patches[:, :1]), torch.ones_like(patches[:1])
    with_cls = torch.cat([to_cls * (differences + 1), patches], dim=1)
    first = torch.cat([from_cls[:, :1] * (differences + 2), from_cls * differences], dim=1)
    return torch.cat([first, with_cls]).to(device)


def resample_relative(
    table: Float[Tensor, "M heads"], old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Float[Tensor, "K heads"]:
    """Resize the rows of BEiT's bias table for differences of positions, from patch grid `old` to `new`.

    `how.relative`: `"spline"` is the authors' policy, a cubic spline over samples whose spacing grows outwards in
    geometric progression (microsoft/unilm, beit/run_class_finetuning.py). `"geometric"` is timm's, which is linear
    between the same samples. `"bilinear"` is transformers', over evenly spaced samples.
    """
    if numbers(*new) and old == new and (how.relative != "bilinear" or old[0] == old[1]):
        return table
    before, after = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new))
    if how.relative == "bilinear":  # transformers swaps rows and columns, which matters if the grid is no square
        body = _resized(table[:-3].float(), before[::-1], after, Resampling("bilinear", antialias=False))
    elif not numbers(*new):
        raise ValueError(
            f"relative positions with the resampling policy {how.relative!r} cannot be traced with a dynamic height or "
            "width, because a spline is solved for each size. Export one height and width; the batch may be dynamic"
        )
    else:
        degree = {"spline": 3, "geometric": 1}[how.relative]
        rows, columns = (
            torch.from_numpy(_geometric(a, b, degree)).to(table.device) for a, b in zip(before, after, strict=True)
        )
        body = _multiplied(table[:-3].float(), rows, columns)
    return torch.cat([body.to(table.dtype), table[-3:]])


@kept(64)
def _geometric(old: int, new: int, degree: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix that interpolates `new` evenly spaced values from `old` values in geometric progression.

    Both are centred. Bisection in [1.01, 1.5] finds the ratio to 1e-6, as upstream does, for equal results.
    """
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
    """Resize a table of the 2n - 1 differences of n rows or columns to the differences of `side` rows or columns.

    facebookresearch/segment-anything, modeling/image_encoder.py.
    """
    if numbers(side) and len(table) == 2 * side - 1:
        return table
    if _traced(side):
        matrix = resampling_matrix(len(table), 2 * side - 1, "bilinear", False, 0.0, table.device)
        return (matrix @ table.float()).to(table.dtype)
    line = F.interpolate(rearrange(table.float(), "m d -> 1 d m"), size=2 * side - 1, mode="linear")
    return rearrange(line, "1 d m -> m d").to(table.dtype)
