"""Training of a dense head on a frozen backbone, resumed from its last checkpoint to the same result."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vitbackbone.evaluation.methods.schedules import Schedule
from vitbackbone.evaluation.several_devices import ahead
from vitbackbone.files import progress_bar, publish

Sample = tuple[Tensor, Tensor]  # an image and its target
Rows = Sequence[Sample]


@dataclass(frozen=True)
class Optimiser:
    """AdamW and its schedule."""

    rate: float
    weight_decay: float
    beta2: float
    clip: float  # most norm of the gradient; infinite for none
    schedule: Schedule


@dataclass(frozen=True)
class Loop:
    """The length of a training, and the folder that keeps it."""

    stop: int  # step to stop before
    batch_size: int
    seed: int
    checkpoint: Path
    every: int  # steps between checkpoints
    workers: int = 0  # threads that make samples
    progress: bool = True


def rows_of(step: int, count: int, batch_size: int, seed: int) -> list[int]:
    """Return the samples of a step: consecutive parts of a new random order for every pass over all of them."""
    found = []
    for i in range(step * batch_size, (step + 1) * batch_size):
        found.append(int(_order(i // count, count, seed)[i % count]))
    return found


def _order(epoch: int, count: int, seed: int) -> NDArray[Any]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def train(
    head: nn.Module,
    sample: Callable[[int, np.random.Generator], Sample],
    count: int,
    loss: Callable[[Rows, int], Tensor],
    optimiser: Optimiser,
    loop: Loop,
) -> None:
    """Train the head up to a step. It starts at the checkpoint, if there is one that is not beyond the step.

    `sample`: makes a random view of one of `count` photos. `loss`: computes the loss of a batch at a step.
    """
    adam = torch.optim.AdamW(head.parameters(), lr=0.0, weight_decay=optimiser.weight_decay)
    start = _restore(loop.checkpoint, head, adam, loop.stop)
    head.train()
    batches = _batches(sample, count, range(start, loop.stop), loop)
    with progress_bar(what="training", shown=loop.progress, initial=start, total=loop.stop, unit="step") as bar:
        for step, batch in zip(range(start, loop.stop), batches, strict=True):
            for group in adam.param_groups:
                group["lr"] = optimiser.rate * optimiser.schedule.factor(step)
                group["betas"] = (optimiser.schedule.beta1(step), optimiser.beta2)
            with _seeded(loop.seed, step):
                value = loss(batch, step)
            adam.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(head.parameters(), optimiser.clip)
            adam.step()
            bar.update()
            if (step + 1) % loop.every == 0 or step + 1 == loop.stop:
                _keep(loop.checkpoint, head, adam, step + 1)
    head.eval()


def _batches(
    sample: Callable[[int, np.random.Generator], Sample], count: int, steps: range, loop: Loop
) -> Iterator[Rows]:
    """Yield the batch of each step. Threads make the next samples meanwhile."""

    size = loop.batch_size

    def make(job: tuple[int, int, int]) -> Sample:
        step, place, row = job
        return sample(row, np.random.default_rng([loop.seed, 1, step, place]))

    jobs = ((step, place, row) for step in steps for place, row in enumerate(rows_of(step, count, size, loop.seed)))
    samples = ahead(make, jobs, loop.workers)
    for _ in steps:
        yield list(itertools.islice(samples, size))


@contextmanager
def _seeded(seed: int, step: int) -> Iterator[None]:
    """Draw dropout from a generator of the step, and give torch its own state back."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence([seed, 2, step]).generate_state(1)[0]))
        yield


def _keep(file: Path, head: nn.Module, adam: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    for index, state in adam.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": tensor for name, tensor in state.items()}
    with publish(file) as temporary:
        temporary.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"step": str(step)}))


def _restore(file: Path, head: nn.Module, adam: torch.optim.Optimizer, stop: int) -> int:
    """Load a checkpoint, and return its step. Returns 0 if there is none, or if it is beyond `stop`."""
    if not file.is_file():
        return 0
    with safe_open(file, "pt") as stored:
        step = int(stored.metadata()["step"])
        if step > stop:
            return 0
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # it is not a dict
    head.load_state_dict({name.removeprefix("head."): t for name, t in tensors.items() if name.startswith("head.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "adam":
            index, _, field = rest.partition(".")
            state.setdefault(int(index), {})[field] = tensor
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})
    return step
