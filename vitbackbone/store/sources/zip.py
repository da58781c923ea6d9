"""Images and videos in `.zip` files.

The directory is parsed here, entry by entry, so that a damaged entry harms no other.
"""

import bz2
import lzma
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase
from tempfile import TemporaryFile

import pyarrow as pa

from vitbackbone.files import FilePart, OpenFile
from vitbackbone.images import HEAD
from vitbackbone.store.sources.archive import (
    MAX_IMAGE_BYTES,
    ArchiveMember,
    NotAFile,
    check_bytes,
    damaged_member,
    folder_of,
)
from vitbackbone.store.sources.names import Notes, check_name, is_hidden, is_image, is_video
from vitbackbone.store.sources.remote import open_file, version_of

# Layouts: an entry of the directory, the header of a member, the end of the directory, and its two 64-bit forms.
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
IS_ENTRY, IS_LOCAL, IS_END, IS_END_64, IS_LOCATOR_64 = b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"

ENCRYPTED, UTF8 = 0x1, 0x800  # flags
DOS = (0, 6, 10, 11, 14)  # systems whose programs may write backslashes, and names in code page 437
UNIX = (3, 19)
SYMBOLIC_LINK = 0o120000

MAX_OFFSET = 2**62  # to seek to; a damaged entry may claim more
CHUNK = 2**16  # bytes that are decompressed at a time
STORED = 2**22  # bytes of a member without compression that are read at a time
NO_DIRECTORY = "the archive has no directory at its end: it was cut, or is not a .zip"

OTHER_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 96: "JPEG", 97: "WavPack", 98: "PPMd", 99: "AES encryption"}


class NoEntry(ValueError):
    """There is no valid entry at this place of the directory."""


@dataclass(frozen=True)
class Entry:
    """The entry of a member in the directory."""

    name: str
    offset: int  # where the entry begins in the file
    end: int  # where the entry ends
    header: int  # offset of the member's header from the start of the archive
    method: int
    flags: int
    crc: int
    stored: int  # bytes before decompression
    size: int
    symbolic_link: bool


@dataclass(frozen=True)
class Directory:
    """The place of the directory in the file."""

    start: int
    end: int
    before: int  # bytes before the archive, such as a self-extracting program
    count: int


class Zip:
    """A zip. The label of a member is its folder."""

    def __init__(self, file: str, private: bool = False) -> None:
        self.file = file
        self.private = private

    def members(self, notes: Notes) -> Iterator[ArchiveMember]:
        with open_file(self.file, self.private) as file:
            directory = _directory(file)
            at, count = directory.start, 0
            while at < directory.end:
                try:
                    entry = _entry(file, at)
                except NoEntry as error:
                    following = _next_entry(file, at + 1, directory.end)
                    yield damaged_member(at, f"the archive's directory is damaged there: {error}")
                    at = following
                    continue
                at, count = entry.end, count + 1
                if _is_wanted(file, entry, directory.before, notes):
                    yield ArchiveMember(entry.name, entry.offset, entry.size, folder_of(entry.name))
            if (count - directory.count) % 2**16:  # some programs count modulo 2**16
                text = f"the archive's directory has {count} valid entries, and claims {directory.count}"
                yield damaged_member(directory.end, text)

    def class_names(self) -> list[str]:
        return []

    def read(self, name: str, offset: int, size: int) -> bytes:
        with open_file(self.file, self.private) as file:
            entry = self._found(file, name, offset)
            check_bytes(entry.size)
            return b"".join(_checked(file, entry, _before(self.file, self.private, version_of(file)) + entry.header))

    def open(self, name: str, offset: int) -> BufferedIOBase:
        file = open_file(self.file, self.private)
        with ExitStack() as opened:
            opened.callback(file.close)
            entry = self._found(file, name, offset)
            header = _before(self.file, self.private, version_of(file)) + entry.header
            if entry.method:
                return _unpacked(file, entry, header)
            for _ in _checked(file, entry, header):
                pass
            start = _start(file, header)
            opened.pop_all()
            return FilePart(file, start, entry.size)

    def _found(self, file: OpenFile, name: str, offset: int) -> Entry:
        """Return the entry of a member that is a file."""
        check_name(name)
        try:
            entry = _entry(file, max(offset, 0))
        except NoEntry:
            _directory(file)  # its error may say more
            raise
        if entry.name != name:
            raise ValueError(f"the archive has changed: it has the member {entry.name!r} there")
        if entry.symbolic_link:
            raise NotAFile("is a symbolic link in its archive; the links of a .zip are not followed")
        return entry


@lru_cache(8)
def _before(file: str, private: bool, _: str) -> int:
    """Return the number of bytes before the archive. The last argument is the file's version."""
    with open_file(file, private) as opened:
        return _directory(opened).before


