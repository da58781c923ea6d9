"""One interface over the places that hold a store: a folder of the local disk, or a bucket.

A key is a relative POSIX path, such as `snapshots/00000001.json`. Four operations are enough to publish safely without
rename, fsync or locks. Objects that are named by their content are `put`. Everything else is `create`d once, and two
kinds of small records are `swap`ped.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

CHUNK = 1 << 22  # bytes that are read at a time from a large object
READS = 3  # times that an object is read before it counts as damaged: the network may garble an answer
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")

T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """An object of a storage."""

    key: str
    size: int  # bytes
    version: str  # changes whenever the object is written: the ETag; on the disk, the size, time and inode
    modified: float = 0.0  # seconds since 1970 by the clock of the storage, 0 if it does not say


@runtime_checkable
class Storage(Protocol):
    """A place with objects.

    Every operation either takes place or raises `OSError`: `FileNotFoundError` if the object is missing, and otherwise
    an error that names the object and what to do. Passing faults of a service are retried inside. A storage can be
    pickled and sent to another process, which opens its own connection; it is safe to use by several threads.
    """

    @property
    def url(self) -> str:
        """The place as the user writes it: a path or a URL."""

    def get(self, key: str) -> bytes:
        """Return a whole object."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; fewer only at the end of the object."""

    def head(self, key: str) -> Stored | None:
        """Describe an object. Returns None if it is missing."""

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stored]:
        """Yield the objects whose keys begin with `prefix` and come after `after`, sorted by the UTF-8 of their keys.

        A million keys are streamed. Unfinished files of other writers are not among them.
        """

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object that is named by its content. Writing it again is harmless and repairs a damaged one.

        `data`: its bytes, or a file that `scratch` gave, which is moved away. After a return the object is durable.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none with this key. If several write at once, exactly one wins.

        Returns whether the object now has the content `data`. A service may lose its answer and find one's own object
        on the retry, so that an existing object is read back and compared.
        """

    def swap(self, key: str, data: bytes, version: str) -> str | None:
        """Replace an object if it still has `version`. Returns the new version, or None if another writer was first or
        the object is gone. After a lost answer, one's own content counts as a success."""

    def delete(self, key: str) -> None:
        """Remove an object. A missing one is not an error."""

    def scratch(self) -> AbstractContextManager[Path]:
        """Give a private folder for a file that will be `put`; the folder is removed at the end."""

    def sweep(self) -> None:
        """Remove the unfinished files of writers that were killed."""

    def local_path(self, key: str) -> Path | None:
        """Return the file of an object for memory mapping. None if the place has no files."""


def open_storage(place: str | PathLike[str]) -> Storage:
    """Open the storage of a path or a URL: `s3://`, `gs://`, `az://`, `file://`, or a path of this machine.

    Nothing is made or asked yet. Raises `ValueError` for another scheme.
    """
    from vitbackbone.files.local_storage import LocalStorage

    scheme = scheme_of(place)
    if scheme is None:
        return LocalStorage(Path(place))
    if scheme == "file":
        return LocalStorage(Path(_SCHEME.sub("/", str(place), count=1)))
    if scheme in ("s3", "gs", "az"):
        from vitbackbone.files.object_storage import open_bucket

        return open_bucket(str(place))
    raise ValueError(f"{place} has the scheme {scheme}://; want a folder, s3://, gs:// or az://")


def scheme_of(place: str | PathLike[str]) -> str | None:
    """Return the scheme of a URL in lower case, and None for a path. A URL that became a `Path`, `s3:/a/b`, is one."""
    found = _SCHEME.match(str(place))
    return found[1].lower() if found and not Path(place).exists() else None


def read_checked(storage: Storage, key: str, check: Callable[[bytes], T]) -> T:
    """Return what `check` makes of a whole object. Raises its `ValueError` if it refuses the object `READS` times."""
    for _ in range(READS - 1):
        try:
            return check(storage.get(key))
        except ValueError:
            continue
    return check(storage.get(key))


def read_chunks(storage: Storage, key: str, start: int = 0, chunk: int = CHUNK) -> Iterator[bytes]:
    """Yield the bytes of an object from `start` on, piece by piece."""
    while data := storage.get_range(key, start, chunk):
        yield data
        start += len(data)
        if len(data) < chunk:
            return
