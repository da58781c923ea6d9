"""A patch to source pixels and back, through padding, crop and resize."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitbackbone import Geometry, Preprocess, View

SIDES = st.integers(1, 300)
MODES = st.sampled_from(["center", "squash", "letterbox"])


@given(SIDES, SIDES, st.sampled_from([4, 8, 14, 16]), st.data())
def test_the_centre_of_a_patch_comes_back_to_it(height: int, width: int, stride: int, data: st.DataObject) -> None:
    geometry = Geometry(((height, width),), stride)
    row = data.draw(st.integers(0, geometry.grid[0] - 1))
    column = data.draw(st.integers(0, geometry.grid[1] - 1))
    left, top, right, bottom = geometry.box(0, row, column)
    assert (right - left, bottom - top) == (stride, stride)
    x, y = min((left + right) / 2, (left + width) / 2), min((top + bottom) / 2, (top + height) / 2)
    assert geometry.patch(0, x, y) == (row, column)


@given(SIDES, SIDES, st.sampled_from([(32, 32), (48, 32)]), st.booleans(), MODES)
def test_a_view_leads_to_the_photo_and_back(
    height: int, width: int, size: tuple[int, int], keep_aspect: bool, crop_mode: str
) -> None:
    preprocess = Preprocess(size, crop_pct=0.8, crop_mode=crop_mode)
    view = preprocess.view((height, width), keep_aspect=keep_aspect)
    x, y = view.to_source(3.25, 1.5)
    assert view.from_source(x, y) == pytest.approx((3.25, 1.5))
    # The crop lies within the photo and its border, up to the rounding of its size to whole pixels.
    left, top = view.to_source(0, 0)
    right, bottom = view.to_source(view.size[1], view.size[0])
    vertical, horizontal = view.pad
    assert (vertical, horizontal) == (0, 0) or (crop_mode == "letterbox" and not keep_aspect)
    assert -1e-6 <= left + horizontal < right + horizontal <= view.padded[1] * (1 + 1e-6)
    assert -1e-6 <= top + vertical < bottom + vertical <= view.padded[0] * (1 + 1e-6)
    if keep_aspect:
        assert (left, top, right, bottom) == pytest.approx((0, 0, width, height))


def test_a_photo_pixel_finds_its_patch_through_resize_and_crop() -> None:
    # 100 x 200 is resized to 50 x 100, of which columns 25 to 75 remain: patch (2, 3) of 8 pixels shows x 98..114.
    view = View(source=(100, 200), resized=(50, 100), offset=(0, 25), size=(50, 50))
    geometry = Geometry(((50, 50),), 8).through([view])
    assert geometry.box(0, 2, 3) == (98, 32, 114, 48)
    assert geometry.patch(0, 99, 33) == (2, 3)
    with pytest.raises(IndexError, match="is outside the photo or was cropped away"):
        geometry.patch(0, 20, 50)  # cropped away


def test_the_border_of_a_letterbox_is_no_photo() -> None:
    # 100 x 200 in a square of 200, resized to 64: the photo is at rows 16 to 48, patch row 2 at its rows 0 to 25.
    geometry = Geometry(((64, 64),), 8).through([Preprocess((64, 64), 1.0, "letterbox").view((100, 200))])
    assert geometry.box(0, 2, 3) == (75, 0, 100, 25)
    assert geometry.patch(0, 80, 1) == (2, 3)
    assert geometry.box(0, 1, 0) == (0, -25, 25, 0)
    for y in (-1, 100):
        with pytest.raises(IndexError, match="is outside the photo or was cropped away"):
            geometry.patch(0, 80, y)


@settings(suppress_health_check=[HealthCheck.filter_too_much])  # a crop leaves little of some photos
@given(
    st.integers(40, 200),
    st.integers(40, 200),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from([(32, 32), (48, 32)]),
    st.sampled_from([1.0, 0.8]),
    MODES,
)
def test_a_mark_on_the_photo_is_in_the_patch_that_the_geometry_names(
    height: int, width: int, at: tuple[float, float], size: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    preprocess = Preprocess(size, crop_pct, crop_mode, "bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    view = preprocess.view((height, width))
    side = 2 * max(2, *(-(-whole // given) for whole, given in zip(view.padded, view.resized, strict=True)))
    top, left = int(at[0] * (height - side)), int(at[1] * (width - side))
    first, last = view.from_source(left, top), view.from_source(left + side, top + side)
    assume(min(first) > 2 and last[0] < size[1] - 2 and last[1] < size[0] - 2)  # not cropped away
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top : top + side, left : left + side] = 255

    light = preprocess(Image.fromarray(pixels))[0]
    seen_y = (light.sum(1) * (torch.arange(size[0]) + 0.5)).sum() / light.sum()
    seen_x = (light.sum(0) * (torch.arange(size[1]) + 0.5)).sum() / light.sum()
    x, y = left + side / 2, top + side / 2
    assert view.from_source(x, y) == pytest.approx((seen_x.item(), seen_y.item()), abs=0.25)  # 8-bit rounding

    geometry = Geometry((size,), 8).through([view])
    row, column = geometry.patch(0, x, y)
    box = geometry.box(0, row, column)
    assert box[0] <= x <= box[2]
    assert box[1] <= y <= box[3]
    assert light[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].sum() > 0


def test_padding_and_grids_of_mixed_sizes() -> None:
    geometry = Geometry(((9, 16), (8, 30)), 8)
    assert geometry.grid == (2, 4)
    assert geometry.grids == ((2, 2), (1, 4))
    assert geometry.padded_size == (16, 32)
    assert geometry.padding == ((7, 16), (8, 2))
    with pytest.raises(IndexError, match="has 2 x 2 patches, and none at row 0, column 2"):
        geometry.box(0, 0, 2)


def test_views_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="but the images have"):
        Geometry(((32, 32),), 8).through([View((64, 64), (48, 48), (0, 0), (48, 48))])
