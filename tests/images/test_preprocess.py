"""Preprocessing equals timm's evaluation transform, for upright and turned photos of every mode."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio, str_to_interp_mode
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms import functional as TVF

from tests.helpers import photo, save_photo
from tests.images.grids import grid
from vitbackbone import Preprocess, load_image

SIZES = [(68, 121), (160, 160), (333, 517), (30, 20), (1, 1), (7, 400)]


def timms(size: tuple[int, int], interpolation: str, **settings: object) -> Compose:
    """Return timm's transform. Before 1.0.31 it ignored the interpolation if the size was not square."""
    transform = create_transform((3, *size), interpolation=interpolation, **settings)
    for step in transform.transforms:
        if isinstance(step, ResizeKeepRatio):
            step.interpolation = str_to_interp_mode(interpolation)
    return transform


@pytest.mark.parametrize(
    ("source", "crop_pct", "crop_mode", "interpolation", "size"),
    grid(
        SIZES,
        [1.0, 0.9, 0.875, 1.15, 1.03],
        ["center", "squash", "border"],
        ["bicubic", "bilinear"],
        [(96, 96), (64, 112), (33, 50)],
        rounds=4,
    ),
)
def test_equals_timm(
    source: tuple[int, int], crop_pct: float, crop_mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    if crop_mode == "border" and source == (7, 400):
        pytest.skip("timm fails where a side rounds to 0")
    image = photo(*source)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    theirs = timms(size, interpolation, crop_pct=crop_pct, crop_mode=crop_mode, mean=mean, std=std)(image)
    assert torch.equal(Preprocess(size, crop_pct, crop_mode, interpolation, mean, std)(image), theirs)


@pytest.mark.parametrize(("height", "width"), [*SIZES, (31, 20), (20, 31), (480, 641), (99, 100)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_letterbox_equals_prismatic(height: int, width: int, crop_pct: float, interpolation: str) -> None:
    """The oracle is prismatic's `LetterboxPad` before the checkpoint's transform, made of torchvision's parts."""
    side, mean, std = 96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    longer = max(width, height)
    horizontal, vertical = int((longer - width) / 2), int((longer - height) / 2)
    padded = TVF.pad(
        photo(height, width),
        (horizontal, vertical, horizontal, vertical),
        fill=tuple(int(x * 255) for x in mean),
        padding_mode="constant",
    )
    transform = Compose(
        [
            Resize(int(side / crop_pct), interpolation=InterpolationMode(interpolation)),
            CenterCrop(side),
            ToTensor(),
            Normalize(mean, std),
        ]
    )
    ours = Preprocess((side, side), crop_pct, "letterbox", interpolation, mean, std)
    assert torch.equal(ours(photo(height, width)), transform(padded))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (64, 112), (65, 113)])
@pytest.mark.parametrize("size", [(64, 112), (112, 64), (48, 50)])
def test_letterbox_of_another_aspect_pads_to_that(height: int, width: int, size: tuple[int, int]) -> None:
    mean = (0.485, 0.456, 0.406)
    tall, wide = max(height, width * size[0] // size[1]), max(width, height * size[1] // size[0])
    horizontal, vertical = (wide - width) // 2, (tall - height) // 2
    padded = TVF.pad(
        photo(height, width), (horizontal, vertical, horizontal, vertical), fill=tuple(int(x * 255) for x in mean)
    )
    theirs = timms(size, "bicubic", crop_pct=1.0, mean=mean, std=(1.0, 1.0, 1.0))(padded)
    ours = Preprocess(size, 1.0, "letterbox", mean=mean, std=(1.0, 1.0, 1.0))
    assert torch.equal(ours(photo(height, width)), theirs)
    assert horizontal == 0 or vertical == 0  # the smallest border


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 121)])
def test_letterbox_shows_the_whole_photo_in_a_border_of_the_mean(height: int, width: int) -> None:
    preprocess = Preprocess((64, 64), 1.0, "letterbox")
    got = preprocess(photo(height, width))
    assert got.shape == (3, 64, 64)
    corner = got[:, :3, -3:] if width > height else got[:, -3:, :3]
    assert corner.abs().max() < 1 / 255 / min(preprocess.std)  # `int` rounds the mean down by less than one of 255
    view = preprocess.view((height, width))
    left, top = view.from_source(0, 0)
    right, bottom = view.from_source(width, height)
    assert -1 < left < right < 65
    assert -1 < top < bottom < 65


def test_keeping_the_aspect_needs_no_border() -> None:
    letterbox, center = Preprocess((32, 32), 1.0, "letterbox"), Preprocess((32, 32), 1.0)
    assert torch.equal(letterbox(photo(60, 100), 48, keep_aspect=True), center(photo(60, 100), 48, keep_aspect=True))
    assert letterbox.view((60, 100), 48, keep_aspect=True).pad == (0, 0)


