"""Standard streams that may be closed, full, or without a reader."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ReaderGone(Exception):
    """The program that read standard output has ended, as `head` does."""


class _Guard:
    """A text stream that passes everything on and handles failed writes."""

    def __init__(self, stream: Any) -> None:  # None if Python found it closed
        self._closed = stream is None
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115, PTH123  # open as long as the process lives

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            if self._closed:
                raise OSError(errno.EBADF, "it is closed")
            return self._stream.write(text)
        except OSError as error:
            self.failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.failed(error)

    def failed(self, error: OSError) -> None:
        """Drop the buffer, because Python's own flush at exit would fail again and print a traceback."""
        if not self._closed:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class _Results(_Guard):
    """Standard output. A failed write is an error, because the user would lose a result."""

    def failed(self, error: OSError) -> None:
        super().failed(error)
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        raise OSError(error.errno, f"cannot write to standard output: {error.strerror}") from error


class _Notes(_Guard):
    """Standard error. A failed write ends no work: the exit code still tells the result."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard `sys.stdout` and `sys.stderr` while a command runs."""
    _occupy_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the locale may lack a character
    sys.stdout, sys.stderr = _Results(before[0]), _Notes(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _occupy_closed() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise the next opened file would take its number, and a library's message to standard error would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
