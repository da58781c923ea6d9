"""Images and videos inside one file: `.tar` (also of WebDataset), `.zip`, `.parquet`.

They are read in place. Nothing is unpacked, a member's name never becomes a path on disk, and a name that leads out of
the archive is refused. A member is identified by its position in the archive, so two members of one name are two
images. No file stays open between two reads, so processes and threads share nothing. An archive in a bucket is read by
the same code as one on the disk (`remote.open_file`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Protocol, runtime_checkable

from vitbackbone.store.sources.labels import Folder, Label
from vitbackbone.store.sources.names import Notes

MAX_IMAGE_BYTES = 2**30  # the largest image that passes the pixel limit is half of this
Digest = bytes  # a name of its own beside the field `bytes`
WHOLE = "[archive]"  # the name of the row for an archive that cannot be listed


class NotAFile(ValueError):
    """The member is a pipe, a device or a fragment of a file."""


@dataclass(frozen=True)
class ArchiveMember:
    """An image of an archive, or a damaged place that may have held images."""

    name: str  # POSIX
    offset: int  # offset of its header, or number of its row; -1 if it has none
    bytes: int  # size; -1 if it is unknown before reading
    label: Label
    damage: str | None = None  # the fault at a damaged place; None for an image
    sha256: Digest | None = None  # checksum of its content, if the listing has read it anyway


def damaged_member(offset: int, text: str, name: str | None = None) -> ArchiveMember:
    """Return the member for a damaged place. Reading it raises an error, which its row records."""
    return ArchiveMember(name or f"[damage at byte {offset}]", offset, -1, None, text)


@runtime_checkable
class Archive(Protocol):
    """Lists and reads one kind of archive. Raises only `OSError` and `ValueError`."""

    def __init__(self, file: str, private: bool = False) -> None:
        """`file`: a path or a URL. `private`: as for `remote.open_file`."""

    def members(self, notes: Notes) -> Iterator[ArchiveMember]:
        """Yield the images and damaged places in the archive's order. Files that are left out are noted in `notes`."""
        ...

    def class_names(self) -> list[str]:
        """Return the class names of whole-number labels; empty if the archive has none."""
        ...

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return the bytes of a member. Raises `Escape` if its name leads out of the archive."""
        ...

    def open(self, name: str, offset: int) -> BufferedIOBase:
        """Open a large member, such as a video, as a file that can seek. Raises as `read`."""
        ...


def check_bytes(size: int) -> None:
    """Raise `ValueError` if a member is larger than `MAX_IMAGE_BYTES`."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"the image has {size} bytes; want at most {MAX_IMAGE_BYTES}")


def folder_of(name: str) -> Folder | None:
    """Return the folder of a member as its label; None if its name leads out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if name.startswith("/") or ".." in parts else Folder(tuple(parts[:-1]))
