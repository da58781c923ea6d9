"""The image sizes that a timm network accepts, and the width of its pooled vector.

Trial runs find both, on a copy of the network on the meta device, which computes shapes alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from vitbackbone.contract import numbers

Size = tuple[int, int]  # (H, W)
Fits = Callable[[Size], bool]


@dataclass(frozen=True)
class Sizes:
    """The image sizes that a network accepts.

    These are `native` and every size whose sides are multiples of `multiple` and at least `smallest`.
    """

    multiple: int
    smallest: int = 1
    native: Size | None = None

    def padded(self, size: Size) -> Size:
        """Return the smallest accepted size that holds an image of `size`."""
        if not numbers(*size):
            return self._traced(size)
        if size == self.native:
            return size
        height, width = (max(-(-side // self.multiple) * self.multiple, self.smallest) for side in size)
        return height, width

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


def sizes_of(model: Any, name: str, native: Size, any_size: bool) -> Sizes | None:
    """Return the sizes that a network accepts, or None if it accepts only `native`.

    If no size fits all levels, the sizes that fit the last level count.
    `model`: the network, on the meta device if it runs there.
    `any_size`: whether to try other sizes than `native`.
    Raises `ValueError` if not even `native` fits the last level.
    """
    for last_alone in (False, True):
        fits = grids_fit(model, last_alone)
        sizes = find_sizes(fits, native, max(_strides(model))) if any_size else None
        if sizes is not None or fits(native):
            return sizes
    h, w = level_maps(model, native)[-1].shape[2:]
    height, width = (-(-side // _strides(model)[-1]) for side in native)
    raise ValueError(
        f"timm's {name} is not supported: for images of {native[0]} x {native[1]} its last map is {h} x {w}, not "
        f"{height} x {width}, because its layers crop the border of the image. Use a network whose layers pad"
    )


def find_sizes(fits: Fits, native: Size, stride: int) -> Sizes | None:
    """Return the sizes that fit, with the smallest possible multiple, or None if no multiple fits.

    `native`: the network's own size. `stride`: the largest stride of its levels.
    """
    for multiple in _multiples(stride):
        if all(fits(size) for size in _samples(native, multiple, stride)):
            sides = _growing(multiple, max(native))
            smallest = next((side for side in sides if fits((side, side))), multiple)
            by_itself = any(side % multiple for side in native) and fits(native)
            return Sizes(multiple, smallest, native if by_itself else None)
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


def grids_fit(model: Any, last_alone: bool) -> Fits:
    """Return a test of image sizes: the network runs, and its maps have ceil(side / stride) patches along each axis.

    `last_alone`: test only the map of the last level.
    """

    def fits(size: Size) -> bool:
        try:
            maps = level_maps(model, size)
        except Exception:  # every network has its own error for a size that it does not accept
            return False
        pairs = list(zip(maps, _strides(model), strict=True))
        return all(
            tuple(each.shape[2:]) == (-(-size[0] // stride), -(-size[1] // stride))
            for each, stride in pairs[-1 if last_alone else 0 :]
        )

    return fits


def _strides(model: Any) -> list[int]:
    return [int(level["reduction"]) for level in model.feature_info]


def level_maps(model: Any, size: Size) -> list[Tensor]:
    """Return the map of each level, (1, D, h, w), for one image of `size`."""
    parameter = next(model.parameters())
    with torch.no_grad():
        return model.forward_intermediates(parameter.new_zeros(1, 3, *size), intermediates_only=True)


def pooled_width(model: Any, size: Size) -> int | None:
    """Return the width of the vector that timm's classifier reads, or None if the network has no head that pools."""
    parameter = next(model.parameters())
    with torch.no_grad():
        final = model.forward_features(parameter.new_zeros(1, 3, *size))
        try:
            pooled = model.forward_head(final, pre_logits=True)
        except NotImplementedError:  # an encoder alone
            return None
    return pooled.shape[1] if isinstance(pooled, Tensor) and pooled.ndim == 2 else None
