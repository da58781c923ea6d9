"""Decoders that are faster than Pillow and give its pixels to the bit.

simplejpeg (libjpeg-turbo) decodes JPEGs. Where it is missing, torchcodec's image decoder does. torchcodec also decodes
PNG and WebP files in RGB. Two builds of one library can differ, for example in how they enlarge the colours of a JPEG.
So each process compares each decoder with Pillow once, on small pictures of every kind. A decoder serves only the kinds
where the pixels are equal.

A picture that they refuse is left to Pillow, which decodes it or says what is wrong.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vitbackbone.images.metadata import without_metadata
from vitbackbone.images.signature import image_format

Kind = tuple[str, str]  # Pillow's names of a format and of a mode
Decode = Callable[[bytes, tuple[int, int]], Tensor]  # the file and its size (H, W) to RGB (3, H, W)

SIDES = (43, 61)  # (W, H) of the pictures that are compared: no multiples of a block


@dataclass(frozen=True)
class FastDecoder:
    """A decoder, and the kinds of pictures for which it was written."""

    name: str
    kinds: tuple[Kind, ...]
    load: Callable[[], Decode]  # raises any error if the library is missing or cannot be loaded


def decode_fast(data: bytes, kind: Kind, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"] | None:
    """Decode a picture as it is stored, or return None if Pillow must decode it, or must say what is wrong.

    `size`: (H, W) by its header as Pillow reads it, checked against the limit of pixels.
    """
    for decoder in DECODERS:
        decode = _equal(decoder).get(kind)
        if decode is None:
            continue
        try:
            picture = decode(data, size)
        except Exception:  # the libraries share no error type; Pillow decodes the file or raises the right one
            return None
        return picture if picture.shape[1:] == size else None
    return None


def _simplejpeg() -> Decode:
    from simplejpeg import decode_jpeg, decode_jpeg_header

    def decode(data: bytes, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
        if decode_jpeg_header(data)[:2] != size:  # a file that shows each library another size may be a bomb
            raise ValueError("the file has two sizes")
        return torch.from_numpy(decode_jpeg(data)).permute(2, 0, 1)

    return decode


def _torchcodec() -> Decode:
    decoders = import_module("torchcodec.decoders")

    def decode(data: bytes, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
        # It turns the picture by its EXIF orientation. `Photo` does that for all formats, by its own rules.
        return decoders.decode_image(without_metadata(data, image_format(data)) or data, mode="RGB")

    return decode


JPEGS = (("JPEG", "RGB"), ("JPEG", "L"), ("MPO", "RGB"), ("MPO", "L"))  # Pillow decodes CMYK
DECODERS = (  # the fastest first
    FastDecoder("simplejpeg", JPEGS, _simplejpeg),
    FastDecoder("torchcodec", (*JPEGS, ("PNG", "RGB"), ("WEBP", "RGB")), _torchcodec),
)


@cache
def _equal(decoder: FastDecoder) -> dict[Kind, Decode]:
    """Return the decoder for each kind whose pictures it decodes as Pillow does; empty if it cannot be loaded."""
    try:
        decode = decoder.load()
    except Exception:  # ImportError, or an OSError or RuntimeError about a shared library
        return {}
    return {kind: decode for kind in decoder.kinds if all(_is_equal(decode, data) for data in _samples(*kind))}


def _is_equal(decode: Decode, data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        expected = np.array(image.convert("RGB"))
    try:
        return np.array_equal(decode(data, expected.shape[:2]).permute(1, 2, 0).numpy(), expected)
    except Exception:
        return False


def _samples(format: str, mode: str) -> Iterator[bytes]:
    """Yield small pictures of each way in which a format stores colours."""
    rows, columns = np.mgrid[: SIDES[1], : SIDES[0]]
    waves = np.stack([np.sin(columns / 2 + rows / 3), np.cos(columns / 1.5), (columns // 5 + rows // 4) % 2], axis=-1)
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    picture = Image.fromarray(np.uint8(np.clip(127 + 90 * waves + noise, 0, 255))).convert(mode)
    ways: list[dict[str, Any]] = [{}]
    if format in ("JPEG", "MPO"):
        ways = [{"subsampling": each, "progressive": late} for each in ("4:4:4", "4:2:2", "4:2:0") for late in (0, 1)]
    if format == "WEBP":
        ways = [{"lossless": False}, {"lossless": True}]
    for way in ways:
        file = io.BytesIO()
        picture.save(file, "JPEG" if format == "MPO" else format, **way)
        yield file.getvalue()
