"""Remote inputs: in a bucket, on the Hugging Face Hub, or on the web.

A place is text: a path of this machine, or a URL. This module opens both alike, so that the same code lists and reads
an archive anywhere. A remote file is read by ranges and never held whole.
"""

import errno
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from vitbackbone.files import (
    MAX_BYTES,
    READ_PART,
    OpenFile,
    RangedContent,
    RangedFile,
    Stored,
    fetch,
    open_bucket,
    size_of,
)

SCHEMES = ("s3", "gs", "az", "hf", "http", "https")
MOST_OPEN = 2  # remote files for which a thread keeps the parts that it read last
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)

_known = threading.local()  # the remote files that this thread has opened
_editions: dict[str, int] = {}  # how often each remote file was opened again


class Changed(ValueError):
    """The file has changed while it was read."""


@runtime_checkable
class Remote(Protocol):
    """A service with files. Raises only `OSError` and `ValueError`."""

    def describe(self, key: str) -> Stored:
        """Return the size and the version of a file. Raises `FileNotFoundError` if it is missing."""

    def read(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        """Return `length` bytes from `start` on; fewer only at the end. Raises `Changed` for another version."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield the files whose keys begin with a prefix, sorted."""


def is_remote(place: str) -> bool:
    """Tell whether a place is a URL."""
    return _URL.match(place) is not None


def split(place: str, private: bool = False) -> tuple[Remote, str]:
    """Return the service of a URL, and the key in it.

    `private`: whether an address of the web may be private. Raises `ValueError` if the scheme is not one of `SCHEMES`.
    """
    found = _URL.match(place)
    scheme = found[1].lower() if found else ""
    if not found or scheme not in SCHEMES:
        raise ValueError(f"has the scheme {scheme!r}; want one of {', '.join(SCHEMES)}")
    if scheme == "hf":
        return _hub(), found[2]
    if scheme in ("http", "https"):
        return _Web(private), place
    bucket, _, key = found[2].partition("/")
    return _bucket(f"{scheme}://{bucket}"), key


def open_file(place: str, private: bool = False, anew: bool = False) -> OpenFile:
    """Open a file for reading. `anew`: forget what this process knows about a remote file."""
    if not is_remote(place):
        return Path(place).open("rb")
    if anew:
        _editions[place] = _editions.get(place, 0) + 1
    return RangedFile(_content(place, private), place)


def version_of(file: OpenFile) -> str:
    """Return a text that changes when an open file is written: the ETag, or the modification time."""
    if isinstance(file, RangedFile):
        return file.content.version
    return str(os.fstat(file.fileno()).st_mtime_ns)


def read_remote(place: str, most: int, private: bool = False) -> bytes:
    """Return at most `most` bytes of a remote file."""
    service, key = split(place, private)
    return service.read(key, 0, most)


def _content(place: str, private: bool) -> RangedContent:
    """Return the content of a remote file, and what this thread has read of it."""
    if not hasattr(_known, "contents"):
        _known.contents = OrderedDict()
    contents: OrderedDict[tuple[str, bool, int], RangedContent] = _known.contents
    key = (place, private, _editions.get(place, 0))
    if key not in contents:
        contents[key] = _opened(place, private)
        if len(contents) > MOST_OPEN:
            contents.popitem(last=False)
    contents.move_to_end(key)
    return contents[key]


def _opened(place: str, private: bool) -> RangedContent:
    service, name = split(place, private)
    stored = service.describe(name)

    def read(start: int, length: int) -> bytes:
        try:
            return service.read(name, start, length, stored.version or None)
        except Changed:
            _editions[place] = _editions.get(place, 0) + 1
            raise

    return RangedContent(read, stored.size, stored.version)


class _Bucket:
    """A bucket as a service with files."""

    def __init__(self, name: str) -> None:
        self.storage = open_bucket(name)

    def describe(self, key: str) -> Stored:
        stored = self.storage.head(key)
        if stored is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.storage.url}/{key}")
        return stored

    def read(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        from obstore.exceptions import PreconditionError

        etag = (version or "-").partition(" ")[0]
        read = self.storage.read_parts if version and length > READ_PART else self.storage.read
        try:
            return read(key, start, length, etag if etag != "-" else None)
        except PreconditionError as error:
            raise Changed("the file has changed while it was read") from error

    def list(self, prefix: str) -> Iterator[Stored]:
        yield from self.storage.list(prefix)


@dataclass(frozen=True)
class _Web:
    """The web: keys are whole URLs."""

    private: bool

    def describe(self, key: str) -> Stored:
        answer = fetch(key, 0, 1, private=self.private)  # some servers refuse HEAD
        return Stored(key, size_of(answer), answer.version)

    def read(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        if start == 0 and length >= MAX_BYTES:
            return fetch(key, private=self.private).body
        answer = fetch(key, start, length, private=self.private)
        if version and answer.version != version:
            raise Changed("the file has changed while it was read")
        return answer.body

    def list(self, prefix: str) -> Iterator[Stored]:
        raise ValueError("the web cannot be listed; give the URL of a list (.csv, .parquet, .txt) or of an archive")


@lru_cache(64)
def _bucket(name: str) -> _Bucket:
    return _Bucket(name)


@lru_cache(1)
def _hub() -> Remote:
    from vitbackbone.store.sources.hub import Hub

    return Hub()
