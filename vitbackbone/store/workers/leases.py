"""Leases: a worker says for a while which shard it computes, so that others take another one.

The leases of shards save work and never guard data: two workers that compute the same shard publish the same result. So
no worker waits for a lease forever, and nobody has to delete one by hand. A lease that is not renewed ends by itself.

`prune` alone removes objects. It and the runs exclude each other: each writes its lease first, and then looks for those
of the other kind. The age of a lease is told by the clock of the storage, because those of two machines may differ.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from vitbackbone.files import Record, Storage, Stored
from vitbackbone.store.layout import lease_key
from vitbackbone.store.records import read_record, seal

TERM = 30.0  # seconds that a lease lasts
RENEWALS = 3  # within a term
RUN = "run-"  # a lease of a run as a whole, which keeps `prune` away from what it has written so far
PRUNE = "prune-"  # a lease of a prune, which keeps runs away from what it removes
POLL = 0.5  # seconds
log = logging.getLogger("vitbackbone")


class Lease(Record, extra="forbid"):
    """The record of a lease."""

    token: str  # of the worker
    written: float  # seconds since 1970 by the clock of the worker, to tell one renewal from the next


class Leases:
    """The leases of one worker. A thread renews them until they are released."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.token = uuid4().hex
        self._held: dict[str, str] = {}  # the version of each lease, by its key
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ahead = 0.0  # seconds that the clock of the storage is ahead of this machine's

    def claim(self, key: str, take_over: bool = False) -> bool:
        """Take a lease if it is free or its term is over, or with `take_over` in any case."""
        try:
            version = self._write(key, take_over)
            if version is None:
                return False
            with self._lock:
                self._held[key] = version
        except BaseException:  # a signal may fall between the write and the note of it
            if self._is_ours(lease_key(key)):
                self.storage.delete(lease_key(key))
            raise
        return True

    def _write(self, key: str, take_over: bool) -> str | None:
        """Write a lease and return its version, or None if another worker has it."""
        name, data = lease_key(key), self._data()
        there = self.storage.head(name)
        if there is not None:
            return self.storage.swap(name, data, there.version) if take_over or self._left(there) <= 0 else None
        if not self.storage.create(name, data):
            return None
        there, now = self.storage.head(name), time.time()
        if there is None:
            return ""
        self._ahead = there.modified - now
        return there.version

    def claim_run(self) -> None:
        """Say that a run is at work. Waits for a prune to end."""
        self.claim(f"{RUN}{self.token}")
        if self.others(PRUNE):
            log.warning("%s is being pruned; this run waits until that has ended", self.storage.url)
        while self.others(PRUNE):
            time.sleep(POLL)

    def claim_prune(self) -> None:
        """Say that a prune is at work. Raises `BlockingIOError` if a run or another prune is."""
        self.claim(f"{PRUNE}{self.token}")
        if left := self.others():
            raise BlockingIOError(
                f"{self.storage.url}: an extraction or another prune is at work, or was killed a moment ago; prune in "
                f"{left:.0f} seconds or when it has ended"
            )

    def others(self, kind: str = "") -> float:
        """Return the seconds until other workers' leases end, 0 if there is none. `kind`: how the keys begin."""
        held = {lease_key(key) for key in self._held}
        found = [stored for stored in self.storage.list(f"leases/{kind}") if stored.key not in held]
        return max((max(0.0, self._left(stored)) for stored in found), default=0.0)

    def sweep(self) -> None:
        """Remove the leases of workers that are gone."""
        for stored in list(self.storage.list("leases/")):
            if self._left(stored) <= 0:
                self.storage.delete(stored.key)

    def release(self, key: str) -> None:
        """Give a lease back. Does nothing if it is not held."""
        with self._lock:
            held = self._held.pop(key, None)
        if held is not None:
            self.storage.delete(lease_key(key))

    @contextmanager
    def kept(self) -> Iterator["Leases"]:
        """Renew the leases that are held during the block, and release them at its end."""
        thread = threading.Thread(target=self._renew, name="leases", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()
            for key in list(self._held):
                self.release(key)

    def _renew(self) -> None:
        while not self._ended.wait(TERM / RENEWALS):
            with self._lock:
                held = dict(self._held)
            for key, version in held.items():
                try:
                    renewed = self.storage.swap(lease_key(key), self._data(), version)
                    if renewed is None and key.startswith((RUN, PRUNE)):  # nobody takes these over: it was removed
                        renewed = self._write(key, take_over=True)
                except OSError as error:  # it only saves work
                    log.info("the lease of a shard was not renewed (%s)", error)
                    continue
                with self._lock:
                    if key not in self._held:
                        continue
                    if renewed is not None:
                        self._held[key] = renewed
                    else:  # another worker took it over
                        del self._held[key]

    def _is_ours(self, name: str) -> bool:
        try:
            return read_record(self.storage, name, Lease).token == self.token
        except (FileNotFoundError, ValueError):
            return False

    def _left(self, lease: Stored) -> float:
        """Return the seconds that are left of a lease."""
        return lease.modified + TERM - (time.time() + self._ahead)

    def _data(self) -> bytes:
        return seal(Lease(token=self.token, written=time.time()))
