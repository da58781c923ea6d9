"""Resampling of tables of positions to another patch grid, by the policy of each checkpoint.

Axes: `D` width, `h w` patch grid, `N` patches.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import copied, numbers
from vitbackbone.model.config import Mode, Resampling
from vitbackbone.model.positions.caching import cached


def resample(
    table: Float[Tensor, "M D"], old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Float[Tensor, "N D"]:
    """Resize a table (h*w, D) from patch grid `old` to `new`, in float32, by the checkpoint's own policy.

    Grids are compared as (h, w): 14 x 14 and 7 x 28 have the same number of patches, but are different grids.
    Raises `ValueError` if the policy reads the table as a square grid, and the number of patches is not a square.
    """
    if how.as_square == "always":
        old = square(old)
    if numbers(*new) and old == new and how.fit != "buckets":  # rounding moves a few rows to another bucket
        return table
    read_as = square(old) if how.as_square == "elsewhere" else old
    result = resize_table(table.float(), read_as, new, how)
    if not numbers(*new) and (how.offset or read_as != old):  # the graph decides whether the size is native
        native = as_tensor(new[0], table.device).eq(old[0]) & as_tensor(new[1], table.device).eq(old[1])
        result = torch.where(native, resize_table(table.float(), old, new, replace(how, offset=0.0)), result)
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


def resize_table(
    table: Float[Tensor, "M D"], old: tuple[int, int], new: tuple[int, int], how: Resampling
) -> Float[Tensor, "N D"]:
    """Resize a table by torch's interpolation, or in a graph by matrices, which serve any size and need no `Resize`."""
    if traced(*new) or how.fit in PICKED:
        return resize_by_matrices(table, *resampling_matrices(old, new, how, table.device))
    # The image has channels-last strides: in another layout, torch's antialiased bicubic loses the rows of an image
    # that becomes one column wide.
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


def traced(*sizes: int) -> bool:
    """Return whether a tracer follows, so that a size may be a symbol."""
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
    return max(grid) if numbers(*grid) else torch.maximum(as_tensor(grid[0], device), as_tensor(grid[1], device))


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
    fractions = (places * (1.0 / as_tensor(new, device))).clamp(max=1.0 - 1e-6)
    picked = (fractions[:, None] >= bounds).sum(dim=1)
    return (picked[:, None] == samples).float()


# Fits that take the table's own values
PICKED: dict[str, Callable[[int, int, torch.device], Tensor]] = {"tile": _tiled, "buckets": _buckets}


def resize_by_matrices(
    table: Float[Tensor, "M D"], rows: Float[Tensor, "h y"], columns: Float[Tensor, "w x"]
) -> Float[Tensor, "N D"]:
    """Resize a table of y * x positions to h * w by a matrix for each axis.

    It uses only products of two matrices, because tracers specialise other products on sides of size 1.
    """
    (h, y), (w, x), d = rows.shape, columns.shape, table.shape[1]
    wide = copied((rows @ table.reshape(y, x * d)).view(h, x, d).transpose(0, 1))
    image = copied((columns @ wide.view(x, h * d)).view(w, h, d).transpose(0, 1))
    return image.view(h * w, d)


def as_tensor(side: int, device: torch.device) -> Float[Tensor, ""]:
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


@cached(64)
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
    count = span if isinstance(span, Tensor) else as_tensor(new if span is None else span, device)
    places, samples = (torch.arange(n, dtype=torch.float32, device=device) for n in (new, old))
    known = as_tensor(old, device)
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
