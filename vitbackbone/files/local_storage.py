"""A storage in a folder of the local disk, or of a network file system that several machines share.

It needs what POSIX gives on NFS, too: a hard link that fails if the name exists, and a rename that replaces a file at
once. No lock is ever held by a process, so that a crash leaves nothing to clean but a temporary file.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from vitbackbone.files.atomic import flush, with_usual_permissions
from vitbackbone.files.storage import Stored

UNFINISHED = ".unfinished"  # folder of unfinished files
ALIVE = "alive"  # file that a writer locks as long as it lives
RACES = 100  # times that other writers may remove the folder of unfinished files before this one uses it

# Advice for each error of the system on a write.
LIMITS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`), or give another --out and a smaller --shard-size,",
}


class LocalStorage:
    """A `Storage` below the folder `root`, which is made with the first object."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # the working directory may change
        self._url = str(root)

    def __repr__(self) -> str:
        return f"LocalStorage({str(self.root)!r})"

    @property
    def url(self) -> str:
        return self._url

    def get(self, key: str) -> bytes:
        return self._file(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._file(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def head(self, key: str) -> Stored | None:
        try:
            status = self._file(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _stored(key, status)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Stored]:
        folder = prefix.rpartition("/")[0]
        yield from self._list(f"{folder}/" if folder else "", prefix, after)

    def put(self, key: str, data: bytes | Path) -> None:
        with self._writing(key), self._finished(data) as temporary:
            temporary.replace(self._made(key))
            flush(self._file(key).parent)

    def create(self, key: str, data: bytes) -> bool:
        with self._writing(key), self._finished(data) as temporary:
            target = self._made(key)
            try:
                os.link(temporary, target)  # fails if the name exists, and shows the file whole
            except FileExistsError:
                return self.get(key) == data
            except OSError as error:  # a file system without hard links, such as exFAT
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
                    raise
                with self._exclusive():
                    if target.exists():
                        return self.get(key) == data
                    temporary.replace(target)
            flush(target.parent)
            return True

    def swap(self, key: str, data: bytes, version: str) -> str | None:
        target = self._file(key)
        with self._writing(key), self._finished(data) as temporary:
            try:
                now = target.open("r+b")  # NFS locks only files that are open for writing
            except (FileNotFoundError, NotADirectoryError):
                return None
            with now:
                fcntl.flock(now, fcntl.LOCK_EX)  # a waiting writer then finds another file there
                there = self.head(key)
                if there is None or there.version != version:
                    return None
                new = _version(temporary.stat())
                temporary.replace(target)
            flush(target.parent)
            return new

    def delete(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        folder = self.root / UNFINISHED / uuid4().hex  # nobody can guess the name, and plant a link there
        try:
            with private_folder(folder):
                yield folder
        finally:
            with contextlib.suppress(OSError):  # another writer is at work
                folder.parent.rmdir()

    def sweep(self) -> None:
        unfinished = self.root / UNFINISHED
        for folder in list(unfinished.iterdir()) if unfinished.is_dir() else []:
            sweep_folder(folder)
        with contextlib.suppress(OSError):
            unfinished.rmdir()

    def local_path(self, key: str) -> Path | None:
        return self._file(key)

    def _file(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise ValueError(f"{key!r} is not a key of a storage; want a relative path without '..'")
        return self.root.joinpath(*parts)

    def _made(self, key: str) -> Path:
        """Return the file of a key, in a folder that exists."""
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    @contextmanager
    def _finished(self, data: bytes | Path) -> Iterator[Path]:
        """Give a durable temporary file with this content."""
        with contextlib.ExitStack() as stack:
            if isinstance(data, Path):
                temporary = data
            else:
                temporary = stack.enter_context(self.scratch()) / "data"
                temporary.write_bytes(data)
            with_usual_permissions(temporary)
            flush(temporary)
            yield temporary

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Exclude other writers for an instant. The system ends the lock with its process."""
        with (self.root / UNFINISHED / "create.lock").open("a") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield

    def _list(self, folder: str, prefix: str, after: str) -> Iterator[Stored]:
        """Yield the objects below a folder, given as the start of their keys."""
        try:
            with os.scandir(self.root / folder) as entries:
                found = sorted(
                    (os.fsencode(f"{entry.name}/" if entry.is_dir() else entry.name), entry) for entry in entries
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        for name, entry in found:
            key = folder + os.fsdecode(name)
            if key == f"{UNFINISHED}/" or not (key.startswith(prefix) or prefix.startswith(key)):
                continue
            if key.endswith("/"):
                if key > after or after.startswith(key):
                    yield from self._list(key, prefix, after)
            elif key > after:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield _stored(key, status)

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        """Add advice to the error of a full disk."""
        try:
            yield
        except OSError as error:
            if error.errno not in LIMITS:
                raise
            raise full(error.errno, key, self.url) from error


@contextmanager
def private_folder(folder: Path) -> Iterator[None]:
    """Make a private folder, and remove it at the end. What a kill leaves of it, `sweep_folder` removes."""
    try:
        with _alive(folder):
            yield
    finally:
        try:
            _remove(folder)
        except BaseException:  # a signal ends the process: this is the last that it does
            _remove(folder)
            raise


def sweep_folder(folder: Path) -> None:
    """Remove a private folder whose writer was killed. One whose writer is at work stays."""
    try:
        with (folder / ALIVE).open("r+") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system ends the lock with its process
            _remove(folder)
    except FileNotFoundError:  # it has ended, begins and tries again, or was killed before it had a lock
        with contextlib.suppress(OSError):
            folder.rmdir()
    except (NotADirectoryError, BlockingIOError, PermissionError):
        return  # it is at work, or of another user


def _make_private(folder: Path) -> None:
    tries = RACES
    while True:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)  # fails, too, if the parent is removed just then
            folder.mkdir(mode=0o700)
        except (FileNotFoundError, FileExistsError):  # another writer has removed the parent, or it is a file
            tries -= 1
            if not tries:
                raise
            continue
        return


@contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """Make a private folder, and hold its lock. `sweep_folder` removes one without a lock, and may come in between."""
    for _ in range(RACES):
        _make_private(folder)
        try:
            alive = (folder / ALIVE).open("w")
        except FileNotFoundError:
            continue
        with alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            if os.fstat(alive.fileno()).st_nlink:
                yield
                return
    raise FileNotFoundError(errno.ENOENT, "other writers remove it again and again", str(folder))


def _remove(folder: Path) -> None:
    """Remove a folder of unfinished files. Its lock goes last, so that `sweep_folder` finds what a kill leaves."""
    with contextlib.suppress(OSError):
        for each in folder.iterdir():
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)
            elif each.name != ALIVE:
                each.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def full(code: int, key: str, place: str) -> OSError:
    """Return the error of a write that met one of `LIMITS`."""
    text = f"{os.strerror(code)}, for {key}; {LIMITS[code]} and run the same extraction again"
    return OSError(code, f"{text}: complete shards are kept", place)


def _stored(key: str, status: os.stat_result) -> Stored:
    return Stored(key, status.st_size, _version(status), status.st_mtime)


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
