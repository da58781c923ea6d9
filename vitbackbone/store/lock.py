"""One writer to a shard: who writes says so in a file of the store, and whoever finds it there is refused.

A lock is there whole or not at all, on any file system that has hard links. One whose process is gone is taken over, by
processes of the same machine: nobody else can tell.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from pydantic import Field

from vitbackbone.files import leftovers, read_json
from vitbackbone.store.slices import Part

PLANNING = "lock-inputs.json"
WAIT = 0.2  # seconds between two looks at a lock
log = logging.getLogger("vitbackbone")


@dataclass(frozen=True)
class Owner:
    pid: Annotated[int, Field(ge=1, le=2**31 - 1)]
    host: str
    process_started: str | None  # so that a number which the system gave away again is not taken for the old process
    since: str
    part: str  # "0/1" is the whole store

    @classmethod
    def here(cls, part: Part) -> "Owner":
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), _started(os.getpid()), now, str(part))

    @property
    def gone(self) -> bool:
        """Whether it is certain that nobody holds the lock."""
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
    """Somebody else writes there."""

    def __init__(self, file: Path, owner: Owner | None, wrong: str = "") -> None:
        who = owner or "another process"
        why = f" ({wrong})" if wrong else ""
        super().__init__(
            f"{file.parent} is being written by {who}{why}; wait for it or stop it. If it is gone, delete {file}"
        )
        self.owner = who
        self.wrong = wrong  # with the file itself; no run writes such a one, so nobody will take it away


@contextmanager
def writing(directory: Path, part: Part) -> Iterator[None]:
    """Whoever writes the shards of `part`. Raises `Taken` if another writes any of them."""
    file = directory / ("lock.json" if part.whole else f"lock-{part.index}-of-{part.count}.json")
    with _held(file, part):
        for other in sorted(directory.glob("lock*.json")):
            owner = None if other in (file, directory / PLANNING) else _owner(other)
            if owner is not None and not Part.parse(owner.part).beside(part):
                raise Taken(other, owner)
        yield


@contextmanager
def planning(directory: Path) -> Iterator[None]:
    """Whoever writes what all slices share. Others wait."""
    said = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_held(directory / PLANNING, Part()))
                break
            except Taken as taken:
                if taken.wrong:
                    raise
                if not said:
                    log.info("waiting for %s, which plans; if it is gone, delete %s", taken.owner, directory / PLANNING)
                    said = True
                time.sleep(WAIT)
        yield


@contextmanager
def _held(file: Path, part: Part) -> Iterator[None]:
    with _alone(file.parent):
        for other in file.parent.glob("lock*.json"):
            owner = _owner(other)
            if owner is not None and owner.gone:
                other.unlink(missing_ok=True)
        for temporary in leftovers(file):
            temporary.unlink(missing_ok=True)
        _create(file, (json.dumps(asdict(Owner.here(part)), indent=2) + "\n").encode())
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _create(file: Path, data: bytes) -> None:
    """The file whole, if there is none. Raises `Taken` if there is."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.link(temporary, file)  # fails if it is there, which a rename would not
    except FileExistsError:
        raise Taken(file, _owner(file)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Among the processes of this machine: or two would take over the same lock, the second that of the first."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _owner(file: Path) -> Owner | None:
    """Return who holds a lock; None if it was given back just now. Raises `Taken` if the file does not say who."""
    try:
        owner = read_json(file, Owner)
        Part.parse(owner.part)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Taken(file, None, str(error)) from error
    return owner


def _started(pid: int) -> str | None:
    """When a process started, in the system's own units; None where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
