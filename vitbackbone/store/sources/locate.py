"""Locate an input, a plain file or a member of an archive, and read its bytes."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from vitbackbone.files import FileTooLarge, ServiceDown, ServiceError
from vitbackbone.images import HeldPhoto, ImageError, Photo
from vitbackbone.store.sources.archive import MAX_IMAGE_BYTES, NotAFile
from vitbackbone.store.sources.archive_kinds import ARCHIVES, ending_of
from vitbackbone.store.sources.frames import VideoPlace, check_video, frame_identity, read_frame, video_place
from vitbackbone.store.sources.names import Escape
from vitbackbone.store.sources.remote import is_remote, read_remote
from vitbackbone.store.sources.rows import Root

Reason = Literal[
    "missing",
    "denied",  # no permission
    "not a file",  # a folder, a pipe
    "outside",  # the member's name leads out of its archive
    "empty",
    "too large",
    "unreadable",  # any other error of the file system or of the archive
    "changed",  # since the run began
    "unknown format",
    "bomb",  # its header claims too many pixels
    "damaged",
    "unsupported",  # undamaged, but its values have no agreed meaning
    "too thin",
    "not finite",  # its features are NaN or Inf
]

AWAY = ("missing", "denied", "unreadable")  # the content may still be what it was
PASSING = (*AWAY, "changed")  # faults that may pass by themselves; every run tries these inputs again

# What would heal a failed input, for whoever reads its row.
REMEDIES: dict[Reason, str] = {
    "missing": "put the file back; every run tries it again",
    "denied": "give permission to read the file; every run tries it again",
    "not a file": "put a regular file in its place; every run tries it again",
    "outside": "pack the archive again without names that lead out of it",
    "empty": "replace the file; every run tries it again",
    "too large": "make the file smaller",
    "unreadable": "check the disk, the network or the archive; every run tries it again",
    "changed": "run again when nothing writes the file",
    "unknown format": "convert the file to a known format, or take it out of the source",
    "bomb": "raise --max-pixels and run with --retry-failed, if the picture is really so large",
    "damaged": "replace the file by an undamaged copy",
    "unsupported": "convert the file to 8 or 16 bits a channel in RGB",
    "too thin": "crop the picture, or run without --keep-aspect into another store",
    "not finite": "extract in float32 into another store",
}
GONE_REMEDY = "it is no longer in the source; `vitbackbone prune STORE --gone` removes its row"


def remedies(reasons: pa.ChunkedArray, gone: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return what would heal each failed input, null for others. `gone`: whether it is no longer in the source."""
    healed = pa.array(list(REMEDIES.values())).take(pc.index_in(reasons, pa.array(list(REMEDIES))))
    vanished = pc.and_(gone, pc.not_equal(reasons, "missing"))
    return pc.if_else(pc.fill_null(vanished, False), GONE_REMEDY, healed)


AWAY_SERVICE = "the service that holds it did not answer"  # the same text at every run


