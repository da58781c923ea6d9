"""Packing of images of different sizes into one row of tokens.

Linear layers, norms and MLPs run once over the row. Only attention needs to know where an image ends.

Images with equal grids form a batch (B, N, D), with one image a row. Images with different grids share one row
(1, T, D), sorted by grid. Images with equal grids then lie side by side, and can be viewed as a batch again.

Axes: `B` rows, `T` tokens of a row, `N` tokens of an image, `D` width, `h w` patch grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from vitbackbone.contract import Repeated, one_value

Grid = tuple[int, int]


def packing_order(grids: Sequence[Grid]) -> list[int]:
    """Return the indices of the images in the order of the row, sorted by grid."""
    return sorted(range(len(grids)), key=grids.__getitem__)


@dataclass(frozen=True)
class Layout:
    """The images of each row of tokens.

    An image is its prefix tokens and then its h*w patches in raster order. Prefix tokens are CLS, registers and any
    tokens added in front. Every image has the same number of prefix tokens. A clip is an image of several steps of
    time, each with h*w patches.
    """

    grids: tuple[Grid, ...]  # (h, w) of each image of a row
    steps: int = 1  # of time in each

    @classmethod
    def of(cls, grids: Sequence[Grid], steps: int | None = None) -> "Layout":
        """Return the layout of a batch of images, given their grids in any order, or of clips of `steps` steps."""
        if isinstance(grids, Repeated):
            return cls((grids.value,), steps or 1)
        each = (grids[0],) if one_value(grids) else tuple(grids[i] for i in packing_order(grids))
        return cls(each, steps or 1)

    @property
    def groups(self) -> list[tuple[Grid, int]]:
        """Each distinct grid with its number of images, in the order of the row."""
        return [(grid, len(list(same))) for grid, same in groupby(self.grids)]

    def num_prefix(self, tokens: int) -> int:
        """Return the number of prefix tokens of an image, in a row of `tokens` tokens."""
        return (tokens - sum(self.steps * h * w for h, w in self.grids)) // len(self.grids)

    def lengths(self, tokens: int, prefix: bool = False) -> list[int]:
        """Return the number of tokens of each image in a row of `tokens`. `prefix`: count only prefix tokens."""
        ahead = self.num_prefix(tokens)
        return [ahead if prefix else ahead + self.steps * h * w for h, w in self.grids]

    def split(self, x: Float[Tensor, "B *heads T D"]) -> list[tuple[Grid, Float[Tensor, "M *heads N D"]]]:
        """Return each grid with the batch of its images, as views in the order of the row."""
        if len(self.grids) == 1:
            return [(self.grids[0], x)]
        prefix, groups = self.num_prefix(x.shape[-2]), self.groups
        parts = x.split([count * (prefix + self.steps * h * w) for (h, w), count in groups], dim=-2)
        apart = [part.unflatten(-2, (count, -1)).movedim(-3, 1) for part, (_, count) in zip(parts, groups, strict=True)]
        return [(grid, part.flatten(0, 1)) for part, (grid, _) in zip(apart, groups, strict=True)]

    def join(self, parts: Sequence[Float[Tensor, "_ _ D"]]) -> Float[Tensor, "B T D"]:
        """Concatenate batches in the order of `split` into rows."""
        if len(self.grids) == 1:
            return parts[0]
        rows = [part.unflatten(0, (-1, n)).flatten(1, 2) for part, (_, n) in zip(parts, self.groups, strict=True)]
        return torch.cat(rows, dim=1)

    def prefix(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B P D"]:
        """Return only the prefix tokens of each image."""
        count = self.num_prefix(x.shape[1])
        return self.join([part[:, :count] for _, part in self.split(x)])
