"""Compute shards: read, embed, publish. Every process on every machine computes a shard by this module."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vitbackbone.contract import Backbone, Runtime, evaluating
from vitbackbone.files import Storage
from vitbackbone.store.layout import DTYPES
from vitbackbone.store.manifest import Manifest
from vitbackbone.store.results import Task, publish_result
from vitbackbone.store.sources.locate import locators
from vitbackbone.store.sources.rows import Root
from vitbackbone.store.workers.embed import Embedder
from vitbackbone.store.workers.killed_readers import Notes
from vitbackbone.store.workers.reader import Asked, ImageReader, Outcome, read_batches
from vitbackbone.store.workers.route import prepared

FIRST = 4  # images of the first batch of a shard
SPREAD = 2  # a forward has at most this many times the pixels of a batch of images of the asked size


@dataclass(frozen=True)
class Job:
    """A description of the work: everything that a process needs beside the backbone and the tasks."""

    storage: Storage
    root: Root  # of the inputs
    manifest: Manifest
    batch_size: int
    workers: int
    device: str
    sample: list[Tensor]  # images that the route is made with, unless it is the plain one
    max_pixels: int | None = None  # most pixels of a photo; a larger one is a failed row


@dataclass(frozen=True)
class Tally:
    """Images that are complete, and how many of them failed."""

    images: int
    failed: int


@contextmanager
def ready(job: Job, backbone: Backbone) -> Iterator[Backbone]:
    """Give the backbone on the job's device, with the route of the job's manifest."""
    with prepared(backbone, Runtime(**job.manifest["runtime"]), job.sample, job.device) as routed:
        yield routed


def compute(
    job: Job, backbone: Backbone, tasks: Iterator[Task], finished: Callable[[Task, float], object] = lambda *_: None
) -> Iterator[Tally]:
    """Compute and publish shards. Yield a tally for each batch. `finished` gets each shard and its seconds.

    `tasks` may come one by one. The images of the next shard are read while this one is embedded.
    """
    asked = job.manifest["preprocessing"]
    resolution = tuple(asked["resolution"]) if isinstance(asked["resolution"], list) else asked["resolution"]
    notes = Notes(job.workers)
    reader = ImageReader(
        backbone.preprocess, resolution, asked["keep_aspect"], asked["decoding"], job.max_pixels, notes
    )
    area = math.prod(backbone.preprocess.view((1, 1), resolution, asked["keep_aspect"]).size)
    embedder = Embedder(
        backbone,
        job.manifest["tokens"],
        job.manifest["layers"],
        DTYPES[job.manifest["dtype"]],
        job.device,
        SPREAD * job.batch_size * area,
    )
    waiting: deque[Task] = deque()  # shards whose images are being read
    shard: _Shard | None = None
    with evaluating(backbone), notes.naming_the_killed():
        for batch in read_batches(reader, _batches(job, tasks, waiting), job.workers, job.device, job.batch_size):
            shard = shard or _Shard(waiting.popleft(), embedder.empty())
            outcomes, tensors = embedder(batch)
            shard.add(outcomes, tensors)
            yield Tally(len(outcomes), sum(outcome.reason is not None for outcome in outcomes))
            if len(shard.outcomes) == len(shard.task):
                publish_result(job.storage, shard.task, shard.outcomes, shard.tensors())
                finished(shard.task, time.monotonic() - shard.began)
                shard = None


def _batches(job: Job, tasks: Iterator[Task], waiting: deque[Task]) -> Iterator[list[list[Asked]]]:
    """Yield the images of each batch of each shard."""
    for task in tasks:
        waiting.append(task)
        found = locators(job.root, task.table, task.table["bytes"].to_pylist())
        asked = list(zip(found, task.table["sha256"].to_pylist(), strict=True))
        yield [asked[span.start : span.stop] for span in batch_spans(len(task), job.batch_size)]


def batch_spans(count: int, batch_size: int) -> Iterator[range]:
    """Yield the rows of each batch of a shard.

    The batches begin small and double, so that the first forward starts early. They do not depend on the process, so
    that every process writes the same bytes.
    """
    start, size = 0, min(FIRST, batch_size)
    while start < count:
        yield range(start, min(start + size, count))
        start, size = start + size, min(2 * size, batch_size)


class _Shard:
    """The outcomes and features of one shard while its batches are computed."""

    def __init__(self, task: Task, empty: dict[str, Tensor]) -> None:
        self.task = task
        self.outcomes: list[Outcome] = []
        self.began = time.monotonic()
        self._batches = {name: [tensor] for name, tensor in empty.items()}

    def add(self, outcomes: Sequence[Outcome], rows: dict[str, Tensor]) -> None:
        """Add a batch."""
        self.outcomes += outcomes
        for name, tensor in rows.items():
            self._batches[name].append(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Join all batches. Frees each tensor's batches once joined, so that the shard is not in memory twice."""
        return {name: torch.cat(self._batches.pop(name)) for name in list(self._batches)}
