"""The fast way from bytes to pixels, with Pillow and `Preprocess.__call__` as its oracles."""

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers import photo
from tests.images.grids import grid
from vitbackbone import FusedPreprocess, Photo, Preprocess, load_image
from vitbackbone.images import fast
from vitbackbone.images.errors import DamagedImage, TooManyPixels, UnknownFormat, UnsupportedPixels
from vitbackbone.images.preprocess import CropMode, ImageTransform
from vitbackbone.images.resize import Interpolation

SIZES = [(68, 121), (121, 68), (160, 160), (333, 217), (30, 20), (1, 1), (7, 200), (200, 7), (8, 16), (17, 33)]


def encode(image: Image.Image, kind: str = "JPEG", **fields: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **fields)
    return buffer.getvalue()


def decoded_by_pillow(data: bytes) -> Tensor:
    return torch.from_numpy(np.array(load_image(Image.open(io.BytesIO(data))))).permute(2, 0, 1)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record that simplejpeg was asked to decode, and that it did."""
    used: list[str] = []
    decoder = fast.DECODERS[0]

    def load() -> fast.Decode:
        decode = decoder.load()

        def spy(data: bytes, size: tuple[int, int]) -> Tensor:
            used.append("asked")
            picture = decode(data, size)
            used.append("done")
            return picture

        return spy

    spying = replace(decoder, load=load)
    monkeypatch.setattr(fast, "DECODERS", (spying, *fast.DECODERS[1:]))
    fast._equal(spying)  # compares
    used.clear()
    return used


# ---- decoding -----------------------------------------------------------------------------------------------------

SAVED = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True, "subsampling": 2},
    "coarse": {"quality": 10},
    "fine": {"quality": 98},
    "restarts": {"restart_marker_blocks": 1},
    "stored as RGB": {"keep_rgb": True},
    "with a profile": {"icc_profile": b"x" * 70_000},
    "with a comment": {"comment": b"\xff\xd9 \xff\xd8"},
}


@pytest.mark.parametrize(("size", "saved", "mode"), grid(SIZES, list(SAVED), ["RGB", "L"]))
def test_a_jpeg_is_decoded_to_pillows_pixels(size: tuple[int, int], saved: str, mode: str, decoders: list[str]) -> None:
    height, width = size
    if saved == "restarts" and height * width < 64:
        pytest.skip("Pillow cannot write it")
    data = encode(photo(height, width).convert(mode), **{"quality": 85} | SAVED[saved])
    read = Photo(data)
    assert read.size == (height, width)
    assert torch.equal(read.decode(), decoded_by_pillow(data))
    assert decoders == ["asked", "done"]


@pytest.mark.promise(11)
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 77])
def test_orientations_equal_pillows(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(40, 24), kind, exif=exif)
    expected = decoded_by_pillow(data)
    read = Photo(data)
    assert read.size == tuple(expected.shape[1:])
    assert torch.equal(read.decode(), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG"])
def test_every_mode_equals_pillows(mode: str, kind: str) -> None:
    if mode == "I;16":
        source = Image.fromarray(np.linspace(0, 65535, 63).astype(np.uint16).reshape(7, 9))
    else:
        source = photo(7, 9).convert("L" if mode == "LA" else "RGB").convert(mode)
    try:
        data = encode(source, kind)
    except (OSError, KeyError, ValueError):
        pytest.skip("there is no such file")
    assert torch.equal(Photo(data).decode(), decoded_by_pillow(data))


def test_the_inverted_cmyk_of_adobe_equals_pillows(decoders: list[str]) -> None:
    data = encode(photo(20, 30).convert("CMYK"))
    assert b"Adobe" in data
    assert torch.equal(Photo(data).decode(), decoded_by_pillow(data))
    assert decoders == []


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_an_error_and_a_damaged_one_is_what_pillow_makes_of_it(progressive: bool) -> None:
    whole = encode(photo(40, 56), progressive=progressive)
    for length in range(0, len(whole), 7):
        with pytest.raises((OSError, ValueError)):
            Photo(whole[:length]).decode()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        try:
            expected = decoded_by_pillow(bytes(data))
        except Exception:
            with pytest.raises((OSError, ValueError)):
                Photo(bytes(data)).decode()
        else:
            assert torch.equal(Photo(bytes(data)).decode(), expected)


def test_what_lies_behind_the_end_is_not_read() -> None:
    data = encode(photo(40, 56))
    for garbage in (b"\0" * 9, b"\xff\xd8\xff", data[5:], b"\xff\xd9"):
        assert torch.equal(Photo(data + garbage).decode(), decoded_by_pillow(data))


def test_what_a_fast_decoder_cannot_read_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes, size: tuple[int, int]) -> Tensor:
        raise RuntimeError("no support for this in this build")

    failing = replace(fast.DECODERS[0], load=lambda: fail)
    monkeypatch.setattr(fast, "DECODERS", (failing,))
    monkeypatch.setattr(fast, "_is_equal", lambda *_: True)
    data = encode(photo(40, 56))
    assert torch.equal(Photo(data).decode(), decoded_by_pillow(data))


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (b"", UnknownFormat, "cannot identify"),
        (b"not a photo", UnknownFormat, "cannot identify"),
        (encode(Image.new("RGB", (16, 16)), "ICO"), UnknownFormat, "cannot identify"),
        (encode(photo(9, 9), "PNG")[:90], DamagedImage, "truncated"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), UnsupportedPixels, "no agreed range"),
        (encode(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), UnsupportedPixels, "scale it to 16 bits"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        Photo(data).decode()


@pytest.mark.parametrize("over", [1.5, 3.0])
def test_a_bomb_is_refused_by_its_header(over: float, monkeypatch: pytest.MonkeyPatch, decoders: list[str]) -> None:
    data = encode(photo(40, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(2000 / over))
    with pytest.raises(TooManyPixels, match="50 x 40 pixels are more than the limit"):
        Photo(data)
    assert decoders == []


def test_odd_metadata_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"  # ends in its first entry
    data = encode(photo(20, 30), exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Photo(data).decode().shape == (3, 20, 30)


@pytest.mark.parametrize(
    ("kind", "frames"), [("GIF", 3), ("TIFF", 3), ("WEBP", 3), ("MPO", 3), ("PNG", 3), ("JPEG", 1)]
)
@pytest.mark.parametrize("decoded", [False, True])
def test_frames_are_counted_and_the_first_is_read(kind: str, frames: int, decoded: bool) -> None:
    pictures = [photo(20, 30).rotate(90 * turn) for turn in range(frames)]
    several = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    data = encode(pictures[0], kind, **several)
    read = Photo(data)
    if decoded:
        assert torch.equal(read.decode(), decoded_by_pillow(data))
    assert read.frames() == frames
    if not decoded:
        assert torch.equal(read.decode(), decoded_by_pillow(data))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "MPO", "PNG", "JPEG"])
def test_counting_the_frames_of_one_picture(kind: str) -> None:
    assert Photo(encode(photo(20, 30), kind)).frames() == 1


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "MPO", "PNG"])
def test_frames_of_a_cut_file_are_a_number_or_an_error_that_is_promised(kind: str) -> None:
    pictures = [photo(20, 30).rotate(90 * turn) for turn in range(3)]
    whole = encode(pictures[0], kind, save_all=True, append_images=pictures[1:])
    for length in range(0, len(whole), 31):
        with suppress(OSError, ValueError):
            assert 1 <= Photo(whole[:length]).frames() <= 3


# ---- the whole way ------------------------------------------------------------------------------------------------

FUSED = FusedPreprocess(
    (
        Preprocess(interpolation="bicubic"),
        Preprocess(interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)),
        Preprocess(interpolation="bicubic", mean=(0.3, 0.4, 0.5)),
    ),
    (48, 64),
)


def stds(preprocess: ImageTransform) -> Tensor:
    parts = preprocess.parts if isinstance(preprocess, FusedPreprocess) else (preprocess,)
    return torch.tensor([std for part in parts for std in part.std]).view(-1, 1, 1)


def differences(preprocess: ImageTransform, path: Path, **fields: object) -> Tensor:
    """Return the differences of "fast" from "exact" in levels of 255. Check that both exact ways are equal."""
    exact = preprocess.pixels(Photo(path.read_bytes()), **fields)
    assert torch.equal(preprocess.normalise(exact), preprocess(path, **fields))
    pixels = preprocess.pixels(Photo(path.read_bytes()), **fields, decoding="fast")
    assert pixels.dtype == torch.uint8
    return (preprocess.normalise(pixels) - preprocess(path, **fields)).abs() * stds(preprocess) * 255


RESOLUTIONS = [{}, {"resolution": 33}, {"resolution": (24, 50)}, {"resolution": 20, "keep_aspect": True}]


@pytest.mark.parametrize(
    ("size", "crop_mode", "interpolation", "fields"),
    grid(SIZES, ["center", "squash", "letterbox"], ["bicubic", "bilinear", "lanczos", "nearest"], RESOLUTIONS),
)
def test_pixels_are_those_of_the_call(
    tmp_path: Path, size: tuple[int, int], crop_mode: CropMode, interpolation: Interpolation, fields: dict
) -> None:
    preprocess = Preprocess((64, 64), 0.9, crop_mode, interpolation, crop_rounding="down")
    photo(*size).save(tmp_path / "a.jpg", quality=85)
    assert differences(preprocess, tmp_path / "a.jpg", **fields).max() < 1.001


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "crop"])
def test_pixels_of_several_backbones(tmp_path: Path, height: int, width: int, strategy: str) -> None:
    preprocess = replace(FUSED, strategy=strategy)
    photo(height, width).save(tmp_path / "a.jpg", quality=85)
    apart = differences(preprocess, tmp_path / "a.jpg")
    assert apart.shape == (9, 48, 64)
    assert apart.max() < 1.001


@pytest.mark.parametrize("make", [Preprocess, lambda: FUSED], ids=["one", "several"])
def test_normalising_is_that_of_the_call_to_the_bit(tmp_path: Path, make: Callable[[], ImageTransform]) -> None:
    """A photo that is enlarged, which Pillow does in both cases, one at a time and as a batch."""
    photo(30, 40).save(tmp_path / "a.png")
    preprocess = make()
    pixels = preprocess.pixels(Photo((tmp_path / "a.png").read_bytes()))
    assert torch.equal(preprocess.normalise(pixels), preprocess(tmp_path / "a.png"))
    batch = preprocess.normalise(torch.stack([pixels, pixels.flip(2)]))
    assert torch.equal(batch[0], preprocess(tmp_path / "a.png"))
    assert torch.equal(batch[1], preprocess(tmp_path / "a.png").flip(2))


def test_a_crop_of_a_long_thin_photo_needs_no_huge_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(2, 3001).save(tmp_path / "a.png")
    data, preprocess = (tmp_path / "a.png").read_bytes(), Preprocess((32, 32), 0.9)
    expected = preprocess(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7000)  # more than the photo and the crop, less than the whole
    assert (
        (preprocess.normalise(preprocess.pixels(Photo(data))) - expected).abs() * stds(preprocess)
    ).max() < 1.1 / 255
    for refused in (lambda: preprocess.pixels(Photo(data), keep_aspect=True), letterbox_of(preprocess, data)):
        with pytest.raises(ValueError, match="too long and thin: 3001 x 2 pixels become"):
            refused()


def letterbox_of(preprocess: Preprocess, data: bytes) -> Callable[[], Tensor]:
    return lambda: replace(preprocess, crop_mode="letterbox").pixels(Photo(data))


# ---- decoding at a lower scale ------------------------------------------------------------------------------------


def smooth(height: int, width: int) -> Image.Image:
    return photo(height // 8, width // 8).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        ((320, 240), (320, 240)),
        ((161, 1), (320, 240)),
        ((160, 120), (160, 120)),
        ((50, 60), (80, 60)),
        ((1, 1), (40, 30)),
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_lowest_scale_that_is_enough(at_least: tuple[int, int], size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = smooth(320, 240) if orientation < 5 else smooth(240, 320)
    data = encode(stored, exif=exif, quality=95)
    read = Photo(data)
    picture = read.decode(at_least)
    assert read.size == (320, 240)
    assert picture.shape == (3, *size)
    reduced = Image.fromarray(decoded_by_pillow(data).permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BOX)
    reference = torch.from_numpy(np.array(reduced)).permute(2, 0, 1)
    assert (picture.float() - reference.float()).abs().mean() < 2  # turned wrongly it is 39


def test_other_formats_have_one_scale() -> None:
    data = encode(photo(320, 240), "PNG")
    assert torch.equal(Photo(data).decode((1, 1)), decoded_by_pillow(data))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "letterbox"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_draft_shows_the_same_view(tmp_path: Path, crop_mode: CropMode, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(401, 603).save(tmp_path / "a.jpg", quality=95, exif=exif)
    preprocess, data = Preprocess((48, 48), 0.9, crop_mode), (tmp_path / "a.jpg").read_bytes()
    whole, draft = (preprocess.pixels(Photo(data), decoding=how) for how in ("exact", "draft"))
    assert draft.shape == whole.shape
    assert not torch.equal(draft, whole)
    assert (draft.float() - whole.float()).abs().mean() < 2.5  # shifted by half a pixel it is 5 to 8


def test_without_draft_nothing_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL.JpegImagePlugin import JpegImageFile

    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: pytest.fail("scaled"))
    for how in ("exact", "fast"):
        Preprocess((32, 32)).pixels(Photo(encode(photo(320, 240))), decoding=how)
