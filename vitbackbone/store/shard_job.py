"""Compute shards: read, embed, write. Every process on every machine computes a shard by this module."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitbackbone.contract import Backbone, Runtime, evaluating
from vitbackbone.store.embed import Embedder
from vitbackbone.store.layout import DTYPES
from vitbackbone.store.manifest import Manifest
from vitbackbone.store.plan import PlannedShard, locators, read_shard
from vitbackbone.store.reader import Asked, ImageReader, Outcome, read_batches
from vitbackbone.store.route import prepared
from vitbackbone.store.rows import Root
from vitbackbone.store.writer import write_shard

FIRST = 4  # images of the first batch of a shard
SPREAD = 2  # a forward has at most this many times the pixels of a batch of images of the asked size


@dataclass(frozen=True)
class Job:
    """A description of the work: everything that a process needs beside the backbone."""

    directory: Path
    root: Root  # of the inputs
    manifest: Manifest
    batch_size: int
    workers: int
    device: str
    sample: list[Tensor]  # images that check a route below float32
    max_pixels: int | None = None  # of a photo; a larger one is a failed row

    def shard(self, number: int) -> PlannedShard:
        """Read the plan of one shard."""
        return read_shard(self.directory, self.manifest["shard_size"], number)


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


def compute(job: Job, backbone: Backbone, numbers: Sequence[int]) -> Iterator[Tally]:
    """Compute and write shards. Yield a tally for each batch."""
    asked = job.manifest["preprocessing"]
    resolution = tuple(asked["resolution"]) if isinstance(asked["resolution"], list) else asked["resolution"]
    reader = ImageReader(backbone.preprocess, resolution, asked["keep_aspect"], asked["decoding"], job.max_pixels)
    batches = read_batches(reader, _batches(job, numbers), job.workers, job.device)
    area = math.prod(backbone.preprocess.view((1, 1), resolution, asked["keep_aspect"]).size)
    embedder = Embedder(
        backbone,
        job.manifest["tokens"],
        job.manifest["layers"],
        DTYPES[job.manifest["dtype"]],
        job.device,
        SPREAD * job.batch_size * area,
    )
    with evaluating(backbone):
        for number in numbers:
            shard = job.shard(number)
            originals = len(shard.originals())
            if originals < len(shard):
                yield Tally(len(shard) - originals, 0)
            computed = _Computed(embedder.empty())
            for _ in _spans(originals, job.batch_size):
                outcomes, tensors = embedder(next(batches))
                computed.add(outcomes, tensors)
                yield Tally(len(outcomes), sum(outcome.reason is not None for outcome in outcomes))
            write_shard(job.directory, job.manifest, shard, computed.outcomes, computed.tensors())


def _batches(job: Job, numbers: Sequence[int]) -> Iterator[list[Asked]]:
    """Yield the images of each batch. All images of a batch belong to one shard."""
    for number in numbers:
        table = job.shard(number).table
        table = table.filter(table["same_as"].is_null())
        for span in _spans(len(table), job.batch_size):
            asked = table[span.start : span.stop]
            found = locators(job.root, asked, asked["bytes"].to_pylist())
            yield list(zip(found, asked["sha256"].to_pylist(), strict=True))


def _spans(count: int, batch_size: int) -> Iterator[range]:
    """Yield the rows of each batch of a shard.

    The batches begin small and double, so that the first forward starts early. They do not depend on the process, so
    that every process writes the same bytes.
    """
    start, size = 0, min(FIRST, batch_size)
    while start < count:
        yield range(start, min(start + size, count))
        start, size = start + size, min(2 * size, batch_size)


class _Computed:
    """The outcomes and features of one shard while its batches are computed."""

    def __init__(self, empty: dict[str, Tensor]) -> None:
        self.outcomes: list[Outcome] = []
        self._batches = {name: [tensor] for name, tensor in empty.items()}

    def add(self, outcomes: Sequence[Outcome], rows: dict[str, Tensor]) -> None:
        """Add a batch."""
        self.outcomes += outcomes
        for name, tensor in rows.items():
            self._batches[name].append(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Join all batches. Frees each tensor's batches once joined, so that the shard is not in memory twice."""
        return {name: torch.cat(self._batches.pop(name)) for name in list(self._batches)}
