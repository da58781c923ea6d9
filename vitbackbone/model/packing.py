"""Images of different sizes as one row of tokens: linear layers, norms and MLPs run once over all of them, and
attention alone has to know where an image ends.

Images of one grid are a batch (B, N, D), a row each. Those of several grids share one row (1, T, D), in the order of
their grids, so that those of one grid lie side by side and are a batch again wherever that is wanted.

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
    """Which image is first in the row, which next, and so on: those of one grid side by side."""
    return sorted(range(len(grids)), key=grids.__getitem__)


@dataclass(frozen=True)
class Layout:
    """The images that each row of tokens holds, one after another. Each is its h*w patches, in raster order, behind its
    other tokens: CLS, registers and whatever else was put in front, of which all images have as many."""

    grids: tuple[Grid, ...]  # (h, w) of each

    @classmethod
    def of(cls, grids: Sequence[Grid]) -> "Layout":
        """The layout of a batch of images, in whatever order they came."""
        if isinstance(grids, Repeated):
            return cls((grids.value,))
        return cls((grids[0],) if one_value(grids) else tuple(grids[i] for i in packing_order(grids)))

    @property
    def groups(self) -> list[tuple[Grid, int]]:
        """Each grid with the number of its images, in the order of the row."""
        return [(grid, len(list(same))) for grid, same in groupby(self.grids)]

    def num_prefix(self, tokens: int) -> int:
        """How many tokens are in front of an image's patches, in a row of so many."""
        return (tokens - sum(h * w for h, w in self.grids)) // len(self.grids)

    def lengths(self, tokens: int, prefix: bool = False) -> list[int]:
        """How many tokens each image has, in a row of so many; with `prefix`, how many in front of its patches."""
        ahead = self.num_prefix(tokens)
        return [ahead if prefix else ahead + h * w for h, w in self.grids]

    def split(self, x: Float[Tensor, "B *heads T D"]) -> list[tuple[Grid, Float[Tensor, "M *heads N D"]]]:
        """The images of each grid as a batch of their own: views, in the order of the row."""
        if len(self.grids) == 1:
            return [(self.grids[0], x)]
        prefix, groups = self.num_prefix(x.shape[-2]), self.groups
        parts = x.split([count * (prefix + grid[0] * grid[1]) for grid, count in groups], dim=-2)
        apart = [part.unflatten(-2, (count, -1)).movedim(-3, 1) for part, (_, count) in zip(parts, groups, strict=True)]
        return [(grid, part.flatten(0, 1)) for part, (grid, _) in zip(apart, groups, strict=True)]

    def join(self, parts: Sequence[Float[Tensor, "_ _ D"]]) -> Float[Tensor, "B T D"]:
        """The rows of what became of the parts of `split`."""
        if len(self.grids) == 1:
            return parts[0]
        rows = [part.unflatten(0, (-1, n)).flatten(1, 2) for part, (_, n) in zip(parts, self.groups, strict=True)]
        return torch.cat(rows, dim=1)

    def prefix(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B P D"]:
        """The tokens in front of each image's patches, and no others."""
        count = self.num_prefix(x.shape[1])
        return self.join([part[:, :count] for _, part in self.split(x)])
