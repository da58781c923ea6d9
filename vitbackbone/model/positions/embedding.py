"""The positions that are added to patches: tables that are learned or fixed, and positions that are computed.

Axes: `N` patches, `D` width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitbackbone.contract import numbers
from vitbackbone.model.config import Resampling, ViTConfig
from vitbackbone.model.positions.ground import ground2d
from vitbackbone.model.positions.resampling import resample
from vitbackbone.model.positions.sincos import computed2d, sincos, sincos1d, sincos2d

GRIDS = 32  # number of grids whose positions are kept: a batch of `extract` has at most this many


class PositionEmbedding(nn.Module):
    """The position vectors of the patches, learned or fixed, resampled to the requested grid.

    The CLS token has none: when weights are loaded, its position is added to the token itself.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.grid, self.steps = config.table_grid, config.position_steps
        self.resampling: Resampling = config.resampling
        shape = (self.steps * self.grid[0] * self.grid[1], config.dim)
        if config.position == "learned":
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
        else:
            fixed = {"sincos1d": sincos1d, "sincos2d": sincos2d}[config.position]
            self.table = nn.Parameter(fixed(self.grid, config.dim), requires_grad=False)
        self.tables: dict[object, Tensor] | None = None

    def keep(self) -> None:
        """Cache the tables of the latest grids, for weights that do not change.

        In-place changes invalidate the cache; edits through `.data` do not.
        """
        self.tables = {}

    def forward(self, grid: tuple[int, int], like: Tensor | None = None, steps: int = 1) -> Float[Tensor, "N D"]:
        """Return the positions of a grid, like the table on its device and in its precision.

        `steps`: the number of time steps. Every step has the same positions, unless the table has positions for each
        step. Raises `ValueError` if the table is for another number of steps.
        """
        if self.steps not in (1, steps):
            raise ValueError(f"the positions are for {self.steps} steps of the map, and these images have {steps}")
        table = self._kept(grid)
        return table.repeat(steps, 1) if steps > self.steps else table

    def _kept(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        if self.tables is None or torch.compiler.is_compiling():
            return self.at(grid)
        version = 0 if self.table.is_inference() else self.table._version
        key = (grid, version, self.table.device, self.table.dtype)
        table = self.tables.get(key)
        if table is None:
            with torch.inference_mode(False), torch.no_grad():
                table = self.at(grid)
            while len(self.tables) >= GRIDS:
                self.tables.pop(next(iter(self.tables)), None)  # another thread may have taken it
            self.tables[key] = table
        return table

    def at(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        """Make the positions of a grid from the table."""
        if self.steps == 1:
            return resample(self.table, self.grid, grid, self.resampling)
        return torch.cat([resample(step, self.grid, grid, self.resampling) for step in self.table.chunk(self.steps)])


class AxisEmbedding(PositionEmbedding):
    """A learned vector for each row and for each column, whose sum is a patch's position (Gemma 4).

    Raises `ValueError` on a grid with more rows or columns than there are vectors.
    """

    def __init__(self, config: ViTConfig) -> None:
        nn.Module.__init__(self)
        shape = (2, config.axis_positions, config.dim)  # columns, then rows
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
        self.tables, self.steps = None, 1

    def at(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        """Add the vectors of the rows to the vectors of the columns."""
        (h, w), most = grid, self.table.shape[1]
        if numbers(h, w) and max(grid) > most:
            raise ValueError(f"images have {h} x {w} patches; want at most {most} a side, so resize the images")
        # Tracers know the size of what an index takes, but not the size of a slice.
        places = (torch.arange(n, device=self.table.device) for n in (w, h))
        columns, rows = (axis[index] for axis, index in zip(self.table, places, strict=True))
        return (rows[:, None] + columns[None]).view(h * w, self.table.shape[2])


class ComputedPositions(nn.Module):
    """Sines and cosines of a patch's column and row, computed for each grid instead of resampled (AIMv2)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dim = config.dim

    def keep(self) -> None:
        """Do nothing: the tables of the latest grids are always cached."""

    def forward(self, grid: tuple[int, int], like: Tensor | None = None, steps: int = 1) -> Float[Tensor, "N D"]:
        """Return the positions of a grid, on the device and in the precision of `like`; default: float32 on the CPU."""
        table = self.at(grid, torch.device("cpu") if like is None else like.device, steps)
        return table if like is None else table.type_as(like)

    def at(self, grid: tuple[int, int], device: torch.device, steps: int) -> Float[Tensor, "N D"]:
        """Compute the positions of a grid, the same at every step."""
        table = computed2d(grid, self.dim, device)
        return table.repeat(steps, 1) if steps > 1 else table


class GroundPositions(ComputedPositions):
    """Sines and cosines of metres on the ground (Clay)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.metres = config.metres

    def at(self, grid: tuple[int, int], device: torch.device, steps: int) -> Float[Tensor, "N D"]:
        """Compute the positions of a grid."""
        return ground2d(grid, self.dim, self.metres, device)


class ClipPositions(ComputedPositions):
    """Sines and cosines of a patch's column, row and step of time (Jakubik et al. 2023, Prithvi).

    Columns and rows have a table at the native grid, which is resampled to other grids. Time has no table: its
    positions are computed for any number of steps.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.grid, self.resampling = config.table_grid, config.resampling

    def at(self, grid: tuple[int, int], device: torch.device, steps: int) -> Float[Tensor, "N D"]:
        """Compute the positions of the patches of all steps, step by step."""
        space = resample(sincos2d(self.grid, self.dim // 16 * 12).to(device), self.grid, grid, self.resampling)
        time = sincos(torch.arange(steps, device=device), self.dim // 16 * 4)
        h, w = grid
        both = [space[None].expand(steps, h * w, -1), time[:, None].expand(steps, h * w, -1)]
        return torch.cat(both, dim=2).flatten(0, 1)


def position_embedding(config: ViTConfig) -> PositionEmbedding | ComputedPositions | None:
    """Build the positions of a configuration; None if it has none."""
    if config.position == "none":
        return None
    if config.position == "clips":
        return ClipPositions(config)
    if config.position in ("computed2d", "ground"):
        return GroundPositions(config) if config.position == "ground" else ComputedPositions(config)
    return AxisEmbedding(config) if config.position == "axes" else PositionEmbedding(config)
