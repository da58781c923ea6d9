"""Relative positions: BEiT's table of biases and SAM's lines, with their resampling to another patch grid.

Axes: `h w` patch grid, `T` tokens.
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import copied, numbers
from vitbackbone.model.config import Resampling
from vitbackbone.model.positions.caching import cached
from vitbackbone.model.positions.resampling import resampling_matrix, resize_by_matrices, resize_table, traced


@cached(2)  # each has N² numbers
def relative_index(grid: tuple[int, int], device: torch.device) -> Int[Tensor, "T T"]:
    """Return the row of BEiT's bias table for each pair of the T = 1 + h*w tokens.

    The table has one row for each difference of positions. Three more rows follow: CLS to a patch, a patch to CLS, and
    CLS to itself (microsoft/unilm, beit/modeling_finetune.py).
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
    if how.relative == "bilinear":  # transformers swaps rows and columns, which matters if the grid is not a square
        body = resize_table(table[:-3].float(), before[::-1], after, Resampling("bilinear", antialias=False))
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
        body = resize_by_matrices(table[:-3].float(), rows, columns)
    return torch.cat([body.to(table.dtype), table[-3:]])


@cached(64)
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
    if traced(side):
        matrix = resampling_matrix(len(table), 2 * side - 1, "bilinear", False, 0.0, table.device)
        return (matrix @ table.float()).to(table.dtype)
    line = F.interpolate(rearrange(table.float(), "m d -> 1 d m"), size=2 * side - 1, mode="linear")
    return rearrange(line, "1 d m -> m d").to(table.dtype)