@pytest.mark.promise(11)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_equal_the_turned_pixels(tmp_path: Path, orientation: int) -> None:
    upright = photo(40, 24)
    turn = {  # what a camera stores for each orientation: the inverse of what a viewer has to do
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for step in turn:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.array(load_image(tmp_path / "turned.png")), np.array(upright))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "CMYK", "1", "YCbCr", "HSV"])
def test_modes_are_what_timm_and_torchvision_see(mode: str) -> None:
    """They convert with Pillow, so alpha is dropped and the stored colour kept."""
    source = photo(12, 9).convert("L" if mode in ("LA", "PA") else "RGB").convert(mode)
    if mode in ("LA", "RGBA"):
        source.putalpha(Image.fromarray(np.full((12, 9), 40, np.uint8)))
    assert np.array_equal(np.array(load_image(source)), np.array(source.convert("RGB")))


def test_transparency_keeps_the_stored_colour() -> None:
    source = Image.new("RGBA", (3, 2), (10, 200, 30, 0))
    assert np.array(load_image(source)).tolist() == [[[10, 200, 30]] * 3] * 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 40).astype(np.uint16).reshape(4, 10)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    got = np.array(load_image(tmp_path / f"deep.{suffix}"))
    assert np.array_equal(got[..., 0], np.round(values / 65535 * 255).astype(np.uint8))
    assert np.array_equal(got[..., 0], got[..., 2])


def test_images_without_an_agreed_range_are_refused() -> None:
    with pytest.raises(ValueError, match="no agreed range"):
        load_image(Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(ValueError, match="scale it to 16 bits"):
        load_image(Image.fromarray(np.full((4, 4), 70000, np.int32)))


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif"])
def test_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert np.array(load_image(tmp_path / f"a.{suffix}"))[0, 0].tolist()[0] > 200


def test_resolution_replaces_the_size() -> None:
    preprocess = Preprocess((32, 32), crop_pct=0.9)
    image = photo(120, 200)
    assert torch.equal(preprocess(image, 64), Preprocess((64, 64), crop_pct=0.9)(image))
    assert preprocess(image, (48, 80)).shape == (3, 48, 80)


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (50, 50), (3, 400)])
def test_keeping_the_aspect_keeps_the_whole_photo(height: int, width: int) -> None:
    preprocess = Preprocess((32, 32), crop_pct=0.9)
    got = preprocess(photo(height, width), 60, keep_aspect=True)
    assert min(got.shape[1:]) == 60
    assert max(got.shape[1:]) == int(60 * max(height, width) / min(height, width))
    view = preprocess.view((height, width), 60, keep_aspect=True)
    assert view.size == view.resized == tuple(got.shape[1:])


def test_a_path_and_an_opened_image_are_the_same(tmp_path: Path) -> None:
    path = save_photo(tmp_path / "a.png")
    assert torch.equal(Preprocess()(path), Preprocess()(str(path)))
    assert torch.equal(Preprocess()(path), Preprocess()(Image.open(path)))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_text("not a photo"),
        lambda p: save_photo(p) and p.write_bytes(p.read_bytes()[:300]),
        lambda p: p.mkdir(),
        lambda p: None,
    ],
    ids=["empty", "text", "truncated", "directory", "missing"],
)
def test_files_that_are_no_images_raise_oserror(tmp_path: Path, make: object) -> None:
    make(tmp_path / "a.jpg")
    with pytest.raises(OSError):  # noqa: PT011  # its text is Pillow's or the system's
        Preprocess()(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "fields",
    [
        *({"crop_pct": 0}, {"crop_pct": 2.5}, {"image_size": (0, 32)}),
        *({"std": (0.2, 0.0, 0.2)}, {"std": (0.2, 0.2, float("inf"))}, {"mean": (0.5, float("nan"), 0.5)}),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"crop_pct must be above 0|want at least one pixel|no 0 in std"):
        Preprocess(**fields)
    with pytest.raises(ValueError, match="resolution must be at least 1"):
        Preprocess()(photo(8, 8), 0)


@pytest.mark.parametrize("mode", ["center", "squash", "border", "letterbox", "pad"])
def test_the_crop_loses_what_fills_no_whole_patch(mode: str) -> None:
    """As a convolution of patches of 14 reads a photo of 64 x 60: without the last rows and columns."""
    whole = Preprocess((64, 60), 1.0 if mode in ("letterbox", "pad") else 0.9, mode)
    ours, image = whole.in_patches(14), photo(90, 130)
    assert ours.image_size == (56, 56)
    assert torch.equal(ours(image), whole(image)[:, :56, :56])
    assert ours.view((90, 130)).to_source(10, 20) == whole.view((90, 130)).to_source(10, 20)
    assert torch.equal(ours(image, 64), whole(image, 64))
    assert whole.in_patches(4) == whole
    with pytest.raises(ValueError, match=r"unseen=\(1, 0\) with crop_mode='patches'; want \(0, 0\)"):
        Preprocess(crop_pct=1.0, crop_mode="patches", most_pixels=256, unseen=(1, 0))
