"""The format of an image file, by its first bytes. Names and extensions are never trusted.

The formats are a closed list. A format whose decoder starts another program, as EPS starts Ghostscript, is not on it.
"""

from vitbackbone.images.errors import UnknownFormat

# Formats as Pillow names them, and what their files begin with
SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # the last two are BigTIFF
    "JPEG2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
    "JXL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
}
FORMATS = (*SIGNATURES, "WEBP", "BMP", "PPM", "AVIF", "HEIF")

BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes of the header that follows the one of the file

# Brands of the ISO base media file format (ISO/IEC 23008-12, AV1 Image File Format)
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}


def image_format(data: bytes) -> str:
    """Return the format of an image file, one of `FORMATS`. Raise `UnknownFormat` if it has none of them."""
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
    if data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6", b"f") and data[2:3].isspace():
        return "PPM"
    for name, beginnings in SIGNATURES.items():
        if data.startswith(beginnings):
            return name
    raise UnknownFormat(f"not an image of a known format ({', '.join(FORMATS)}): cannot identify its bytes")


def _brands(data: bytes) -> set[bytes]:
    """The major brand and the compatible ones of the file-type box."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return {data[8:12], *(data[start : start + 4] for start in range(16, end - 3, 4))}
