"""Shard after shard: read, embed, write. Whoever does a shard, in whatever process on whatever machine, does this."""

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
from vitbackbone.store.reader import Asked, ImageReader, Record, read_batches
from vitbackbone.store.route import prepared
from vitbackbone.store.writer import write_shard

FIRST = 4  # images of the first batch of a shard
SPREAD = 2  # times the pixels of a batch of images of the size asked, that a forward may have


@dataclass(frozen=True)
class Job:
    """What is to be computed and where it goes: all that a process has to know, beside the backbone."""

    directory: Path
    root: Path  # of the inputs
    manifest: Manifest
    batch_size: int
    workers: int
    device: str
    sample: list[Tensor]  # images that a path below float32 is held to
    max_pixels: int | None = None  # of a photo; those with more are failed rows

    def shard(self, number: int) -> PlannedShard:
        return read_shard(self.directory, self.manifest["shard_size"], number)


@dataclass(frozen=True)
class Tally:
    images: int
    failed: int


@contextmanager
def ready(job: Job, backbone: Backbone) -> Iterator[Backbone]:
    """The backbone as `compute` wants it: on the device of the job, by the path of its manifest."""
    with prepared(backbone, Runtime(**job.manifest["runtime"]), job.sample, job.device) as fast:
        yield fast


def compute(job: Job, backbone: Backbone, numbers: Sequence[int]) -> Iterator[Tally]:
    """Does these shards, and tells of each batch."""
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
            rows = _Rows(embedder.empty())
            for _ in _spans(originals, job.batch_size):
                records, tensors = embedder(next(batches))
                rows.add(records, tensors)
                yield Tally(len(records), sum(record.reason is not None for record in records))
            write_shard(job.directory, job.manifest, shard, rows.records, rows.tensors())


def _batches(job: Job, numbers: Sequence[int]) -> Iterator[list[Asked]]:
    """What is to be read, batch by batch. A batch never crosses from one shard into another."""
    for number in numbers:
        table = job.shard(number).table
        table = table.filter(table["same_as"].is_null())
        for span in _spans(len(table), job.batch_size):
            part = table[span.start : span.stop]
            found = locators(job.root, part, part["bytes"].to_pylist())
            yield list(zip(found, part["sha256"].to_pylist(), strict=True))


def _spans(count: int, batch_size: int) -> Iterator[range]:
    """The batches of a shard. They begin small and double, so that the first forward does not wait for a whole batch to
    be read; they are the same for whoever does the shard, and so are its bytes."""
    start, size = 0, min(FIRST, batch_size)
    while start < count:
        yield range(start, min(start + size, count))
        start, size = start + size, min(2 * size, batch_size)


class _Rows:
    """Those of one shard while its batches come in."""

    def __init__(self, empty: dict[str, Tensor]) -> None:
        self.records: list[Record] = []
        self._parts = {name: [tensor] for name, tensor in empty.items()}

    def add(self, records: Sequence[Record], rows: dict[str, Tensor]) -> None:
        self.records += records
        for name, tensor in rows.items():
            self._parts[name].append(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """All rows. The parts are let go one by one, so that the shard is not in memory twice."""
        return {name: torch.cat(self._parts.pop(name)) for name in list(self._parts)}
