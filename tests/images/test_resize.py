"""Resizing and cropping, with Pillow as its oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.helpers import photo
from tests.images.encoded import apart
from tests.images.grids import grid
from vitbackbone.images.resize import FILTERS, Interpolation, resized_crop


def pillows(rgb: np.ndarray, height: int, width: int, interpolation: Interpolation) -> Tensor:
    resized = Image.fromarray(rgb).resize((width, height), FILTERS[interpolation])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


LENGTHS = st.integers(1, 40) | st.integers(1, 400)


@settings(max_examples=150, deadline=None)
@given(source=st.tuples(LENGTHS, LENGTHS), resized=st.tuples(LENGTHS, LENGTHS), extreme=st.booleans())
@pytest.mark.parametrize(
    ("interpolation", "layout", "exact"), grid(list(FILTERS), ["side by side", "planes", "turned"], [True, False])
)
def test_any_size_to_any_other_is_as_pillows(
    source: tuple[int, int],
    resized: tuple[int, int],
    extreme: bool,
    interpolation: Interpolation,
    layout: str,
    exact: bool,
) -> None:
    rng = np.random.default_rng(sum(source))
    rgb = rng.integers(0, 2, (*source, 3), np.uint8) * 255 if extreme else rng.integers(0, 256, (*source, 3), np.uint8)
    given = torch.from_numpy(rgb).permute(2, 0, 1)
    if layout == "planes":
        given = given.contiguous()
    if layout == "turned":
        given = given.transpose(1, 2).contiguous().transpose(1, 2)
    got = resized_crop(given, resized, (0, 0), resized, interpolation, exact)
    shrinks = resized[0] <= source[0] and resized[1] <= source[1]
    exact = exact or interpolation in ("nearest", "lanczos") or not shrinks
    most = 2 if interpolation == "bicubic" else 1  # 2 in a pixel or two
    assert apart(got, pillows(rgb, *resized, interpolation)) <= (0 if exact else most)


@settings(max_examples=100, deadline=None)
@given(source=st.tuples(LENGTHS, LENGTHS), resized=st.tuples(LENGTHS, LENGTHS), data=st.data())
@pytest.mark.parametrize(
    ("interpolation", "huge"),
    [*((interpolation, False) for interpolation in FILTERS), *((each, True) for each in FILTERS if each != "nearest")],
)
def test_a_crop_is_that_of_the_whole(
    source: tuple[int, int], resized: tuple[int, int], data: st.DataObject, interpolation: Interpolation, huge: bool
) -> None:
    rgb = np.array(photo(*source))
    top, left = (data.draw(st.integers(0, length - 1)) for length in resized)
    size = (
        data.draw(st.integers(1, resized[0] - top), label="height"),
        data.draw(st.integers(1, resized[1] - left), label="width"),
    )
    with pytest.MonkeyPatch.context() as patch:
        if huge:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 0)
        got = resized_crop(
            torch.from_numpy(rgb).permute(2, 0, 1), resized, (top, left), size, interpolation, exact=False
        )
    whole = pillows(rgb, *resized, interpolation)
    most = 2 if huge or interpolation == "bicubic" else 1  # huge: by the single precision of Pillow's boxes
    assert apart(got, whole[:, top : top + size[0], left : left + size[1]]) <= most


def test_a_huge_pictures_crop_has_the_order_of_axes_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Pillow got only the pixels of this crop, it would resize in the other order, and differ by 2 of 255."""
    rgb = np.array(photo(259, 20))
    whole = pillows(rgb, 277, 101, "bicubic")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 0)
    got = resized_crop(torch.from_numpy(rgb).permute(2, 0, 1), (277, 101), (139, 0), (38, 2), "bicubic", exact=True)
    assert apart(got, whole[:, 139:177, :2]) <= 1
