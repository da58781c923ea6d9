"""Train classifiers on streamed, augmented images. A killed training resumes at its last checkpoint.

Axes: `B` batch.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load, save
from torch import Tensor

from vitbackbone.evaluation.augmentation import Augmentation, Augmented, stream
from vitbackbone.evaluation.datasets import Images
from vitbackbone.evaluation.run import Run
from vitbackbone.files import progress_bar, publish
from vitbackbone.images import Preprocess

KEEP_SECONDS = 30.0  # between two checkpoints
LOST = "rows_lost"
log = logging.getLogger("vitbackbone")


@runtime_checkable
class Trained(Protocol):
    """A classifier with its optimiser."""

    def step(self, inputs: Any, labels: Tensor, number: int) -> None:
        """Take step `number`, counted from 0, on a batch."""

    def state(self) -> Mapping[str, Tensor]:
        """Return everything that training changes."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned."""


def train(
    run: Run,
    name: str,
    key: Sequence[Any],
    images: Images,
    augmentation: Augmentation,
    read: Callable[[Tensor], Any],
    classifier: Trained,
    *,
    steps: int,
    batch: int,
    seed: int = 0,
) -> None:
    """Train a classifier in place for `steps` batches, or load it if an earlier run has trained it.

    `read`: turns normalised images (B, 3, S, S) into what the classifier's `step` takes; no gradient flows into it.
    `name`, `key`: as for `Run.stage`. Images that cannot be read are left out of their batch, and noted.
    """
    images = images.limited(run.limit)
    file = run.file(name, *key, images.digest(), steps, batch, seed)
    done, lost = _resume(file, classifier)
    if done < steps:
        _train(run, name, images, augmentation, read, classifier, file, range(done, steps), batch, seed, lost)
    if lost:
        run.unreadable += sorted({f"training: {images.names[row]}" for row in lost} - {*run.unreadable})
        run.note(f"{len(lost)} training images could not be read and are left out of the fit")


def _train(
    run: Run,
    name: str,
    images: Images,
    augmentation: Augmentation,
    read: Callable[[Tensor], Any],
    classifier: Trained,
    file: Path,
    numbers: range,
    batch: int,
    seed: int,
    lost: set[int],
) -> None:
    """Take the steps `numbers`, and keep checkpoints in `file`. Rows that cannot be read are added to `lost`."""
    preprocess = run.backbone.preprocess
    if not isinstance(preprocess, Preprocess):
        raise ValueError(f"{run.backbone.spec.name} reads several pictures of a photo, which no protocol defines")
    dataset = Augmented(images, preprocess, sized(run, augmentation), seed, run.protocol.view.upright)
    labels, device, kept = torch.from_numpy(images.labels), run.machine.device, time.monotonic()
    batches = stream(dataset, numbers.start, numbers.stop, batch, run.machine.workers)
    shown = run.machine.progress
    progress = progress_bar(what=name, shown=shown, total=numbers.stop, initial=numbers.start, unit="step")
    with progress as bar, run.on_device():
        for number, part in zip(numbers, batches, strict=True):
            lost |= {*part.lost}
            if len(part.rows):
                pixels = preprocess.normalise(part.pixels.to(device))
                with torch.no_grad():
                    inputs = read(pixels)
                classifier.step(inputs, labels[part.rows].to(device), number)
            bar.update()
            if time.monotonic() - kept > KEEP_SECONDS or number + 1 == numbers.stop:
                _keep(file, classifier, lost, number + 1)
                kept = time.monotonic()


def sized(run: Run, augmentation: Augmentation) -> Augmentation:
    """Return the augmentation with the size of its crop, which may be the view's."""
    return (
        augmentation
        if augmentation.size
        else replace(augmentation, size=run.protocol.view.size(run.backbone.spec.stride)[1])
    )


def _keep(file: Path, classifier: Trained, lost: set[int], done: int) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state().items()}
    with publish(file) as temporary:
        temporary.write_bytes(save(tensors | {"steps_done": torch.tensor(done), LOST: torch.tensor(sorted(lost))}))


def _resume(file: Path, classifier: Trained) -> tuple[int, set[int]]:
    """Load a checkpoint if there is one. Return how many steps it has done, and the rows that it could not read."""
    try:
        tensors = load(file.read_bytes())
        classifier.load(tensors)
        done, lost = int(tensors["steps_done"]), {*tensors[LOST].tolist()}
    except FileNotFoundError:
        return 0, set()
    except Exception as error:  # a damaged file raises anything
        log.warning("%s is damaged (%s); the training starts again", file, error)
        return 0, set()
    log.info("%s: resumed at step %d", file.name, done)
    return done, lost
