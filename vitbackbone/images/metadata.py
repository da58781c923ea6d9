"""The metadata of image files: read the orientation, and cut the rest out.

Damaged metadata must not cost the pixels. If a file cannot be read, it is read again without its metadata.
"""

import re
import struct
from collections.abc import Iterator

from PIL import ExifTags, Image

ORIENTATION = int(ExifTags.Base.Orientation)
XMP_ORIENTATION = re.compile(rb'tiff:Orientation\s*(?:=\s*["\']|>)\s*([1-8])')


def read_orientation(image: Image.Image, data: bytes) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8. It is 1 if none can be read.

    `data`: the bytes of its file, which are searched if Pillow cannot parse the EXIF.
    """
    try:
        found = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow's parsers share no error type, and an image without an orientation is fine
        found = None
    value = found if isinstance(found, int) else _orientation_of_bytes(data)
    return value if value is not None and 1 <= value <= 8 else 1


def without_metadata(data: bytes, kind: str) -> bytes | None:
    """Return the file without its metadata, or None if there is none that can be cut out."""
    strip = {"JPEG": _strip_jpeg, "PNG": _strip_png, "WEBP": _strip_webp}.get(kind)
    if strip is None:
        return None
    try:
        stripped = strip(data)
    except (struct.error, IndexError):  # cut inside its header
        return None
    return stripped if stripped != data else None


# ---- orientation --------------------------------------------------------------------------------------------------


def _orientation_of_bytes(data: bytes) -> int | None:
    """Return the orientation of the first EXIF block that has one, else of the XMP."""
    for block in _exif_blocks(data):
        found = _orientation_of_exif(block)
        if found is not None:
            return found
    for block in _xmp_blocks(data):
        if match := XMP_ORIENTATION.search(block):
            return int(match[1])
    return None


def _exif_blocks(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"\xff\xd8"):
        yield from (body[6:] for marker, body in _segments(data) if marker == 0xE1 and body.startswith(b"Exif\0"))
    elif data.startswith(b"\x89PNG"):
        yield from (chunk[8:-4] for name, chunk in _png_chunks(data) if name == b"eXIf")
    elif data.startswith(b"RIFF"):
        yield from (chunk[8:].removeprefix(b"Exif\0\0") for name, chunk in _riff_chunks(data) if name == b"EXIF")


def _xmp_blocks(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"\xff\xd8"):
        yield from (body for marker, body in _segments(data) if marker == 0xE1 and body.startswith(b"http:"))
    elif data.startswith(b"\x89PNG"):
        yield from (chunk for name, chunk in _png_chunks(data) if name == b"iTXt" and b"adobe.xmp" in chunk[:40])
    elif data.startswith(b"RIFF"):
        yield from (chunk for name, chunk in _riff_chunks(data) if name == b"XMP ")


def _orientation_of_exif(block: bytes) -> int | None:
    """Return the orientation in the first directory of an EXIF block. Other entries are not parsed."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 10:
        return None
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    if start + 2 > len(block):
        return None
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, _ = struct.unpack_from(f"{order}HHI", block, at)
        if tag == ORIENTATION and kind in (1, 3, 4):  # BYTE, SHORT, LONG
            (value,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], block, at + 8)
            return int(value)
    return None


# ---- files without metadata ---------------------------------------------------------------------------------------


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the body of each segment of a JPEG before its scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA or length < 2:
            return
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def _strip_jpeg(data: bytes) -> bytes:
    """Remove the metadata of a JPEG. The segments JFIF and Adobe say what the colours mean; they stay if undamaged."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:
            at += 1
            continue
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA or length < 2:
            break
        body = data[at + 4 : at + 2 + length]
        metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        jfif = marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
        adobe = marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        if not metadata or jfif or adobe:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, data[at:]])


PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # alpha, of tRNS, is dropped anyway


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the bytes of each chunk. The bytes include its length and its checksum."""
    at = 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at : at + 12 + length]
        at += 12 + length


def _strip_png(data: bytes) -> bytes:
    """Remove the metadata of a PNG, and its animation. The first frame remains."""
    return data[:8] + b"".join(chunk for name, chunk in _png_chunks(data) if name in PNG_KEPT)


WEBP_DROPPED = (b"EXIF", b"XMP ", b"ICCP")
WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # ICC, EXIF, XMP


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the bytes of each chunk. The bytes include its name, its length and its padding."""
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        yield data[at : at + 4], data[at : at + 8 + length + length % 2]
        at += 8 + length + length % 2


def _strip_webp(data: bytes) -> bytes:
    """Remove the metadata of a WebP, and its flags for metadata."""
    kept = []
    for name, chunk in _riff_chunks(data):
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~WEBP_METADATA_FLAGS]) + chunk[9:]
        if name not in WEBP_DROPPED:
            kept.append(chunk)
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