def _directory(file: OpenFile) -> Directory:
    """Find the directory. Raises `ValueError` if it is missing."""
    length = file.seek(0, os.SEEK_END)
    tail_at = max(0, length - END.size - 2**16)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(IS_END)
    if at < 0 or len(tail) - at < END.size:
        raise ValueError(NO_DIRECTORY)
    _, disk, first_disk, here, count, size, offset, _ = END.unpack_from(tail, at)
    end = tail_at + at
    if end >= LOCATOR_64.size:
        file.seek(end - LOCATOR_64.size)
        locator = file.read(LOCATOR_64.size)
        if locator.startswith(IS_LOCATOR_64):
            record = _record_64(file, LOCATOR_64.unpack(locator)[2], end - LOCATOR_64.size)
            if record is not None:
                end, disk, first_disk, here, count, size, offset = record
    if disk or first_disk or here != count:
        raise ValueError("the archive is one of several volumes; join them to one .zip")
    start = end - size
    if start < 0 or start < offset:
        raise ValueError(f"the archive's directory claims {size} bytes at byte {offset}, but the file has fewer")
    return Directory(start, end, start - offset, count)


def _record_64(file: OpenFile, offset: int, end: int) -> tuple[int, int, int, int, int, int, int] | None:
    """Return the offset and fields of the 64-bit end of the directory; None if it is missing.

    If a program precedes the archive, the record is just before `end` instead of at `offset`.
    """
    for at in (offset, end - END_64.size):
        if not 0 <= at <= end - END_64.size:
            continue
        file.seek(at)
        record = file.read(END_64.size)
        if len(record) == END_64.size and record.startswith(IS_END_64):
            _, _, _, _, disk, first_disk, here, count, size, start = END_64.unpack(record)
            return at, disk, first_disk, here, count, size, start
    return None


def _next_entry(file: OpenFile, at: int, end: int) -> int:
    file.seek(at)
    found = file.read(end - at).find(IS_ENTRY)
    return end if found < 0 else at + found


def _entry(file: OpenFile, at: int) -> Entry:
    """Read an entry of the directory. Raises `NoEntry` if it is not valid."""
    file.seek(at)
    fixed = file.read(ENTRY.size)
    if len(fixed) < ENTRY.size or not fixed.startswith(IS_ENTRY):
        raise NoEntry(f"no valid entry at byte {at}")
    fields = ENTRY.unpack(fixed)
    made_by, flags, method, crc, stored, size = fields[1] >> 8, fields[3], fields[4], *fields[7:10]
    name_length, extra_length, comment_length, _, _, attributes, header = fields[10:]
    data = file.read(name_length + extra_length)
    if len(data) < name_length + extra_length:
        raise NoEntry(f"the entry at byte {at} is cut")
    raw, extra = data[:name_length].split(b"\0", 1)[0], _extra(data[name_length:])
    large = extra.get(1, b"")
    wide = iter(struct.unpack_from(f"<{len(large) // 8}Q", large))
    size, stored, header = (next(wide, value) if value == 0xFFFFFFFF else value for value in (size, stored, header))
    return Entry(
        name=_name(raw, flags, made_by, extra.get(0x7075, b"")),
        offset=at,
        end=at + ENTRY.size + name_length + extra_length + comment_length,
        header=header,
        method=method,
        flags=flags,
        crc=crc,
        stored=stored,
        size=size,
        symbolic_link=made_by in UNIX and (attributes >> 16) & 0o170000 == SYMBOLIC_LINK,
    )


def _extra(data: bytes) -> dict[int, bytes]:
    """Return the extra fields of an entry. Damaged fields are skipped."""
    fields: dict[int, bytes] = {}
    while len(data) >= 4:
        kind, length = struct.unpack_from("<2H", data)
        fields.setdefault(kind, data[4 : 4 + length])
        data = data[4 + length :]
    return fields


def _name(raw: bytes, flags: int, made_by: int, unicode_path: bytes) -> str:
    """Decode a name: UTF-8 if its entry says so, the file system's encoding if a Unix wrote it, else code page 437."""
    if unicode_path[:1] == b"\1" and unicode_path[1:5] == zlib.crc32(raw).to_bytes(4, "little"):
        return os.fsdecode(unicode_path[5:])
    if flags & UTF8 or made_by not in DOS:
        return os.fsdecode(raw)
    name = raw.decode("cp437")
    return name if "/" in name else name.replace("\\", "/")


def _is_wanted(file: OpenFile, entry: Entry, before: int, notes: Notes) -> bool:
    """Tell whether a member is an image or a video, by its name or content."""
    if entry.name.endswith("/") or is_hidden(entry.name):
        return False

    def head() -> bytes:
        try:
            return b"".join(_chunks(file, entry, before + entry.header, HEAD))
        except (OSError, ValueError):
            return b""

    if is_image(entry.name, head) or is_video(entry.name, head):
        return True
    notes.ignore(entry.name)
    return False


