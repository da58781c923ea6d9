"""One writer for each shard. A run leaves a lock file in the store, and a second run that finds it is refused.

A hard link publishes the lock, so a lock is never half-written. A run takes over the lock of a process of the same
machine that has ended. It cannot tell this of a process of another machine.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from pydantic import Field

from vitbackbone.files import leftovers, read_json
from vitbackbone.store.slices import Slice

PLANNING = "lock-inputs.json"
WAIT = 0.2  # seconds before a lock is tried again
log = logging.getLogger("vitbackbone")


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    pid: Annotated[int, Field(ge=1, le=2**31 - 1)]
    host: str
    process_started: str | None  # tells the process from a later one with the same number
    since: str
    slice: str  # "0/1" is the whole store

    @classmethod
    def here(cls, mine: Slice) -> "Owner":
        """Return this process as the owner of a slice."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), _started(os.getpid()), now, str(mine))

    @property
    def gone(self) -> bool:
        """Whether the process has certainly ended."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's process
            pass
        return _started(self.pid) != self.process_started

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} (since {self.since})"


class Taken(BlockingIOError):
    """Another process holds the lock."""

    def __init__(self, file: Path, owner: Owner | None, wrong: str = "") -> None:
        who = owner or "another process"
        why = f" ({wrong})" if wrong else ""
        super().__init__(
            f"{file.parent} is being written by {who}{why}; wait for it or stop it. If it is gone, delete {file}"
        )
        self.owner = who
        self.wrong = wrong  # why the lock file is invalid; no run wrote it, so none will remove it


@contextmanager
def writing(directory: Path, mine: Slice) -> Iterator[None]:
    """Hold the lock on the shards of a slice. Raises `Taken` if another process writes any of them."""
    file = directory / ("lock.json" if mine.whole else f"lock-{mine.index}-of-{mine.count}.json")
    with _held(file, mine):
        for other in sorted(directory.glob("lock*.json")):
            owner = None if other in (file, directory / PLANNING) else _owner(other)
            if owner is not None and not Slice.parse(owner.slice).beside(mine):
                raise Taken(other, owner)
        yield


@contextmanager
def planning(directory: Path) -> Iterator[None]:
    """Hold the lock on the files that all slices share. Waits while another process holds it."""
    file = directory / PLANNING
    _wait_for(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _wait_for(file: Path) -> None:
    said = False
    while True:
        try:
            return _take(file, Slice())
        except Taken as taken:
            if taken.wrong:
                raise
            if not said:
                log.info("waiting for %s, which plans; if it is gone, delete %s", taken.owner, file)
                said = True
            time.sleep(WAIT)


@contextmanager
def _held(file: Path, mine: Slice) -> Iterator[None]:
    _take(file, mine)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _take(file: Path, mine: Slice) -> None:
    """Write the lock of this process. Removes the locks of processes that have ended. Raises `Taken`."""
    with _alone(file.parent):
        for other in file.parent.glob("lock*.json"):
            owner = _owner(other)
            if owner is not None and owner.gone:
                other.unlink(missing_ok=True)
        for temporary in leftovers(file):
            temporary.unlink(missing_ok=True)
        _create(file, (json.dumps(asdict(Owner.here(mine)), indent=2) + "\n").encode())


def _create(file: Path, data: bytes) -> None:
    """Write a file that must not exist yet. Raises `Taken` if it does."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.link(temporary, file)  # fails if the file exists; a rename would replace it
    except FileExistsError:
        raise Taken(file, _owner(file)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other processes of this machine out. Without it, two could take over the same lock."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _owner(file: Path) -> Owner | None:
    """Return the owner of a lock; None if the lock is gone. Raises `Taken` if the file names no owner."""
    try:
        owner = read_json(file, Owner)
        Slice.parse(owner.slice)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Taken(file, None, str(error)) from error
    return owner


def _started(pid: int) -> str | None:
    """Return when a process started, in the system's units; None if the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
