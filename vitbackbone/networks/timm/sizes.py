"""The image sizes that a timm network accepts.

Trial runs find them, on a copy of the network on the meta device, which computes only shapes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from vitbackbone.contract import numbers
from vitbackbone.networks.timm.levels import Levels, Size, grid_at, level_maps

Fits = Callable[[Size], bool]
Build = Callable[[Size], Any]  # returns the network that runs images of a size


@dataclass(frozen=True)
class Sizes:
    """The image sizes that a network accepts.

    These are `native` and every size whose sides are multiples of `multiple` and at least `smallest`. With `square`,
    both sides are equal.
    """

    multiple: int
    smallest: int = 1
    native: Size | None = None
    square: bool = False

    def padded(self, size: Size) -> Size:
        """Return the smallest accepted size that holds an image of `size`."""
        if not numbers(*size):
            return self._traced(size)
        if size == self.native:
            return size
        height, width = (max(-(-side // self.multiple) * self.multiple, self.smallest) for side in size)
        return (max(height, width),) * 2 if self.square else (height, width)

    def _traced(self, size: Size) -> Size:
        """Return `padded` for the symbolic sizes of a tracer, on which no branch of Python may depend."""
        if self.native is not None:
            raise ValueError(
                f"images of {self.native[0]} x {self.native[1]} run unpadded, and other sizes are padded to multiples "
                f"of {self.multiple}, so one graph cannot serve both. Export one height and width with any batch size"
            )
        height, width = (
            cast(int, torch.sym_max(((side - 1) // self.multiple + 1) * self.multiple, self.smallest)) for side in size
        )
        return height, width


def sizes_of(build: Build, native: Size, levels: Levels, least: int = 1) -> Sizes | None:
    """Return the sizes that a network accepts, or None if it accepts only `native`.

    `build`: returns the network for a size, on the meta device if it runs there.
    Only levels that lie on the grid of their stride at the native size count. A network that accepts no size with
    unequal sides may accept squares. `least`: the smallest multiple to try.
    """
    fits, stride = grids_fit(build, levels), max(levels.strides)
    return find_sizes(fits, native, stride, least) or find_sizes(fits, native, stride, least, square=True)


def find_sizes(fits: Fits, native: Size, stride: int, least: int = 1, square: bool = False) -> Sizes | None:
    """Return the sizes that fit, with the smallest possible multiple, or None if no multiple fits.

    `native`: the network's own size. `stride`: the largest stride of its levels. `least`: the smallest multiple to try.
    `square`: whether to try only squares.
    """
    for multiple in (each for each in _multiples(stride) if each >= least):
        samples = _samples(native, multiple, stride)
        if all(fits((height, height) if square else (height, width)) for height, width in samples):
            sides = _growing(multiple, max(native))
            smallest = next((side for side in sides if fits((side, side))), multiple)
            by_itself = any(side % multiple for side in native) and fits(native)
            return Sizes(multiple, smallest, native if by_itself else None, square)
    return None


def _multiples(stride: int) -> Iterator[int]:
    """Yield the candidates: the divisors of the stride, then its multiples for networks with windows."""
    yield from (divisor for divisor in range(1, stride) if stride % divisor == 0)
    yield from range(stride, 16 * stride + 1, stride)


def _samples(native: Size, multiple: int, stride: int) -> Iterator[Size]:
    """Yield sizes near the native one: one `multiple` above a multiple of the stride, one below, and some between."""
    period = max(stride // multiple, 8)
    height, width = (-(-side // (multiple * period)) * period for side in native)
    for more, wider in ((1, period - 1), (3, period // 2 + 1), (period + 2, 5)):
        yield (height + more) * multiple, (width + wider) * multiple


def _growing(multiple: int, native: int) -> Iterator[int]:
    """Yield sides from `multiple` to the native one, each twice the one before."""
    side = multiple
    while side < native:
        yield side
        side *= 2
    yield -(-native // multiple) * multiple


def grids_fit(build: Build, levels: Levels) -> Fits:
    """Return a test of image sizes: the network runs, and its maps have ceil(side / stride) patches along each axis."""

    def fits(size: Size) -> bool:
        try:
            maps = level_maps(build(size), size)
        except Exception:  # every network has its own error for a size that it does not accept
            return False
        return all(
            tuple(each.shape[2:]) == grid_at(size, stride)
            for each, stride, counts in zip(maps, levels.strides, levels.fitting, strict=False)
            if counts
        )

    return fits
