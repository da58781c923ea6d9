"""Images and videos in `.tar` files.

Headers are parsed here, so that members are listed as GNU tar does and after damage too.
"""

import hashlib
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase, BytesIO
from itertools import groupby
from pathlib import PurePosixPath

from vitbackbone.files import FilePart, OpenFile, RangedFile
from vitbackbone.images import HEAD
from vitbackbone.store.sources.archive import ArchiveMember, NotAFile, check_bytes, damaged_member, folder_of
from vitbackbone.store.sources.labels import Label, as_text
from vitbackbone.store.sources.names import Notes, check_name, escaped, extension, is_hidden, is_image, is_video
from vitbackbone.store.sources.remote import open_file, version_of

BLOCK = 512
ZEROS = bytes(BLOCK)
MAX_EXTENSION = 2**20  # bytes of a long name or a PAX header; usual ones have some hundred
MAX_LABEL = 4096  # bytes of a .cls file
MAX_LINKS = 16  # in a chain
READ_AHEAD = 2**20  # members of a remote archive up to this many bytes are read with the listing
CHUNK = 2**20  # bytes to search at a time for the next header

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x5d\0\0\x80": "lzma",
}

HARD_LINK, SYMBOLIC_LINK, FOLDERS, SPARSE = b"1", b"2", (b"5", b"D"), b"S"
PLAIN_FILES = (b"0", b"\0", b"7")
NO_FILES = (b"3", b"4", b"6", b"M", b"V")  # devices, pipes, fragments of files, volume labels


class NoHeader(ValueError):
    """There is no valid header at this place."""


@dataclass(frozen=True)
class DamagedPlace:
    """A damaged place and its fault."""

    offset: int
    text: str


@dataclass(frozen=True)
class Entry:
    """A header with its PAX attributes and long names."""

    name: str
    kind: bytes
    offset: int  # offset of the first block, which may be a PAX header or a long name
    start: int  # offset of the data
    size: int  # size of the file
    stored: int  # bytes of the data; a sparse file has fewer than its size
    link: str

    @property
    def end(self) -> int:
        return self.start + -(-self.stored // BLOCK) * BLOCK

    @property
    def is_file(self) -> bool:
        return self.kind not in (HARD_LINK, SYMBOLIC_LINK, *FOLDERS, *NO_FILES)

    @property
    def is_link(self) -> bool:
        return self.kind in (HARD_LINK, SYMBOLIC_LINK)


class Tar:
    """A plain tar; a compressed tar has no offsets. A member's label is the `.cls` file with its key, else its folder.
    Files of one key stand together (webdataset's own docs/webdataset.md)."""

    def __init__(self, file: str, private: bool = False) -> None:
        self.file = file
        self.private = private

    def members(self, notes: Notes) -> Iterator[ArchiveMember]:
        with open_file(self.file, self.private) as file:
            _check_plain(file.read(8))
            for _, group in groupby(_entries(file, notes), _key):
                sample = list(group)
                label = _label(file, sample, notes)
                for entry in sample:
                    if isinstance(entry, DamagedPlace):
                        yield damaged_member(entry.offset, entry.text)
                    elif _is_wanted(file, entry, notes):
                        size = entry.size if entry.is_file else -1
                        digest = _digest(file, entry) if isinstance(file, RangedFile) else None
                        folder = label or folder_of(entry.name)
                        yield ArchiveMember(entry.name, entry.offset, size, folder, sha256=digest)

    def class_names(self) -> list[str]:
        return []

    def read(self, name: str, offset: int, size: int) -> bytes:
        with open_file(self.file, self.private) as file:
            entry = self._found(file, name, offset)
            check_bytes(entry.size)
            if entry.kind == SPARSE:
                return _read_sparse(file, entry)
            file.seek(entry.start)
            return file.read(entry.size)

    def open(self, name: str, offset: int) -> BufferedIOBase:
        file = open_file(self.file, self.private)
        with ExitStack() as opened:
            opened.callback(file.close)
            entry = self._found(file, name, offset)
            if entry.kind == SPARSE:
                check_bytes(entry.size)
                return BytesIO(_read_sparse(file, entry))
            opened.pop_all()
            return FilePart(file, entry.start, entry.size)

    def _found(self, file: OpenFile, name: str, offset: int) -> Entry:
        """Return the entry of a member that is a file; for a link, the entry that it leads to."""
        check_name(name)
        if offset < 0:
            _check_plain(file.read(8))
            raise ValueError("the archive is damaged there")
        entry = _entry_at(file, offset)
        if entry.name != name:
            raise ValueError(f"the archive has changed: it has the member {entry.name!r} there")
        if entry.is_link:
            entry = _target(file, self.file, self.private, entry)
        if not entry.is_file:
            raise NotAFile("is not a regular file in its archive")
        return entry


def _check_plain(start: bytes) -> None:
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"is compressed by {kind}; unpack it to a plain .tar")


