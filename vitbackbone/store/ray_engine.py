"""Shards done by a Ray cluster. What goes through Ray are their numbers: an actor holds one backbone, reads the images
and publishes the shard itself, so that a retry does the same again and nothing waits in the object store.

Every node must see the store and the images under the same paths.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitbackbone.contract import Backbone
from vitbackbone.store.shard_job import Job, Tally, compute, ready

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True)
class RayOptions:
    """`address`: of a cluster, such as "auto" or "ray://head:10001"; None is the one that this process is connected to,
    or a new one on this machine. `actors`: how many, or at least and at most. `cpus`, `gpus`: what each takes."""

    address: str | None = None
    actors: int | tuple[int, int] = (1, 64)
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        least, most = (self.actors, self.actors) if isinstance(self.actors, int) else self.actors
        if not 1 <= least <= most:
            raise ValueError(f"actors={self.actors}; want at least 1")
        if self.cpus < 0 or self.gpus < 0:
            raise ValueError(f"cpus={self.cpus}, gpus={self.gpus}; want none below 0")


def compute_on_ray(job: Job, backbone: Backbone, numbers: Sequence[int], options: RayOptions) -> Iterator[Tally]:
    """Has these shards done by actors, and tells of each. An actor or a node that dies costs its unfinished shards,
    which others take.

    Raises `ImportError` where Ray is not installed, and what an actor raised.
    """
    try:
        import ray
        from ray.exceptions import RayTaskError
    except ImportError as error:
        raise ImportError("--engine ray wants Ray: pip install 'vitbackbone[ray]'") from error

    started = not ray.is_initialized()
    if started:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        least, most = (options.actors,) * 2 if isinstance(options.actors, int) else options.actors
        absolute = replace(job, directory=job.directory.absolute())
        shards = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        done = shards.map_batches(
            Shards,
            fn_constructor_args=(absolute, ray.put(backbone), torch.get_num_threads()),
            batch_size=1,
            num_cpus=options.cpus,
            num_gpus=options.gpus or None,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=max(least, min(most, len(numbers)))),
        )
        for row in done.iter_rows():
            yield Tally(int(row["images"]), int(row["failed"]))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    finally:
        if started:
            ray.shutdown()


class Shards:
    """What an actor does."""

    def __init__(self, job: Job, backbone: "ObjectRef[Any]", threads: int) -> None:
        import ray

        # As many as the driver has, whatever Ray thinks of it: the number of threads moves the last bits.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self.job = job
        # Never left: the process is this actor's alone.
        self.backbone: Backbone = ExitStack().enter_context(ready(job, ray.get(backbone)))

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """`number`: of the shards to do. Returns how many images each has, and how many of them failed."""
        tallies = [list(compute(self.job, self.backbone, [int(number)])) for number in batch["number"]]
        return {
            "images": np.array([sum(tally.images for tally in shard) for shard in tallies]),
            "failed": np.array([sum(tally.failed for tally in shard) for shard in tallies]),
        }
