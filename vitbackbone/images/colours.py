"""Pixels of any mode to 8-bit RGB, by documented rules.

Axes: `H W` pixels, `S` samples of a pixel.
"""

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torch import Tensor

from vitbackbone.images.errors import UnsupportedPixels

Samples = NDArray[np.generic]

FLOATS = "a float image has no agreed range; scale it to integers of 8 or 16 bits first"
GREY = (19595, 38470, 7471)  # weights of red, green and blue, of 65536 (ITU-R 601-2, as in Pillow)
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image to RGB. See `load_image` for the rules. Raises `UnsupportedPixels` on floats."""
    if image.mode == "F":
        raise UnsupportedPixels(FLOATS)
    if image.mode.startswith("I"):
        return Image.fromarray(_grey_of_16_bits(np.asarray(image))).convert("RGB")
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    if image.mode == "LAB":
        return _from_lab(image)
    return image.convert("RGB")


def grey(rgb: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "1 H W"]:
    """Convert RGB to grey, equal to Pillow's `convert("L")`. Grey stays as it is."""
    red, green, blue = rgb.int()
    total = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    return (total + 32768 >> 16).to(rgb.dtype)[None]


def to_8_bits(values: Samples, bits: int, signed: bool = False) -> NDArray[np.uint8]:
    """Scale integers of `bits` bits to 0 to 255: 0 is black, and the largest integer of that many bits is white.

    32-bit values up to 65535 are read as 16-bit values, because many programs store 16 bits so. Raises
    `UnsupportedPixels` on negative values, and on signed 32-bit values above 65535.
    """
    if bits == 8 and not signed:
        return values.astype(np.uint8)
    if signed and values.min() < 0:
        raise UnsupportedPixels(f"signed integers from {values.min()} to {values.max()}; scale them to 0 to 65535")
    if bits >= 32 and values.max() <= 65535:
        bits, signed = 16, False
    if bits >= 32 and signed:
        span = f"{values.min()} to {values.max()}"
        raise UnsupportedPixels(f"a 32-bit image with values from {span}; scale it to 16 bits")
    white = 2 ** (bits - signed) - 1
    if bits > 32:
        return (values / white * 255).round().clip(0, 255).astype(np.uint8)
    return ((values.astype(np.uint64) * 255 + white // 2) // white).clip(0, 255).astype(np.uint8)


def _grey_of_16_bits(values: Samples) -> NDArray[np.uint8]:
    if values.min() < 0 or values.max() > 65535:
        span = f"{values.min()} to {values.max()}"
        raise UnsupportedPixels(f"a 32-bit image with values from {span}; scale it to 16 bits")
    return to_8_bits(values, 16)


def _from_lab(image: Image.Image) -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # it is None only with inPlace=True
    return converted
