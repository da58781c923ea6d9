"""Where an input lies, a file by itself or a member of an archive, and its bytes."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from vitbackbone.store.archive import MAX_IMAGE_BYTES, NotAFile
from vitbackbone.store.names import Escape
from vitbackbone.store.source import ARCHIVES

Reason = Literal[
    "missing",
    "denied",  # no permission
    "not a file",  # a folder, a pipe
    "outside",  # a member whose name leads out of its archive
    "empty",
    "too large",
    "unreadable",  # any other error of the file system or of the archive
    "changed",  # since the run began
    "unknown format",
    "bomb",  # more pixels than is sane, by its header
    "damaged",
    "unsupported",  # whole, but of values without an agreed meaning
    "too thin",
    "not finite",  # its features are NaN or Inf
]


class Unreadable(Exception):
    """An input that cannot be read. The text is what users see: the same on every run, so without absolute paths."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Locator:
    file: str  # itself, or its archive
    member: str = ""  # its name in the archive
    offset: int = -1  # see `archive.Member`
    bytes: int = -1


def read_bytes(at: Locator) -> bytes:
    """Raises `Unreadable`."""
    try:
        return _read_member(at) if at.member else _read_file(Path(at.file))
    except FileNotFoundError as error:
        raise Unreadable("missing", _text(error)) from error
    except PermissionError as error:
        raise Unreadable("denied", _text(error)) from error
    except Escape as error:
        raise Unreadable("outside", _text(error)) from error
    except NotAFile as error:
        raise Unreadable("not a file", _text(error)) from error
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a null character in the path
        raise Unreadable("unreadable", _text(error)) from error


def _read_file(path: Path) -> bytes:
    if not path.is_file():  # a device may act when it is opened
        status = path.stat()
        raise Unreadable("not a file", "is a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # it was one a moment ago
            raise Unreadable("not a file", "not a regular file")
        _check_size(status.st_size)
        data = file.read(MAX_IMAGE_BYTES + 1)
    _check_size(len(data))  # it may grow meanwhile
    return data


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_member(at: Locator) -> bytes:
    if at.bytes >= 0:
        _check_size(at.bytes)
    data = ARCHIVES[Path(at.file).suffix.lower()](Path(at.file)).read(at.member, at.offset, at.bytes)
    _check_size(len(data))
    if len(data) != at.bytes >= 0:
        raise Unreadable("damaged", f"the archive says {at.bytes} bytes and has {len(data)}")
    return data


def _check_size(size: int) -> None:
    if not 0 < size <= MAX_IMAGE_BYTES:
        reason: Reason = "too large" if size else "empty"
        raise Unreadable(reason, f"the file has {size} bytes; want 1 to {MAX_IMAGE_BYTES}")


def _text(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error) or type(error).__name__
