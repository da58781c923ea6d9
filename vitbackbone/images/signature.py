"""The format of an image file, by its first bytes. File names are never trusted.

The list of formats is closed. It leaves out formats whose decoder starts another program, as EPS starts Ghostscript.
"""

import re

from vitbackbone.images.errors import UnknownFormat

HEAD = 256  # bytes at the start of a file that decide its format

# Pillow's name of each format, and the first bytes of its files
SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # the last two are BigTIFF
    "JPEG2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
    "JXL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
}
FORMATS = (*SIGNATURES, "WEBP", "BMP", "PPM", "AVIF", "HEIF")

PPM_HEADER = re.compile(rb"P[1-6f]\s+[#\d]")  # the magic, then a comment or the width
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes in bytes of the second header

# Brands of the ISO base media file format (ISO/IEC 23008-12, AV1 Image File Format)
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}


def image_format(data: bytes) -> str:
    """Return the format of an image file, one of `FORMATS`. Raise `UnknownFormat` if it has none of them.

    `data`: the file, or its first `HEAD` bytes.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if brands & AVIF_BRANDS:
            return "AVIF"
        if brands & HEIF_BRANDS:
            return "HEIF"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in BMP_HEADERS:
        return "BMP"
    if PPM_HEADER.match(data[:HEAD]):
        return "PPM"
    for name, beginnings in SIGNATURES.items():
        if data.startswith(beginnings):
            return name
    raise UnknownFormat(f"not an image of a known format ({', '.join(FORMATS)}): cannot identify its bytes")


def _brands(data: bytes) -> set[bytes]:
    """Return the major brand and the compatible brands of the file-type box."""
    end = min(int.from_bytes(data[:4], "big"), len(data), HEAD)
    return {data[8:12], *(data[start : start + 4] for start in range(16, end - 3, 4))}
