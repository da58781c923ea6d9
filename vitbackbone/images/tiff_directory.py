"""The directory of a TIFF file: read the tags that decide its pixels, and write a file with only these tags.

Other tags hold metadata, which is never parsed. Reference: TIFF 6.0. BigTIFF has the same tags with wider numbers.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vitbackbone.images.errors import DamagedImage, UnsupportedPixels

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
SAMPLES, PLANAR, COLORMAP, INK_SET, EXTRA, SAMPLE_FORMAT = 277, 284, 320, 332, 338, 339
ROWS, STRIPS, STRIP_BYTES, TILES, TILE_BYTES = 278, 273, 279, 324, 325
MOST_SAMPLES = 32

SUBFILE, FILL_ORDER, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, INKS, DEPTH = 255, 266, 317, 322, 323, 334, 32997
FAX = {290, 291, 292, 293}  # units of grey and options of CCITT compression
RANGE = {340, 341}  # least and greatest sample
JPEG = {347, *range(512, 522)}  # tables of both kinds of JPEG
YCBCR = {529, 530, 531, 532}  # coefficients, subsampling, positions, black and white

# The tags that decide the pixels, without the orientation
DECIDING = (
    {SUBFILE, WIDTH, HEIGHT, DEPTH, BITS, SAMPLES, SAMPLE_FORMAT, FILL_ORDER, PLANAR, COMPRESSION, PREDICTOR}
    | {PHOTOMETRIC, COLORMAP, INK_SET, INKS, EXTRA, ROWS, STRIPS, STRIP_BYTES}
    | {TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES}
    | FAX
    | RANGE
    | JPEG
    | YCBCR
)

NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
MOST_VALUES = 2**20  # values of an entry: enough for the strips of a large file, or a palette of 16 bits


@dataclass(frozen=True)
class Layout:
    """The layout of the pixels, by the tags."""

    height: int  # as stored
    width: int
    bits: tuple[int, ...]  # of each sample
    signed: bool
    floats: bool
    compression: int
    photometric: int
    planes: bool  # each sample of the pixels has its own plane
    extra: tuple[int, ...]  # kind of each sample after the colours
    orientation: int
    palette: tuple[int, ...]
    ink_set: int


class _Form(NamedTuple):
    """Byte order and widths of a file."""

    order: str  # of struct
    big: bool  # BigTIFF

    @property
    def pointer(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def number(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def entry(self) -> int:
        return 20 if self.big else 12

    @property
    def first(self) -> int:
        """Offset of the header's pointer to the first directory."""
        return 8 if self.big else 4


