"""Pull shards: each worker, on any machine, takes the next shard that nobody computes."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from vitbackbone.contract import Backbone
from vitbackbone.files import Storage
from vitbackbone.store.layout import done_key, snapshot_key
from vitbackbone.store.records import Snapshot
from vitbackbone.store.results import Task, read_tasks
from vitbackbone.store.workers.leases import RUN, Leases
from vitbackbone.store.workers.shard_job import Job, Tally, compute, ready
from vitbackbone.store.workers.slices import Slice

PATIENCE = 1.0  # least seconds that an idle worker watches another's shard before it computes it, too
SLOW = 2.0  # a shard is late after this many times the worker's own time for one
POLL = 0.05, 2.0  # shortest and longest seconds between two looks at the shards of others

T = TypeVar("T")


def pull(job: Job, backbone: Backbone, snapshot: Snapshot, mine: Slice) -> Iterator[Tally]:
    """Compute the shards of a slice of a snapshot together with all other workers. Yield a tally for each batch.

    At the end, each shard of the slice is done. An exception, such as Ctrl-C, drops the current shard and releases its
    lease.
    """
    with ready(job, backbone) as routed, Leases(job.storage).kept() as leases:
        puller = Puller(job.storage, snapshot, mine, leases)
        yield from compute(job, routed, puller.free(), puller.finished)
        for task in puller.late():
            yield from compute(job, routed, iter([task]), puller.finished)


@dataclass(eq=False)
class Puller:
    """Hands out the shards of a snapshot to this worker: first `free` ones, then `late` ones of others."""

    storage: Storage
    snapshot: Snapshot
    mine: Slice
    leases: Leases
    seconds: float = 0.0  # that this worker took for its last shard
    _done: set[str] = field(default_factory=set)
    _taken: set[str] = field(default_factory=set)
    _surprises: int = 0
    _others: list[Task] = field(default_factory=list)  # shards that others had

    def free(self) -> Iterator[Task]:
        """Yield shards that nobody computes, each with its lease, and never wait."""
        self._look()
        for part in _rotated(list(self.snapshot.work), bool(self._taken)):
            for task in _rotated(read_tasks(self.storage, self.snapshot, part), bool(self._taken)):
                if task.number not in self.mine or task.key in self._done:
                    continue
                if task.key in self._taken:
                    self._others.append(task)
                elif self.is_published():
                    return
                elif self._is_done(task):
                    self._surprise()
                elif self.leases.claim(task.key):
                    yield task
                else:
                    self._others.append(task)
                    self._surprise()

    def late(self) -> Iterator[Task]:
        """Wait for the shards of others, and yield those that come too late: their workers may be slow or gone."""
        since: dict[str, float] = {}
        wait = POLL[0]
        while not self.is_published():
            self._others = [task for task in self._others if not self._is_done(task)]
            if not self._others:
                return
            now = time.monotonic()
            for task in self._others:
                is_late = now - since.setdefault(task.key, now) > max(PATIENCE, SLOW * self.seconds)
                if self.leases.claim(task.key, take_over=is_late):
                    yield task
                    break
            else:
                time.sleep(wait)
                wait = min(2 * wait, POLL[1])

    def finished(self, task: Task, seconds: float) -> None:
        """Give back the lease of a shard whose result is published."""
        self.seconds = seconds
        self.leases.release(task.key)

    def is_published(self) -> bool:
        """Tell whether a run has published the snapshot after this one."""
        return self.storage.head(snapshot_key(self.snapshot.number + 1)) is not None

    def _is_done(self, task: Task) -> bool:
        return self.storage.head(done_key(task.key)) is not None

    def _surprise(self) -> None:
        """Count a shard that the last listing showed as free. After many of them, list again.

        So the cost of all listings stays linear in the number of shards.
        """
        self._surprises += 1
        if self._surprises > 16 + (len(self._done) + len(self._taken)) // 64:
            self._look()

    def _look(self) -> None:
        self._surprises = 0
        keys = ({stored.key for stored in self.storage.list(folder)} for folder in ("done/", "leases/"))
        self._done, self._taken = ({key.rpartition("/")[2].removesuffix(".json") for key in found} for found in keys)
        self._taken = {key for key in self._taken if not key.startswith(RUN)}


def _rotated(items: list[T], anywhere: bool) -> list[T]:
    """Return the items from a random one on, so that workers do not meet.

    A worker that is alone begins at the first.
    """
    start = random.randrange(len(items)) if anywhere and items else 0  # no secret
    return items[start:] + items[:start]
