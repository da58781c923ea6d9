"""The image sizes that a network of timm takes, and the width of its pooled vector. Trial runs find them, on a copy of
the network on the meta device, which computes shapes alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]  # (H, W)
Fits = Callable[[Size], bool]


@dataclass(frozen=True)
class Sizes:
    """The image sizes that a network takes: `native`, and all whose sides are multiples of `multiple` and at least
    `smallest`."""

    multiple: int
    smallest: int = 1
    native: Size | None = None

    def padded(self, size: Size) -> Size:
        """Return the smallest such size that holds an image of `size`."""
        if size == self.native:
            return size
        height, width = (max(-(-side // self.multiple) * self.multiple, self.smallest) for side in size)
        return height, width


def sizes_of(model: Any, name: str, native: Size, any_size: bool) -> Sizes | None:
    """Return the sizes that a network takes, or None if it takes `native` alone, which `any_size=False` says.

    If no size fits all levels, the sizes that fit the last level count. `model`: the network, on the meta device if it
    runs there. Raises `ValueError` if not even `native` fits the last level.
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
        f"{height} x {width}, because its layers cut away the border of the image. Take a network whose layers pad"
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
    """The candidates: the divisors of the stride, then its multiples for networks with windows."""
    yield from (divisor for divisor in range(1, stride) if stride % divisor == 0)
    yield from range(stride, 16 * stride + 1, stride)


def _samples(native: Size, multiple: int, stride: int) -> Iterator[Size]:
    """Sizes near the native one: one `multiple` more than the stride divides, one less, and some between."""
    period = max(stride // multiple, 8)
    height, width = (-(-side // (multiple * period)) * period for side in native)
    for more, wider in ((1, period - 1), (3, period // 2 + 1), (period + 2, 5)):
        yield (height + more) * multiple, (width + wider) * multiple


def _growing(multiple: int, native: int) -> Iterator[int]:
    """Sides from `multiple` to the native one, each twice the one before."""
    side = multiple
    while side < native:
        yield side
        side *= 2
    yield -(-native // multiple) * multiple


def grids_fit(model: Any, last_alone: bool) -> Fits:
    """Whether images of a size run, and give a level one patch for every `stride` pixels begun: each level, or the last
    one alone."""

    def fits(size: Size) -> bool:
        try:
            maps = level_maps(model, size)
        except Exception:  # each network raises another error on a size that it does not take
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
