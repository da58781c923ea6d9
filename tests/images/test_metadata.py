"""Metadata of image files: the orientation is applied, and garbage costs no pixels."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import photo
from tests.images.encoded import encode, pixels
from tests.images.grids import grid
from vitbackbone import Photo, load_image
from vitbackbone.images.errors import DamagedImage


def png_with(name: bytes, body: bytes, before: bytes = b"IDAT", crc: int | None = None) -> bytes:
    data = encode(photo(20, 30), "PNG")
    at = data.index(before) - 4
    check = zlib.crc32(name + body) if crc is None else crc
    return data[:at] + struct.pack(">I", len(body)) + name + body + struct.pack(">I", check) + data[at:]


def jpeg_with(marker: int, body: bytes) -> bytes:
    data = encode(photo(20, 30), "JPEG", quality=95)
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def webp_with(name: bytes, body: bytes) -> bytes:
    whole = encode(photo(20, 30), "WEBP", exif=b"Exif\0\0" + EXIF_6, xmp=b"x" * 8, icc_profile=b"y" * 8)
    at = whole.index(name + struct.pack("<I", 0)[:0])
    (length,) = struct.unpack_from("<I", whole, at + 4)
    padded = body + b"\0" * (len(body) % 2)
    rest = whole[:at] + name + struct.pack("<I", len(body)) + padded + whole[at + 8 + length + length % 2 :]
    return rest[:4] + struct.pack("<I", len(rest) - 8) + rest[8:]


def exif(*entries: bytes, order: str = "<", tail: bytes = b"") -> bytes:
    head = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return head + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4) + tail


def entry(tag: int, kind: int, count: int, value: int, order: str = "<") -> bytes:
    if kind == 3:
        return struct.pack(order + "HHIHH", tag, kind, count, value, 0)
    return struct.pack(order + "HHII", tag, kind, count, value)


TURNED = entry(0x112, 3, 1, 6)
EXIF_6 = exif(TURNED)
GARBAGE = {
    "nothing": b"",
    "text": b"garbage, no TIFF header",
    "a header alone": b"II*\0",
    "a directory nowhere": b"II*\0\xff\xff\xff\x7f",
    "entries cut": b"II*\0\x08\0\0\0\x09\0\x12\x01",
    "signed rational": exif(entry(0x11A, 10, 1, 26), tail=struct.pack("<ii", -72, 1)),
    "a zero denominator": exif(entry(0x11A, 5, 1, 26), tail=struct.pack("<II", 72, 0)),
    "an unknown type": exif(entry(0x11A, 77, 9, 9)),
    "a huge count": exif(entry(0x11A, 5, 2**31, 26)),
    "a loop": exif(entry(0x8769, 4, 1, 8)),
    "orientation as text": exif(entry(0x112, 2, 4, 0x36363636)),
    "orientation 0": exif(entry(0x112, 3, 1, 0)),
    "orientation 9": exif(entry(0x112, 3, 1, 9)),
    "random": np.random.default_rng(0).integers(0, 256, 300, np.uint8).tobytes(),
}
TURNABLE = {
    "alone": exif(TURNED),
    "big-endian": exif(entry(0x112, 3, 1, 6, ">"), order=">"),
    "as LONG": exif(entry(0x112, 4, 1, 6)),
    "with a signed rational": exif(TURNED, entry(0x11A, 10, 1, 38), tail=struct.pack("<ii", -72, 1)),
    "with a zero denominator": exif(TURNED, entry(0x11A, 5, 1, 38), tail=struct.pack("<II", 72, 0)),
    "with an unknown type": exif(TURNED, entry(0x11A, 77, 9, 9)),
    "with a directory nowhere": exif(TURNED, entry(0x8769, 4, 1, 2**31)),
    "behind a huge count": exif(entry(0x10F, 2, 2**31, 9), TURNED),
}


def with_exif(kind: str, block: bytes) -> bytes:
    if kind == "PNG":
        return png_with(b"eXIf", block)
    return jpeg_with(0xE1, b"Exif\0\0" + block) if kind == "JPEG" else webp_with(b"EXIF", block)


def check_everywhere(data: bytes, expected: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert Photo(data).size == tuple(expected.shape[1:])
    assert torch.equal(Photo(data).decode(), expected)
    assert torch.equal(pixels(load_image(path)), expected)


@pytest.mark.parametrize("block", GARBAGE)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_garbage_exif_costs_no_pixels(kind: str, block: str, tmp_path: Path) -> None:
    plain = Photo(encode(photo(20, 30), kind, **({"quality": 95} if kind == "JPEG" else {}))).decode()
    check_everywhere(with_exif(kind, GARBAGE[block]), plain, tmp_path)


@pytest.mark.parametrize("block", TURNABLE)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_beside_garbage_is_applied(kind: str, block: str, tmp_path: Path) -> None:
    plain = Photo(encode(photo(20, 30), kind, **({"quality": 95} if kind == "JPEG" else {}))).decode()
    check_everywhere(with_exif(kind, TURNABLE[block]), plain.transpose(1, 2).flip(2), tmp_path)


CHUNKS = (b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"tIME", b"sBIT")
CHUNKS += (b"tRNS",)


BODIES = [b"", b"\0", b"x" * 5, b"\xff" * 40, b"key\0\0not deflate", b"key\0\1" + b"\xff" * 9]


@pytest.mark.parametrize(
    ("name", "body", "crc", "before"), grid(CHUNKS, BODIES, [None, 7], [b"IDAT", b"IEND"], rounds=4)
)
def test_chunks_of_png_cost_no_pixels(name: bytes, body: bytes, crc: int | None, before: bytes) -> None:
    assert torch.equal(Photo(png_with(name, body, before, crc)).decode(), pixels(photo(20, 30)))


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
@pytest.mark.parametrize(
    "body",
    [b"", b"JFIF\0", b"Adobe", b"MPF\0", b"MPF\0II*\0\x08\0\0\0\xff\xff", b"ICC_PROFILE\0", b"Photoshop 3.0\x008BIM\4"],
)
def test_segments_of_jpeg_cost_no_pixels(marker: int, body: bytes) -> None:
    plain = Photo(encode(photo(20, 30), "JPEG", quality=95)).decode()
    assert torch.equal(Photo(jpeg_with(marker, body)).decode(), plain)


@pytest.mark.parametrize("name", [b"EXIF", b"XMP ", b"ICCP"], ids=bytes.decode)
@pytest.mark.parametrize("body", [b"", b"\0", b"\xff" * 41])
def test_chunks_of_webp_cost_no_pixels(name: bytes, body: bytes) -> None:
    got = Photo(webp_with(name, body)).decode()
    turned = pixels(photo(20, 30)).transpose(1, 2).flip(2)
    assert torch.equal(got, pixels(photo(20, 30)) if name == b"EXIF" else turned)


def test_an_animation_of_impossible_length_is_its_first_frame() -> None:
    for count in (2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 0):
        read = Photo(png_with(b"acTL", struct.pack(">II", count, 0)))
        assert torch.equal(read.decode(), pixels(photo(20, 30)))
        if 0 < count <= 2**31:
            with pytest.raises(DamagedImage, match="frames, more than its bytes can hold"):
                read.frames()
        else:  # Pillow ignores these counts, which the format does not allow
            assert read.frames() == 1
