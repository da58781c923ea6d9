"""A patch to source pixels and back, through padding, crop and resize."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbackbone import Geometry, Preprocess, View

SIDES = st.integers(1, 300)


@given(SIDES, SIDES, st.sampled_from([4, 8, 14, 16]), st.data())
def test_the_centre_of_a_patch_comes_back_to_it(height: int, width: int, stride: int, data: st.DataObject) -> None:
    geometry = Geometry(((height, width),), stride)
    row = data.draw(st.integers(0, geometry.grid[0] - 1))
    column = data.draw(st.integers(0, geometry.grid[1] - 1))
    left, top, right, bottom = geometry.box(0, row, column)
    assert (right - left, bottom - top) == (stride, stride)
    x, y = min((left + right) / 2, (left + width) / 2), min((top + bottom) / 2, (top + height) / 2)
    assert geometry.patch(0, x, y) == (row, column)


@given(SIDES, SIDES, st.sampled_from([(32, 32), (48, 32)]), st.booleans(), st.sampled_from(["center", "squash"]))
def test_a_view_leads_to_the_photo_and_back(
    height: int, width: int, size: tuple[int, int], keep_aspect: bool, crop_mode: str
) -> None:
    preprocess = Preprocess(size, crop_pct=0.8, crop_mode=crop_mode)
    view = preprocess.view((height, width), keep_aspect=keep_aspect)
    x, y = view.to_source(3.25, 1.5)
    assert view.from_source(x, y) == pytest.approx((3.25, 1.5))
    # The crop lies within the photo, up to the rounding of its size to whole pixels.
    left, top = view.to_source(0, 0)
    right, bottom = view.to_source(view.size[1], view.size[0])
    assert -1e-6 <= left < right <= width * (1 + 1e-6)
    assert -1e-6 <= top < bottom <= height * (1 + 1e-6)
    if keep_aspect:
        assert (left, top, right, bottom) == pytest.approx((0, 0, width, height))


def test_a_photo_pixel_finds_its_patch_through_resize_and_crop() -> None:
    # 100 x 200 is resized to 50 x 100, of which columns 25 to 75 remain: patch (2, 3) of 8 pixels shows x 98..114.
    view = View(source=(100, 200), resized=(50, 100), offset=(0, 25), size=(50, 50))
    geometry = Geometry(((50, 50),), 8).through([view])
    assert geometry.box(0, 2, 3) == (98, 32, 114, 48)
    assert geometry.patch(0, 99, 33) == (2, 3)
    with pytest.raises(IndexError, match="not within what the backbone saw"):
        geometry.patch(0, 20, 50)  # cropped away


def test_padding_and_grids_of_mixed_sizes() -> None:
    geometry = Geometry(((9, 16), (8, 30)), 8)
    assert geometry.grid == (2, 4)
    assert geometry.grids == ((2, 2), (1, 4))
    assert geometry.padded_size == (16, 32)
    assert geometry.padding == ((7, 16), (8, 2))
    with pytest.raises(IndexError, match="grid of 2 x 2 patches, none at row 0, column 2"):
        geometry.box(0, 0, 2)


def test_views_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="the backbone was given"):
        Geometry(((32, 32),), 8).through([View((64, 64), (48, 48), (0, 0), (48, 48))])
