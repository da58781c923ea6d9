"""The size of a JPEG XL image, read from its header (ISO/IEC 18181-1, 9.2).

Its decoder tells the size only after it has decoded the pixels, which is too late to refuse a bomb.
"""

import struct

from vitbackbone.images.errors import DamagedImage

RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, of codes 1 to 7
SIZE_BITS = (9, 13, 18, 30)


def jxl_size(data: bytes) -> tuple[int, int]:
    """Return (H, W) as stored. Raise `DamagedImage` on a file without a codestream."""
    codestream = data if data.startswith(b"\xff\x0a") else _codestream(data)
    if not codestream.startswith(b"\xff\x0a") or len(codestream) < 4:
        raise DamagedImage("the JPEG XL file has no codestream")
    bits = _Bits(codestream[2:14])
    small = bits.read(1)
    height = _length(bits, small)
    ratio = bits.read(3)
    if ratio:
        across, down = RATIOS[ratio - 1]
        return height, height * across // down
    return height, _length(bits, small)


class _Bits:
    """A reader of bits, from the lowest bit of each byte."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")

    def read(self, count: int) -> int:
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value


def _length(bits: _Bits, small: int) -> int:
    return (bits.read(5) + 1) * 8 if small else bits.read(SIZE_BITS[bits.read(2)]) + 1


def _codestream(data: bytes) -> bytes:
    """Return the beginning of the codestream in a container, from its first box `jxlc` or `jxlp`."""
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        header = 8
        if length == 1 and at + 16 <= len(data):
            (length,), header = struct.unpack_from(">Q", data, at + 8), 16
        start = at + header + (4 if name == b"jxlp" else 0)
        if name in (b"jxlc", b"jxlp"):
            return data[start : start + 32]
        if length < header:
            break
        at += length
    return b""
