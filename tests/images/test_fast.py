"""The fast decoders: each serves where it gives Pillow's pixels, and nowhere else. The oracle is Pillow alone."""

import io
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from tests.helpers import photo
from vitbackbone import Photo
from vitbackbone.images import fast

AVAILABLE = [decoder for decoder in fast.DECODERS if fast._equal(decoder)]

# Sampling factors (horizontal, vertical) of the brightness, and the name of the subsampling
SUBSAMPLINGS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2), "4:4:0": (1, 2), "4:1:1": (4, 1)}


def jpeg(pixels: np.ndarray, subsampling: str, **fields: Any) -> bytes:
    """Encode a JPEG. Pillow writes the common subsamplings, simplejpeg the others."""
    if subsampling in ("4:4:0", "4:1:1"):
        simplejpeg = pytest.importorskip("simplejpeg")
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, colorsubsampling=subsampling.replace(":", ""))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=subsampling, **fields)
    return file.getvalue()


def upright(data: bytes) -> Tensor:
    """Decode with Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    subsampling=st.sampled_from(list(SUBSAMPLINGS)),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    progressive=st.booleans(),
    orientation=st.integers(1, 8),
)
@pytest.mark.parametrize("decoder", fast.DECODERS, ids=lambda decoder: decoder.name)
def test_any_jpeg_has_pillows_pixels(
    decoder: fast.FastDecoder,
    height: int,
    width: int,
    subsampling: str,
    mode: str,
    progressive: bool,
    orientation: int,
) -> None:
    if decoder not in AVAILABLE:
        pytest.skip(f"{decoder.name} cannot be loaded here")
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = photo(height, width, height * width)
    if mode == "RGB":
        data = jpeg(np.array(picture), subsampling, progressive=progressive, exif=exif)
    else:
        file = io.BytesIO()
        picture.convert(mode).save(file, "JPEG", progressive=progressive, exif=exif)
        data = file.getvalue()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "DECODERS", (decoder,))
        assert torch.equal(Photo(data).decode(), upright(data))


@pytest.mark.parametrize("kind", [("PNG", "RGB"), ("WEBP", "RGB")])
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (128, 64)])
def test_other_formats_have_pillows_pixels(kind: tuple[str, str], size: tuple[int, int]) -> None:
    able = [decoder for decoder in AVAILABLE if kind in fast._equal(decoder)]
    if not able:
        pytest.skip("no decoder for this can be loaded here")
    file = io.BytesIO()
    photo(*size).save(file, kind[0])
    picture = fast.decode_fast(file.getvalue(), kind, size)
    assert picture is not None
    assert torch.equal(picture, upright(file.getvalue()))


def test_simplejpeg_decodes_every_subsampling_by_default() -> None:
    assert AVAILABLE[0].name == "simplejpeg"
    for subsampling in SUBSAMPLINGS:
        data = jpeg(np.array(photo(50, 70)), subsampling)
        picture = fast.decode_fast(data, ("JPEG", "RGB"), (50, 70))
        assert picture is not None
        assert torch.equal(picture, upright(data))


def test_a_decoder_with_other_pixels_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a build with another way to enlarge the colours: one level of one pixel is enough."""

    def other(data: bytes, size: tuple[int, int]) -> Tensor:
        picture = upright(data).clone()
        picture[0, 0, 0] ^= 1
        return picture

    monkeypatch.setattr(fast, "DECODERS", (replace(fast.DECODERS[0], load=lambda: other),))
    data = jpeg(np.array(photo(40, 30)), "4:2:0")
    assert fast.decode_fast(data, ("JPEG", "RGB"), (40, 30)) is None
    assert torch.equal(Photo(data).decode(), upright(data))


def test_without_any_of_them_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("simplejpeg", "torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(fast, "DECODERS", tuple(replace(each, name=f"{each.name} away") for each in fast.DECODERS))
    data = jpeg(np.array(photo(40, 30)), "4:2:0")
    assert fast.decode_fast(data, ("JPEG", "RGB"), (40, 30)) is None
    assert torch.equal(Photo(data).decode(), upright(data))


@pytest.mark.promise(10)
def test_a_file_with_two_sizes_is_not_decoded_at_the_second() -> None:
    """The limit was checked against the size that Pillow reads. A decoder that reads another size must not run."""
    small, large = jpeg(np.array(photo(8, 8)), "4:4:4"), jpeg(np.array(photo(64, 64)), "4:4:4")
    assert fast.decode_fast(large, ("JPEG", "RGB"), (8, 8)) is None
    assert fast.decode_fast(small, ("JPEG", "RGB"), (64, 64)) is None