def _checked(file: OpenFile, entry: Entry, header: int) -> Iterator[bytes]:
    """Yield a member's content. Raises `ValueError` at its end if its size or its checksum is wrong."""
    size = crc = 0
    for data in _chunks(file, entry, header, entry.size + 1):
        size, crc = size + len(data), zlib.crc32(data, crc)
        yield data
    if size != entry.size:
        found = "more" if size > entry.size else f"{size}"
        raise ValueError(f"the archive is damaged there: it says {entry.size} bytes and has {found}")
    if crc != entry.crc:
        raise ValueError("the archive is damaged there: the checksum differs")


def _unpacked(file: OpenFile, entry: Entry, header: int) -> BufferedIOBase:
    """Return a member's content as a temporary file, because a compressed member cannot seek."""
    check_bytes(entry.size)
    with ExitStack() as opened:
        unpacked = opened.enter_context(TemporaryFile())
        for data in _checked(file, entry, header):
            unpacked.write(data)
        opened.pop_all()
        return FilePart(unpacked, 0, entry.size)


def _chunks(file: OpenFile, entry: Entry, header: int, most: int) -> Iterator[bytes]:
    """Yield at most `most` bytes of a member's content."""
    if entry.flags & ENCRYPTED:
        raise ValueError("is encrypted; unpack the archive with its password")
    if entry.method not in METHODS:
        name = OTHER_METHODS.get(entry.method, "unknown")
        raise ValueError(
            f"is compressed by method {entry.method} ({name}), which is not supported; repack it with Deflate"
        )
    file.seek(_start(file, header))
    try:
        yield from METHODS[entry.method](_Window(file, entry.stored), most, entry.size)
    except (zlib.error, lzma.LZMAError, EOFError, OSError, pa.ArrowException, struct.error, OverflowError) as error:
        raise ValueError(f"the archive is damaged there ({str(error) or type(error).__name__})") from error


def _start(file: OpenFile, header: int) -> int:
    """Return the offset of a member's stored bytes."""
    file.seek(min(header, MAX_OFFSET))
    fixed = file.read(LOCAL.size)
    if len(fixed) < LOCAL.size or not fixed.startswith(IS_LOCAL):
        raise ValueError("the archive is damaged there: the member has no header")
    return file.tell() + sum(LOCAL.unpack(fixed)[-2:])


class _Window:
    """Reads at most `size` further bytes of a file."""

    def __init__(self, file: OpenFile, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


# A method takes the stored bytes, the most bytes to yield, and the size that the archive claims.
Method = Callable[[_Window, int, int], Iterator[bytes]]


def _stored(window: _Window, most: int, _: int) -> Iterator[bytes]:
    while data := window.read(min(most, STORED)):
        most -= len(data)
        yield data


def _deflate(window: _Window, most: int, _: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    while most > 0 and not inflate.eof:
        data = inflate.unconsumed_tail or window.read(CHUNK)
        found = inflate.decompress(data, most)
        if not data and not found:
            return
        most -= len(found)
        yield found


def _bzip2(window: _Window, most: int, _: int) -> Iterator[bytes]:
    yield from _decompressed(bz2.BZ2Decompressor(), window, most)


def _xz(window: _Window, most: int, _: int) -> Iterator[bytes]:
    yield from _decompressed(lzma.LZMADecompressor(lzma.FORMAT_XZ), window, most)


def _lzma(window: _Window, most: int, size: int) -> Iterator[bytes]:
    _, length = struct.unpack("<2H", window.read(4))
    settings, dictionary = struct.unpack_from("<BL", window.read(length))
    settings, lc = divmod(settings, 9)
    pb, lp = divmod(settings, 5)
    # Content refers back at most by its own length, so a claim of 4 GB need not be allocated.
    dictionary = min(dictionary, max(4096, min(size, MAX_IMAGE_BYTES)))
    filters = [{"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": pb, "dict_size": dictionary}]
    yield from _decompressed(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters), window, most)


def _zstd(window: _Window, most: int, _: int) -> Iterator[bytes]:
    with pa.CompressedInputStream(pa.BufferReader(window.read(MAX_IMAGE_BYTES)), "zstd") as stream:
        yield stream.read(most)


def _decompressed(by: bz2.BZ2Decompressor | lzma.LZMADecompressor, window: _Window, most: int) -> Iterator[bytes]:
    while most > 0 and not by.eof:
        data = window.read(CHUNK) if by.needs_input else b""
        if by.needs_input and not data:
            return
        found = by.decompress(data, most)
        most -= len(found)
        yield found


METHODS: dict[int, Method] = {0: _stored, 8: _deflate, 12: _bzip2, 14: _lzma, 20: _zstd, 93: _zstd, 95: _xz}