def _entries(file: OpenFile, notes: Notes) -> Iterator[Entry | DamagedPlace]:
    """Yield entries and damaged places in order. After a damaged place, it searches for the next header."""
    length = file.seek(0, os.SEEK_END)
    at, shown = 0, escaped(PurePosixPath(file.name).name)
    while at < length:
        try:
            if _is_end(file, at, length):
                if _next_header(file, at + 2 * BLOCK, length) < length:
                    notes.say("archives with more members behind their end mark, which are not read", shown)
                return
            entry = _entry(file, at, length)
        except NoHeader as error:
            following = _next_header(file, at + BLOCK, length)
            behind = f"the next one is at byte {following}" if following < length else "none follows"
            yield DamagedPlace(at, f"the archive has no valid header there: {error}; {behind}")
            at = following
            if at >= length:
                return
        else:
            yield entry
            at = entry.end
            if entry.start + entry.stored > length:
                yield DamagedPlace(length, f"the archive was cut: it ends within {entry.name!r}")
                return
    if length:
        notes.say("archives without an end mark, which may have been cut", shown)


def _is_end(file: OpenFile, at: int, length: int) -> bool:
    """Tell whether the end mark, two blocks of zeros, is there. Raises `NoHeader` on a single block of zeros."""
    file.seek(at)
    if file.read(BLOCK) != ZEROS:
        return False
    if at + BLOCK < length and file.read(BLOCK) != ZEROS[: length - at - BLOCK]:
        raise NoHeader("a single block of zeros")
    return True


def _next_header(file: OpenFile, at: int, length: int) -> int:
    """Return the offset of the next header; `length` if there is none."""
    for start in range(at, length, CHUNK):
        file.seek(start)
        data = file.read(CHUNK)
        for offset in range(0, len(data) - BLOCK + 1, BLOCK):
            block = data[offset : offset + BLOCK]
            if block[148:156].strip(b" \0").isdigit() and _has_checksum(block):
                return start + offset
    return length


def _has_checksum(header: bytes) -> bool:
    try:
        wanted = _number(header[148:156])
    except NoHeader:
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(rest)
    # Old programs sum signed bytes.
    return wanted == unsigned or wanted == unsigned - 256 * sum(byte > 127 for byte in rest)


def _number(field: bytes) -> int:
    """Return the number in a header field: octal digits, or 0x80 and big-endian bytes."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    else:
        digits = field.split(b"\0", 1)[0].strip() or b"0"
        if not re.fullmatch(rb"[0-7]+", digits):
            raise NoHeader(f"{digits!r} is not an octal number")
        value = int(digits, 8)
    if value < 0:
        raise NoHeader(f"a size of {value}")
    return value


def _header(file: OpenFile, at: int) -> bytes:
    file.seek(at)
    header = file.read(BLOCK)
    if len(header) < BLOCK:
        raise NoHeader("the archive ends there")
    if not _has_checksum(header):
        raise NoHeader("its checksum is wrong")
    return header


def _entry(file: OpenFile, at: int, length: int) -> Entry:
    """Read the entry that begins at `at`. Raises `NoHeader` if it is not valid."""
    first, pax, long = at, dict[bytes, bytes](), dict[bytes, bytes]()
    header = _header(file, at)
    while (kind := header[156:157]) in (b"x", b"X", b"g", b"L", b"K"):
        size = _number(header[124:136])
        if size > MAX_EXTENSION:
            raise NoHeader(f"it claims a name or attributes of {size} bytes")
        data = file.read(size)
        if kind in (b"L", b"K"):
            long[kind] = data.split(b"\0", 1)[0]
        elif kind != b"g":  # global attributes, such as a comment, are skipped
            pax |= _pax(data)
        at += BLOCK + -(-size // BLOCK) * BLOCK
        header = _header(file, at)

    name, link = header[:100].split(b"\0", 1)[0], header[157:257].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    if prefix and header[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    name = pax.get(b"GNU.sparse.name", pax.get(b"path", long.get(b"L", name)))
    link = pax.get(b"linkpath", long.get(b"K", link))
    stored = _decimal(pax, b"size", _number(header[124:136]))
    size, start = stored, at + BLOCK
    if kind == SPARSE:
        size, more = _number(header[483:495]), header[482]
        while more:
            file.seek(start)
            block = file.read(BLOCK)
            if len(block) < BLOCK:
                raise NoHeader("the archive ends in the map of a sparse file")
            more, start = block[504], start + BLOCK
    elif any(key.startswith(b"GNU.sparse.") for key in pax):
        size = _decimal(pax, b"GNU.sparse.realsize", _decimal(pax, b"GNU.sparse.size", stored))
        kind = SPARSE
    elif kind == HARD_LINK:
        stored = 0
    elif kind in (b"0", b"\0") and name.endswith(b"/"):  # a folder, as early programs wrote it
        kind = b"5"
    return Entry(os.fsdecode(name), kind, first, start, size, stored, os.fsdecode(link))


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Return the records of a PAX header: each "LENGTH KEY=VALUE\\n"."""
    records: dict[bytes, bytes] = {}
    while data:
        found = re.match(rb"(\d{1,8}) ([^=]+)=", data)
        length = int(found[1]) if found else 0
        if not found or length < found.end() + 1 or data[length - 1 : length] != b"\n":
            raise NoHeader("its attributes are damaged")
        records[found[2]] = data[found.end() : length - 1]
        data = data[length:]
    return records


