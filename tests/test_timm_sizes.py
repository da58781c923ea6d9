"""The image sizes of timm's networks: no padding but what the arithmetic of the layers needs."""

import math
from collections.abc import Callable

import pytest
import timm

from vitbackbone.timm_sizes import Sizes, find_sizes

Layer = Callable[[int], int]


def halve(side: int) -> int:
    """A convolution of stride 2 that keeps the last row and column."""
    return -(-side // 2)


def patches(stride: int) -> Layer:
    """Patches of `stride` pixels that do not overlap: those cut at the border are lost."""
    return lambda side: side // stride


def windows(side: int) -> int:
    """Windows of 7 patches, which must fill the map."""
    return side if side % 7 == 0 else -1


def cut(side: int) -> int:
    """A 3x3 convolution without padding."""
    return side - 2


@pytest.mark.parametrize(
    ("layers", "native", "multiple", "smallest", "alone"),
    [
        ([halve] * 5, (240, 240), 1, 1, None),
        ([patches(4), *[halve] * 3], (224, 224), 4, 4, None),
        ([patches(4), *[patches(2)] * 3], (224, 224), 32, 32, None),
        ([patches(14)], (518, 518), 14, 14, None),
        ([*[halve] * 5, windows], (224, 224), 224, 224, None),
        ([halve, cut, cut, *[halve] * 4], (299, 299), 16, 16, (299, 299)),
        ([halve, *[cut] * 40, *[halve] * 4], (299, 299), None, None, None),
    ],
)
def test_the_smallest_multiple_that_the_layers_allow(
    layers: list[Layer], native: tuple[int, int], multiple: int | None, smallest: int | None, alone: object
) -> None:
    stride = 14 if native == (518, 518) else 32

    def run(side: int) -> int:
        for layer in layers:
            side = layer(side)
        return side

    found = find_sizes(lambda size: all(run(side) == math.ceil(side / stride) for side in size), native, stride)
    if multiple is None:
        assert found is None
        return
    assert found is not None
    assert (found.multiple, found.smallest, found.native) == (multiple, smallest, alone)
    for size in [(1, 1), native, (97, 70), (31, 33), (640, 427)]:
        padded = found.padded(size)
        assert [run(side) for side in padded] == [math.ceil(side / stride) for side in padded]
        assert all(side <= more for side, more in zip(size, padded, strict=True))


def test_sizes_that_are_taken_as_they_are() -> None:
    sizes = Sizes(32, 64, (299, 299))
    assert [sizes.padded(size) for size in [(299, 299), (299, 298), (1, 65)]] == [(299, 299), (320, 320), (64, 96)]


def odd_architectures() -> list[str]:
    """Those with weights of a size that 32 does not divide, and which take other sizes too."""
    found = set()
    for name in timm.list_pretrained():
        cfg = timm.models.get_pretrained_cfg(name)
        if not cfg.fixed_input_size and any(side % 32 for side in cfg.input_size[1:]):
            found.add((name.partition(".")[0], cfg.input_size[1:]))
    return sorted(found)
