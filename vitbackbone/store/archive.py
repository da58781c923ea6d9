"""Images that lie in one file: `.tar` (as WebDataset has it), `.zip`, `.parquet`. They are read in place, and nothing
is unpacked: a member's name never becomes a path on disk, and a name that leads out of the archive is refused.

A member is found again by a position in its archive, and no file stays open between two reads. So processes and threads
share nothing, and two members of one name are two images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from vitbackbone.store.labels import Folder, Label
from vitbackbone.store.names import Notes

MAX_IMAGE_BYTES = 2**30  # the largest image that passes the pixel limit is half of this
WHOLE = "[archive]"  # what a row is called that stands for an archive without a readable list


class NotAFile(ValueError):
    """A member that is a pipe, a device or part of a file."""


@dataclass(frozen=True)
class Member:
    """An image of an archive, or a damaged place, which may have held some."""

    name: str  # POSIX
    offset: int  # where the archive describes it, or its row; -1 where there is no such place
    bytes: int  # how many; -1 if that is not known before it is read
    label: Label
    damage: str | None = None  # what is wrong at a damaged place


def damaged(offset: int, text: str, name: str | None = None) -> Member:
    """Return the member that stands for a damaged place. To read it raises an error, which becomes its row."""
    return Member(name or f"[damage at byte {offset}]", offset, -1, None, text)


@runtime_checkable
class Archive(Protocol):
    """How one kind of file is listed and read. Errors come out as `OSError` or `ValueError`."""

    def __init__(self, file: Path) -> None: ...

    def members(self, notes: Notes) -> Iterator[Member]:
        """Yield the images in the archive's order, and what is damaged between them. `notes` gets a word about what is
        left out."""
        ...

    def class_names(self) -> list[str]:
        """Return what whole-number labels mean; empty if the file does not say so."""
        ...

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return a member's bytes. Raises `Escape` if its name leads out of the archive."""
        ...


def check_bytes(size: int) -> None:
    """Raise `ValueError` if a member is larger than any image."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"it has {size} bytes; want at most {MAX_IMAGE_BYTES}")


def folder_of(name: str) -> Folder | None:
    """Return the folder that a member lies in, as its label; None if its name leads out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if name.startswith("/") or ".." in parts else Folder(tuple(parts[:-1]))
