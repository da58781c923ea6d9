"""Decode the first page of a TIFF file to RGB pixels, by TIFF 6.0.

Pillow decodes the files that it decodes correctly, and tifffile the others. tifffile is an extra, `vitbackbone[tiff]`.

Axes: `h w` pixels as stored, `S` samples of a pixel.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from vitbackbone.images.colours import FLOATS, Samples, to_8_bits, to_rgb
from vitbackbone.images.errors import MissingDecoder, UnsupportedPixels
from vitbackbone.images.tiff_directory import Layout, first_page

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3, ICCLAB: 3}
RAW = 1  # no compression
JPEGS = (6, 7)  # compressions whose codec converts YCbCr to RGB
ASSOCIATED = 1  # an extra sample that is alpha; the colours are multiplied by it
CMYK_INKS = 1


def decode_tiff(data: bytes, layout: Layout) -> Image.Image:
    """Return the pixels in RGB. The orientation is not applied.

    Integers are scaled by their number of bits, WhiteIsZero is inverted, premultiplied colours are divided by their
    alpha, and Lab is converted to sRGB. Raises `UnsupportedPixels` on floats and other values without an agreed range,
    and `MissingDecoder` if tifffile or imagecodecs is needed and not installed. A damaged file may raise any exception.
    """
    if layout.floats:
        raise UnsupportedPixels(FLOATS)
    if layout.photometric not in COLOURS or (layout.photometric == CMYK and layout.ink_set != CMYK_INKS):
        raise UnsupportedPixels(f"a TIFF file with photometric interpretation {layout.photometric} is not supported")
    if len(layout.bits) < COLOURS[layout.photometric]:
        raise UnsupportedPixels(f"a TIFF file with {len(layout.bits)} samples per pixel, too few for its colours")
    image = _open_by_pillow(data, layout)
    if image is None:
        return _to_rgb(_read_by_tifffile(data, layout), layout)
    image.load()
    if image.mode.startswith("I") or (layout.signed and image.mode == "L"):
        return _to_rgb(_stored(image, layout)[..., None], layout)
    if image.mode in ("P", "PA"):
        index = np.asarray(image if image.mode == "P" else image.getchannel(0))
        return _to_rgb(index[..., None], layout)
    return to_rgb(image)


def decode_bands(data: bytes, layout: Layout) -> Samples:
    """Return all samples (h, w, S) as they are stored. The orientation is not applied. Raises as `decode_tiff`."""
    return _read_by_tifffile(data, layout)


def _open_by_pillow(data: bytes, layout: Layout) -> Image.Image | None:
    """Open the page. Return None if Pillow does not support its pixels, or would decode them wrong.

    Pillow reads every separate plane as bytes, whatever its depth. It swaps the bytes of signed big-endian integers
    that libtiff, which decompresses them, has swapped already.
    """
    byte_planes = layout.photometric in (RGB, CMYK) and set(layout.bits) == {8} and layout.extra[:1] != (ASSOCIATED,)
    swapped_twice = layout.signed and layout.bits[0] > 8 and layout.compression != RAW and data.startswith(b"MM")
    if swapped_twice or (layout.planes and not byte_planes):
        return None
    try:
        return TiffImageFile(BytesIO(first_page(data)))
    except (SyntaxError, KeyError):
        return None


def _stored(image: Image.Image, layout: Layout) -> Samples:
    """Return the integers of a grey page. Pillow holds 32 bits as signed and 8 bits as unsigned, always."""
    values = np.asarray(image)
    if layout.bits[0] == 32 and not layout.signed:
        return values.view(np.uint32)
    return values.view(np.int8) if layout.bits[0] == 8 else values


def _read_by_tifffile(data: bytes, layout: Layout) -> Samples:
    """Return the samples (h, w, S)."""
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise MissingDecoder(
            "such a TIFF file is read by tifffile, which is not installed; run pip install 'vitbackbone[tiff]'"
        ) from error
    with _quiet(), TiffFile(BytesIO(first_page(data))) as file:
        page = file.pages.first
        try:
            values = page.asarray(maxworkers=1)
        except (ValueError, ImportError) as error:
            if "imagecodecs" not in str(error):
                raise
            raise MissingDecoder(
                "such a TIFF file needs imagecodecs, which is not installed; run pip install 'vitbackbone[tiff]'"
            ) from error
        planes, depth, *rest = page.shaped
        if depth != 1:
            raise UnsupportedPixels(f"a TIFF volume of depth {depth}; want a picture")
        stacked = values.reshape(planes, *rest)
    return np.moveaxis(stacked, 0, 2).reshape(layout.height, layout.width, -1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of tifffile, which would have lines for every odd file."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _to_rgb(values: Samples, layout: Layout) -> Image.Image:
    """Convert samples (h, w, S) to RGB, by the photometric interpretation."""
    kind = layout.photometric
    count = COLOURS[kind]
    if kind == PALETTE:
        return Image.fromarray(_palette(layout)[values[..., 0]])
    if kind in (CIELAB, ICCLAB):
        return to_rgb(_lab(values[..., :3], layout))
    colours = to_8_bits(values[..., :count], layout.bits[0], layout.signed)
    if kind == WHITE_IS_ZERO:
        colours = 255 - colours
    if layout.extra[:1] == (ASSOCIATED,) and values.shape[2] > count:
        colours = _unpremultiplied(colours, to_8_bits(values[..., count], layout.bits[0], layout.signed))
    if count == 1:
        return Image.fromarray(np.ascontiguousarray(colours[..., 0])).convert("RGB")
    undone = kind == YCBCR and layout.compression in JPEGS  # the codec has converted it
    mode = {CMYK: "CMYK", YCBCR: "RGB" if undone else "YCbCr"}.get(kind, "RGB")
    height, width = colours.shape[:2]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(colours).tobytes()).convert("RGB")


def _palette(layout: Layout) -> NDArray[np.uint8]:
    """Return the table of colours (2^bits, 3). TIFF stores 16 bits, but some programs store 8."""
    entries = 2 ** layout.bits[0]
    if layout.bits[0] > 16 or len(layout.palette) < 3 * entries:
        raise UnsupportedPixels(f"a TIFF palette of {len(layout.palette)} values; want 3 for each of {entries} colours")
    table = np.array(layout.palette[: 3 * entries], dtype=np.uint16).reshape(3, entries).T
    return np.ascontiguousarray(table.astype(np.uint8) if table.max() < 256 else to_8_bits(table, 16))


def _lab(values: Samples, layout: Layout) -> Image.Image:
    """Return a Lab image of 8 bits. Its a and b are in two's complement, as in Pillow and as CIELab stores them."""
    bits = layout.bits[0]
    if bits not in (8, 16):
        raise UnsupportedPixels(f"a Lab image of {bits} bits; want 8 or 16")
    whole = values.astype(np.int64) & (2**bits - 1)  # unsigned, whatever the sample format says
    lightness = to_8_bits(whole[..., :1], bits)
    chroma = (whole[..., 1:] >> (bits - 8)).astype(np.uint8)
    if layout.photometric == ICCLAB:
        chroma = chroma ^ np.uint8(128)
    pixels = np.concatenate([lightness, chroma], axis=2)
    return Image.frombytes("LAB", (layout.width, layout.height), pixels.tobytes())


def _unpremultiplied(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Divide colours by their alpha. They are black where alpha is 0."""
    divided = colours.astype(np.float32) * 255 / np.maximum(alpha, 1)[..., None]
    return divided.round().clip(0, 255).astype(np.uint8)
