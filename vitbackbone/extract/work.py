"""Shard after shard: read, embed, write. Whoever does a shard, in whatever process on whatever machine, does this."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitbackbone.extract.embed import Embedder
from vitbackbone.extract.layout import DTYPES
from vitbackbone.extract.manifest import Manifest
from vitbackbone.extract.plan import PlannedShard, locators, read_shard
from vitbackbone.extract.reader import Asked, ImageReader, Record, read_batches
from vitbackbone.extract.writer import write_shard
from vitbackbone.features import Backbone
from vitbackbone.inference import evaluating

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

    def shard(self, number: int) -> PlannedShard:
        return read_shard(self.directory, self.manifest["shard_size"], number)


@dataclass(frozen=True)
class Tally:
    images: int
    failed: int


def compute(job: Job, backbone: Backbone, numbers: Sequence[int]) -> Iterator[Tally]:
    """Does these shards, and tells of each batch."""
    asked = job.manifest["preprocessing"]
    resolution = tuple(asked["resolution"]) if isinstance(asked["resolution"], list) else asked["resolution"]
    reader = ImageReader(backbone.preprocess, resolution, asked["keep_aspect"], asked["decoding"])
    batches = read_batches(reader, _batches(job, numbers), job.workers)  # started before the backbone moves
    area = math.prod(backbone.preprocess.view((1, 1), resolution, asked["keep_aspect"]).size)
    embedder = Embedder(
        backbone,
        job.manifest["tokens"],
        job.manifest["layers"],
        DTYPES[job.manifest["dtype"]],
        job.device,
        SPREAD * job.batch_size * area,
    )
    with _on(job.device, backbone), evaluating(backbone):
        for number in numbers:
            shard = job.shard(number)
            originals = len(shard.originals())
            if originals < len(shard):
                yield Tally(len(shard) - originals, 0)
            rows = _Rows(embedder.empty())
            for _ in range(0, originals, job.batch_size):
                records, tensors = embedder(next(batches))
                rows.add(records, tensors)
                yield Tally(len(records), sum(record.reason is not None for record in records))
            write_shard(job.directory, job.manifest, shard, rows.records, rows.tensors())


def _batches(job: Job, numbers: Sequence[int]) -> Iterator[list[Asked]]:
    """What is to be read, batch by batch. A batch never crosses from one shard into another."""
    for number in numbers:
        table = job.shard(number).table
        table = table.filter(table["same_as"].is_null())
        for start in range(0, len(table), job.batch_size):
            part = table[start : start + job.batch_size]
            found = locators(job.root, part, part["bytes"].to_pylist())
            yield list(zip(found, part["sha256"].to_pylist(), strict=True))


@contextmanager
def _on(device: str, module: Backbone) -> Iterator[None]:
    """The module on `device` meanwhile."""
    assert isinstance(module, nn.Module)  # as `extract` sees to
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        module.to(device)
        yield
    finally:
        module.to(home)


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
