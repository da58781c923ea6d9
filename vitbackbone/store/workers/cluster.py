"""Compute shards on a Ray cluster.

Ray carries only the numbers of the shards. An actor holds one backbone, reads the images and writes the shard itself.
So a retry repeats the same work, and no features pass through the object store. Every node must see the store and the
images under the same paths.
"""

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitbackbone.contract import Backbone
from vitbackbone.store.layout import done_key
from vitbackbone.store.records import Snapshot
from vitbackbone.store.results import read_tasks
from vitbackbone.store.workers.shard_job import Job, Tally, compute, ready
from vitbackbone.store.workers.slices import Slice

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster, and what an extraction takes of it.

    `address`: such as "auto" or "ray://head:10001". With None it is the cluster that this process is connected to, or a
    new one on this machine. `actors`: the number of actors, or the least and the most. `cpus`, `gpus`: CPUs and GPUs
    reserved for each actor.
    """

    address: str | None = None
    actors: int | tuple[int, int] = (1, 64)
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        least, most = (self.actors, self.actors) if isinstance(self.actors, int) else self.actors
        if not 1 <= least <= most:
            raise ValueError(f"actors={self.actors}; want at least 1, or (least, most)")
        if self.cpus < 0 or self.gpus < 0:
            raise ValueError(f"cpus={self.cpus}, gpus={self.gpus}; want at least 0")


def compute_on_cluster(
    job: Job, backbone: Backbone, snapshot: Snapshot, mine: Slice, options: RayCluster
) -> Generator[Tally, None, None]:
    """Compute the shards of a snapshot with actors, and yield a tally for each. Whichever actor is free takes the next
    shard. If an actor or a node crashes, other actors compute its unfinished shards.

    Raises `ImportError` if Ray is not installed, and any exception of an actor.
    """
    try:
        import ray
        from ray.exceptions import RayTaskError
    except ImportError as error:
        raise ImportError("a Ray cluster needs Ray: pip install 'vitbackbone[ray]'") from error

    items = [
        {"part": part, "number": task.number}
        for part, work in enumerate(snapshot.work)
        for task in read_tasks(job.storage, snapshot, work)
        if task.number in mine and job.storage.head(done_key(task.key)) is None
    ]
    if not items:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        least, most = (options.actors,) * 2 if isinstance(options.actors, int) else options.actors
        shards = ray.data.from_items(items, override_num_blocks=len(items))
        done = shards.map_batches(
            Shards,
            fn_constructor_args=(job, snapshot, ray.put(backbone), torch.get_num_threads()),
            batch_size=1,
            num_cpus=options.cpus,
            num_gpus=options.gpus or None,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=max(least, min(most, len(items)))),
        )
        for row in done.iter_rows():
            yield Tally(int(row["images"]), int(row["failed"]))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    finally:
        if started:
            ray.shutdown()


class Shards:
    """An actor: it computes the shards whose numbers it gets."""

    def __init__(self, job: Job, snapshot: Snapshot, backbone: "ObjectRef[Any]", threads: int) -> None:
        import ray

        # The driver's number of threads, because another number changes the last bits of the features.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self.job = job
        self.tasks = lru_cache(1)(lambda part: {task.number: task for task in read_tasks(job.storage, snapshot, part)})
        self.work = snapshot.work
        # Never exited: the process ends with the actor.
        self.backbone: Backbone = ExitStack().enter_context(ready(job, ray.get(backbone)))

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Compute the shards in the column `number`. Return the images of each shard, and how many of them failed."""
        tasks = [
            self.tasks(self.work[part])[number]
            for part, number in zip(batch["part"].tolist(), batch["number"].tolist(), strict=True)
        ]
        tallies = [list(compute(self.job, self.backbone, iter([task]))) for task in tasks]
        return {
            "images": np.array([sum(tally.images for tally in shard) for shard in tallies]),
            "failed": np.array([sum(tally.failed for tally in shard) for shard in tallies]),
        }