class Unreadable(Exception):
    """The input cannot be read. Users see the text. It holds no absolute paths, so every run gives the same text."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Locator:
    """The place of an input."""

    file: str  # the input, or its archive: a path or a URL
    member: str = ""  # its name in the archive; empty for a plain file
    offset: int = -1  # see `archive.ArchiveMember`
    bytes: int = -1
    private: bool = False  # as for `remote.open_file`


def locators(root: Root, table: pa.Table, sizes: Sequence[int]) -> list[Locator]:
    """Return the places of the inputs in a table of `ROWS`, `WORK` or `rows.LISTED`."""
    found: list[Locator] = []
    columns = (table[name].to_pylist() for name in ("path", "archive", "offset"))
    for path, archive, offset, size in zip(*columns, sizes, strict=True):
        if archive:
            member = os.fsdecode(path[archive + 1 :])
            found.append(Locator(root.locate(os.fsdecode(path[:archive])), member, offset, size, root.private))
        else:
            found.append(Locator(root.locate(os.fsdecode(path)), private=root.private))
    return found


def read_bytes(at: Locator) -> bytes:
    """Read the bytes of an input. Raises `Unreadable`, and `ServiceDown` if no input of the service can be read."""
    with _as_unreadable():
        video = _video(at)
        if video is not None:
            return _read_frame(*video)
        if at.member:
            return _read_member(at)
        return _read_url(at) if is_remote(at.file) else _read_file(Path(at.file))


@contextmanager
def _as_unreadable() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Unreadable("missing", _text(error)) from error
    except PermissionError as error:
        raise Unreadable("denied", _text(error)) from error
    except ServiceDown:  # a row for each of a million inputs would say no more, and take days
        raise
    except ServiceError as error:
        raise Unreadable("unreadable", AWAY_SERVICE) from error
    except FileTooLarge as error:
        raise Unreadable("too large", _text(error)) from error
    except Escape as error:
        raise Unreadable("outside", _text(error)) from error
    except ImageError as error:
        raise Unreadable(error.reason, str(error)) from error
    except NotAFile as error:
        raise Unreadable("not a file", _text(error)) from error
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: the path has a null character
        raise Unreadable("unreadable", _text(error)) from error


def _read_file(path: Path) -> bytes:
    if not path.is_file():  # a device may act when it is opened
        status = path.stat()
        raise Unreadable("not a file", "is a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # it was replaced since the check above
            raise Unreadable("not a file", "not a regular file")
        _check_size(status.st_size)
        data = file.read(MAX_IMAGE_BYTES + 1)
    _check_size(len(data))  # it may have grown since the check above
    return data


def content_sha256(at: Locator) -> bytes:
    """Return the SHA-256 of an input's content, or a frame's identity without decoding it. Raises `Unreadable`."""
    video = _video(at)
    if video is None or not video[1]:
        return hashlib.sha256(read_bytes(at)).digest()
    with _as_unreadable():
        return frame_identity(*video)


def is_frame(at: Locator) -> bool:
    """Tell whether an input is a frame of a video."""
    video = _video(at)
    return video is not None and bool(video[1])


def _video(at: Locator) -> tuple[VideoPlace, str] | None:
    return video_place(at.file, at.member, at.offset, at.private)


def read_photo(at: Locator, max_pixels: int | None) -> tuple[Photo, bytes]:
    """Return an input as a photo, and the SHA-256 of its content or the identity of a frame. Raises `Unreadable`."""
    with _as_unreadable():
        video = _video(at)
        if video is not None and video[1]:
            pixels, identity = read_frame(*video, max_pixels)
            return HeldPhoto(pixels, max_pixels), identity
        data = read_bytes(at)
        return Photo(data, max_pixels), hashlib.sha256(data).digest()


def _read_frame(place: VideoPlace, name: str) -> bytes:
    """Return a frame as the bytes of a PPM file. A video without a frame is one that cannot be listed: say why."""
    if not is_remote(place.file) and not Path(place.file).is_file():
        return _read_file(Path(place.file))  # raises the right error
    if not name:
        check_video(place)
        raise Unreadable("changed", "the video can be read now; run the same extraction again")
    pixels, _ = read_frame(place, name, None)
    return b"P6 %d %d 255\n" % (pixels.shape[2], pixels.shape[1]) + pixels.permute(1, 2, 0).numpy().tobytes()


def _read_url(at: Locator) -> bytes:
    data = read_remote(at.file, MAX_IMAGE_BYTES + 1, at.private)
    _check_size(len(data))
    return data


def _without_waiting(path: str, flags: int) -> int:
    """Open a file. Without the flag, opening a pipe would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_member(at: Locator) -> bytes:
    if at.bytes >= 0:
        _check_size(at.bytes)
    archive = ARCHIVES[ending_of(at.file)](at.file, at.private)
    data = archive.read(at.member, at.offset, at.bytes)
    _check_size(len(data))
    if len(data) != at.bytes >= 0:
        raise Unreadable("damaged", f"the archive lists {at.bytes} bytes for it and holds {len(data)}")
    return data


def _check_size(size: int) -> None:
    if not 0 < size <= MAX_IMAGE_BYTES:
        reason: Reason = "too large" if size else "empty"
        raise Unreadable(reason, f"the file has {size} bytes; want 1 to {MAX_IMAGE_BYTES}")


def _text(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error) or type(error).__name__
