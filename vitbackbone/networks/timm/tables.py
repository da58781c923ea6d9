"""Position tables of timm's networks at other sizes, resized as timm resizes them when it loads weights.

Absolute positions are bicubic with antialiasing, and so are tables of absolute offsets (LeViT). Weights of a library
that resizes without antialiasing may keep its way. Biases by difference of positions follow BEiT's geometric
progression, linear between samples. Rows of relative positions (MViTv2, SAM, BoTNet) are linear. A table of blocks
(NesT) is bicubic without antialiasing.

Axes: `D` width, `h w` patch grid, `N` tokens, `L` rows of a table.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.model import Resampling, resample_relative

Size = tuple[int, int]  # (H, W)

GEOMETRIC = Resampling(relative="geometric")
MOST_PREFIX = 2  # tokens in front of the patches that a table of absolute positions may hold: CLS and distillation


class Target(NamedTuple):
    """The resizing of one table: its new shape, the image sizes before and after, and the modules that hold it."""

    shape: tuple[int, ...]  # shape of the result
    sizes: tuple[Size, Size]  # sizes of the images that the table and the result are for
    owners: tuple[Any, Any]  # the modules that hold the table, built for these sizes
    antialias: bool = True  # whether bicubic resizing is antialiased


Resize = Callable[[Tensor, Target], Tensor]


def table_rule(name: str) -> Resize | None:
    """Return the function that resizes the table of positions with this parameter name; None if it is no such table."""
    return next((rule for pattern, rule in RULES if re.fullmatch(pattern, name)), None)


def grid_of(count: int, size: Size) -> tuple[Size, float]:
    """Return the grid (h, w) of `count` patches whose aspect is closest to the image's, and how far it is."""
    aspect = math.log(size[0] / size[1])
    grids = [(h, count // h) for h in range(1, count + 1) if count % h == 0]
    away = {grid: abs(math.log(grid[0] / grid[1]) - aspect) for grid in grids}
    best = min(grids, key=away.__getitem__)
    return best, away[best]


def absolute(table: Tensor, target: Target) -> Tensor:
    """Resize absolute positions: tokens (N, D) or (1, N, D), maps (1, D, h, w) or (1, h, w, D), or blocks."""
    shape = target.shape
    if table.ndim == 2:
        return absolute(table[None], target._replace(shape=(1, *shape)))[0]
    if table.ndim == 3:
        return _tokens(table, target)
    if hasattr(target.owners[1], "block_size"):
        return _blocks(table, shape)
    first, last = table.shape[1] == shape[1], table.shape[3] == shape[3]
    if last and (not first or shape[3] > shape[1]):
        return bicubic(table.movedim(3, 1), (shape[1], shape[2]), target.antialias).movedim(1, 3)
    return bicubic(table, (shape[2], shape[3]), target.antialias)


def bicubic(table: Float[Tensor, "1 D h w"], grid: Size, antialias: bool = True) -> Float[Tensor, "1 D h2 w2"]:
    """Resize a map in float32."""
    return F.interpolate(table.float(), grid, mode="bicubic", antialias=antialias).to(table.dtype)


def _tokens(table: Float[Tensor, "1 N D"], target: Target) -> Float[Tensor, "1 M D"]:
    """Resize the patches' part of a table of tokens. The grids of the images tell how many tokens precede it."""
    count, sizes = target.shape[1], target.sizes

    def away(prefix: int) -> float:
        return sum(grid_of(n - prefix, size)[1] for n, size in zip((table.shape[1], count), sizes, strict=True))

    prefix = min((p for p in range(MOST_PREFIX + 1) if p < min(count, table.shape[1])), key=away)
    old, new = (grid_of(n - prefix, size)[0] for n, size in zip((table.shape[1], count), sizes, strict=True))
    patches = rearrange(table[:, prefix:], "1 (h w) D -> 1 D h w", h=old[0])
    resized = bicubic(patches, new, target.antialias)
    return torch.cat([table[:, :prefix], rearrange(resized, "1 D h w -> 1 (h w) D")], dim=1)


def _blocks(table: Float[Tensor, "1 T N D"], shape: tuple[int, ...]) -> Float[Tensor, "1 U M D"]:
    """Resize the positions of a square map that is cut into square blocks (timm/models/nest.py, `resize_pos_embed`)."""
    rows, side = math.isqrt(table.shape[1]), math.isqrt(table.shape[2])
    new_rows, new_side = math.isqrt(shape[1]), math.isqrt(shape[2])
    whole = rearrange(table, "1 (i j) (p q) D -> 1 D (i p) (j q)", i=rows, p=side)
    resized = bicubic(whole, (new_rows * new_side, new_rows * new_side), antialias=False)
    return rearrange(resized, "1 D (i p) (j q) -> 1 (i j) (p q) D", i=new_rows, j=new_rows)


def relative_bias(table: Tensor, target: Target) -> Tensor:
    """Resize biases by difference of positions: rows (L, heads), perhaps with more for CLS, or (heads, rows, columns).

    Source: microsoft/unilm, beit/run_class_finetuning.py, without its spline.
    """
    old, new = (owner.window_size for owner in target.owners)
    if table.ndim == 3:
        rows = relative_bias(rearrange(table, "heads h w -> (h w) heads"), target)
        return rearrange(rows, "(h w) heads -> heads h w", h=2 * new[0] - 1)
    extra = table.shape[0] - (2 * old[0] - 1) * (2 * old[1] - 1)
    if extra:
        return resample_relative(table, old, new, GEOMETRIC)
    none = table.new_zeros(3, table.shape[1])  # in place of the rows that BEiT has for CLS
    return resample_relative(torch.cat([table, none]), old, new, GEOMETRIC)[:-3]


def rows(table: Float[Tensor, "L D"], target: Target) -> Float[Tensor, "M D"]:
    """Resize rows of relative positions along one axis, linearly (timm/models/mvitv2.py, `checkpoint_filter_fn`)."""
    return F.interpolate(table.float().T[None], target.shape[0], mode="linear")[0].T.to(table.dtype)


def offsets(table: Float[Tensor, "heads N"], target: Target) -> Float[Tensor, "heads M"]:
    """Resize biases by absolute offset of rows and columns (timm/layers, `resize_rel_pos_bias_table_levit`)."""
    old, new = (_sides(getattr(owner, "resolution", math.isqrt(table.shape[1]))) for owner in target.owners)
    return bicubic(table.unflatten(1, old)[None], new)[0].flatten(1)


def _sides(resolution: int | tuple[int, int]) -> Size:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


RULES: tuple[tuple[str, Resize], ...] = (
    (r"relative_position_bias_table", relative_bias),
    (r"rel_pos_[hw]|(height|width)_rel", rows),
    (r"attention_biases", offsets),
    (r"pos_embed(_?\d+)?|patch_pos", absolute),
)
