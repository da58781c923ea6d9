"""A remote file that is read by ranges, as an open file of Python."""

import io
from collections.abc import Callable
from dataclasses import dataclass

SMALLEST = 1 << 18  # bytes of a first read: a whole photo in one request
LARGEST = 1 << 24  # bytes that are read ahead of a reader that goes through the file
BEHIND = 1 << 20  # bytes that are kept for a reader that goes back a little
WINDOWS = 3  # places of a file that are read in turn, such as the directory of an archive and its members


@dataclass
class _Window:
    """A part of the file that has been read."""

    start: int
    data: bytes
    ahead: int  # bytes of the last request

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class RangedContent:
    """The content of a remote file, with the parts that were read last.

    A reader that goes forward gets longer and longer reads, up to `LARGEST`; one that jumps gets `SMALLEST`. For one
    thread. `read`: returns the bytes from an offset on, of a given length. `version` changes with the content.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, version: str) -> None:
        self.size = size
        self.version = version
        self._read = read
        self._windows: list[_Window] = []  # the one that was used last comes last

    def read(self, at: int, length: int) -> bytes:
        length = min(length, self.size - at)
        if length <= 0:
            return b""
        window = next((window for window in self._windows if self._follows(window, at)), None)
        if window is None:
            window = _Window(at, b"", SMALLEST // 2)
            self._windows = self._windows[1 - WINDOWS :]
        else:
            self._windows.remove(window)
        self._windows.append(window)
        if at + length > window.end:
            self._advance(window, at, length)
        start = at - window.start
        return window.data[start : start + length]

    def _follows(self, window: _Window, at: int) -> bool:
        return window.start <= at <= window.end + window.ahead

    def _advance(self, window: _Window, at: int, length: int) -> None:
        """Read on from the end of the window, so that it holds the asked range. A gap before it is read, too, since it
        is small, and a reader that has looked ahead may come back."""
        window.ahead = min(2 * window.ahead, LARGEST)
        start = max(window.start, min(at - BEHIND, window.end))
        kept = window.data[start - window.start :]
        begin = window.end
        wanted = min(max(at + length - begin, window.ahead), self.size - begin)
        data = self._read(begin, wanted)
        if len(data) != wanted:
            raise OSError(f"asked for {wanted} bytes at byte {begin} and got {len(data)}")
        window.start, window.data = start, kept + data


class _Seekable(io.BufferedIOBase):
    """A file that reads from any position."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"byte {base + offset} is before the file")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        data = self._read_at(self._at, left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(SMALLEST if size < 0 else size)

    def _read_at(self, at: int, size: int) -> bytes:
        raise NotImplementedError


class RangedFile(_Seekable):
    """A handle on a `RangedContent`, which outlives it."""

    def __init__(self, content: RangedContent, name: str) -> None:
        super().__init__(content.size)
        self.content = content
        self.name = name

    def _read_at(self, at: int, size: int) -> bytes:
        return self.content.read(at, size)


class FilePart(_Seekable):
    """A part of an open file, as a file of its own. Closing it closes the file, too."""

    def __init__(self, file: io.BufferedIOBase, start: int, size: int) -> None:
        super().__init__(max(0, min(size, file.seek(0, io.SEEK_END) - start)))
        self._file = file
        self._start = start

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read_at(self, at: int, size: int) -> bytes:
        self._file.seek(self._start + at)
        return self._file.read(size)


OpenFile = io.BufferedReader | RangedFile  # a file on disk, or a remote file that is read by ranges