def read_layout(data: bytes) -> Layout:
    """Read the tags of the first page.

    Raises `DamagedImage` if the page has no size or is beyond the end of the file, and `UnsupportedPixels` if its
    samples have several types.
    """
    form = _form(data)
    entries, _ = _directory(data, form, _first(data, form))
    tags = {tag: entry for entry in reversed(entries) if (tag := _tag(entry, form)) in DECIDING | {ORIENTATION}}

    def numbers(tag: int, default: Sequence[int]) -> tuple[int, ...]:
        return (_numbers(data, form, tags[tag]) if tag in tags else ()) or tuple(default)

    (width, *_), (height, *_) = numbers(WIDTH, [0]), numbers(HEIGHT, [0])
    if not width or not height:
        raise DamagedImage("the TIFF file has no width or no height")
    photometric, orientation = numbers(PHOTOMETRIC, [0])[0], numbers(ORIENTATION, [1])[0]
    bits = numbers(BITS, [1])
    samples = numbers(SAMPLES, [len(bits)])[0]
    if not 1 <= samples <= MOST_SAMPLES:
        raise UnsupportedPixels(f"a TIFF file with {samples} samples per pixel; want 1 to {MOST_SAMPLES}")
    bits = (bits * samples if len(bits) == 1 else bits)[:samples]
    formats = set(numbers(SAMPLE_FORMAT, [1]))
    if len(set(bits)) > 1 or len(formats) > 1 or not formats <= {1, 2, 3, 4}:
        raise UnsupportedPixels("a TIFF file whose samples have several types; want one")
    planes = numbers(PLANAR, [1])[0] == 2 and samples > 1
    row = -(-width * bits[0] * (1 if planes else samples) // 8)
    compressed = numbers(COMPRESSION, [1])[0] != 1
    strip = None if compressed else _strip_sizes(height, numbers(ROWS, [height])[0], row)
    for offsets, counts in ((STRIPS, STRIP_BYTES), (TILES, TILE_BYTES)):
        _check_extents(len(data), numbers(offsets, ()), numbers(counts, ()), strip if offsets == STRIPS else None)
    return Layout(
        height,
        width,
        bits,
        formats == {2},
        formats == {3},
        numbers(COMPRESSION, [1])[0],
        photometric,
        planes,
        numbers(EXTRA, ()),
        orientation if 1 <= orientation <= 8 else 1,
        numbers(COLORMAP, ()),
        numbers(INK_SET, [1])[0],
    )


def _strip_sizes(height: int, rows: int, row: int) -> list[int]:
    """Return the bytes of each strip of a plane that is not compressed."""
    rows = min(max(rows, 1), height)
    whole, rest = divmod(height, rows)
    return [rows * row] * whole + [rest * row] * (rest > 0)


def _check_extents(length: int, offsets: Sequence[int], counts: Sequence[int], sizes: Sequence[int] | None) -> None:
    """Raise `DamagedImage` if pixels are beyond the end of the file.

    `sizes`: bytes that uncompressed strips need, whatever their byte counts say.
    """
    for i, offset in enumerate(offsets):
        needs = [*counts[i : i + 1], *(sizes[i % len(sizes)] for _ in range(1) if sizes)]
        if offset + min(needs, default=0) > length:
            raise DamagedImage("the TIFF file is truncated: pixels are beyond its end")


def first_page(data: bytes) -> bytes:
    """Return the file with a new directory at its end: the first page's, with only the tags of `DECIDING`."""
    form = _form(data)
    entries, _ = _directory(data, form, _first(data, form))
    kept = [entry for entry in entries if _tag(entry, form) in DECIDING]
    padded = data + b"\0" * (len(data) % 2)
    directory = struct.pack(form.number, len(kept)) + b"".join(kept) + struct.pack(form.pointer, 0)
    header = data[: form.first] + struct.pack(form.pointer, len(padded))
    return header + padded[len(header) :] + directory


def count_pages(data: bytes) -> int:
    """Count the pages of a file. Raise `DamagedImage` if one of its directories is missing."""
    form = _form(data)
    at, seen = _first(data, form), set[int]()
    while at and at not in seen:
        seen.add(at)
        _, at = _directory(data, form, at)
    return len(seen)


def _form(data: bytes) -> _Form:
    return _Form("<" if data[:2] == b"II" else ">", 43 in data[2:4])


def _first(data: bytes, form: _Form) -> int:
    return _unpack(form.pointer, data, form.first)


def _directory(data: bytes, form: _Form, at: int) -> tuple[list[bytes], int]:
    """Return the entries of a directory, and the offset of the next one: 0 at the last page, or if the file is cut."""
    count, start = _unpack(form.number, data, at), at + struct.calcsize(form.number)
    stop = start + count * form.entry
    if stop > len(data):
        raise DamagedImage("the TIFF file is truncated: a directory reaches beyond its end")
    entries = [data[place : place + form.entry] for place in range(start, stop, form.entry)]
    following = _unpack(form.pointer, data, stop) if stop + struct.calcsize(form.pointer) <= len(data) else 0
    return entries, following


def _tag(entry: bytes, form: _Form) -> int:
    return _unpack(form.order + "H", entry, 0)


def _numbers(data: bytes, form: _Form, entry: bytes) -> tuple[int, ...]:
    """Return the whole numbers of an entry. There are none if it holds another type, or is outside the file."""
    kind = NUMBERS.get(_unpack(form.order + "H", entry, 2))
    count = _unpack(form.pointer, entry, 4)
    if kind is None or not 0 < count <= MOST_VALUES:
        return ()
    layout = f"{form.order}{count}{kind}"
    inline = struct.calcsize(form.pointer)
    source, at = (entry, 4 + inline)
    if struct.calcsize(layout) > inline:
        source, at = data, _unpack(form.pointer, entry, 4 + inline)
    return struct.unpack_from(layout, source, at) if at + struct.calcsize(layout) <= len(source) else ()


def _unpack(layout: str, data: bytes, at: int) -> int:
    try:
        (value,) = struct.unpack_from(layout, data, at)
    except struct.error as error:
        raise DamagedImage("the TIFF file is truncated: a directory is beyond its end") from error
    return int(value)