def _decimal(records: dict[bytes, bytes], key: bytes, default: int) -> int:
    value = records.get(key)
    if value is None:
        return default
    if not re.fullmatch(rb"\d{1,18}", value):
        raise NoHeader(f"it claims {key.decode()}={value[:30]!r}")
    return int(value)


def _entry_at(file: OpenFile, offset: int) -> Entry:
    return _entry(file, offset, file.seek(0, os.SEEK_END))


def _is_wanted(file: OpenFile, entry: Entry, notes: Notes) -> bool:
    """Tell whether a member is an image or a video, by its name or content."""
    if entry.kind in (*FOLDERS, b"V") or is_hidden(entry.name):
        return False

    def head() -> bytes:
        file.seek(entry.start)
        return file.read(min(HEAD, entry.stored)) if entry.is_file and entry.kind != SPARSE else b""

    if is_image(entry.name, head) or is_video(entry.name, head):
        return True
    if extension(entry.name) != "cls":
        notes.ignore(entry.name)
    return False


def _digest(file: RangedFile, entry: Entry) -> bytes | None:
    """Return the SHA-256 of a small member of a remote archive: its bytes came with the headers around it, and need
    not be asked for again. Return None if only `Tar.read` can read its content."""
    if entry.kind not in PLAIN_FILES or not 0 < entry.size <= READ_AHEAD:
        return None
    file.seek(entry.start)
    data = file.read(entry.size)
    return hashlib.sha256(data).digest() if len(data) == entry.size else None


def _key(entry: Entry | DamagedPlace) -> str | int:
    if isinstance(entry, DamagedPlace):
        return entry.offset
    folder, _, base = entry.name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def _label(file: OpenFile, sample: Sequence[Entry | DamagedPlace], notes: Notes) -> Label:
    """Return the label in the `.cls` file of a sample; None if it has none."""
    for entry in sample:
        if not isinstance(entry, Entry) or extension(entry.name) != "cls" or is_hidden(entry.name):
            continue
        if not entry.is_file or entry.kind == SPARSE or entry.stored > MAX_LABEL:
            notes.say(
                f"label files that are not read, since only files of at most {MAX_LABEL} bytes are", escaped(entry.name)
            )
            continue
        file.seek(entry.start)
        return as_text(file.read(entry.stored).decode("utf-8", "backslashreplace"))
    return None


@lru_cache(1)  # a process reads the members of one archive in turn
def _offsets(file: str, private: bool, _: str) -> dict[str, list[int]]:
    """Return the offsets of the headers of each name. The last argument is the file's version."""
    found: dict[str, list[int]] = {}
    with open_file(file, private) as opened:
        for entry in _entries(opened, Notes()):
            if isinstance(entry, Entry):
                found.setdefault(posixpath.normpath(entry.name), []).append(entry.offset)
    return found


def _target(file: OpenFile, path: str, private: bool, link: Entry) -> Entry:
    """Return the member that a link leads to, as in an unpacked archive."""
    offsets = _offsets(path, private, version_of(file))
    entry = link
    for _ in range(MAX_LINKS):
        hard = entry.kind == HARD_LINK
        name = posixpath.normpath(entry.link if hard else posixpath.join(posixpath.dirname(entry.name), entry.link))
        check_name(name)
        places = offsets.get(name, [])
        before = [place for place in places if place < entry.offset] if hard else []
        if not places:
            raise ValueError(f"links to {entry.link!r}, which is not in its archive")
        entry = _entry_at(file, (before or places)[-1])
        if not entry.is_link:
            return entry
    raise ValueError(f"links to {link.link!r}, which leads in a circle or through more than {MAX_LINKS} links")


def _read_sparse(file: OpenFile, entry: Entry) -> bytes:
    """Return the bytes of a sparse file."""
    file.seek(entry.offset)
    try:
        with tarfile.TarFile(fileobj=file) as archive:
            info = archive.next()
            opened = archive.extractfile(info) if info and info.size == entry.size else None
            if opened is None:
                raise ValueError("the map of a sparse file is damaged there")
            return opened.read()
    except (tarfile.TarError, ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"the map of a sparse file is damaged there ({error})") from error
