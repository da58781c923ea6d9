"""Train classifiers on streamed, augmented images. A killed training resumes at its last checkpoint.

Axes: `B` batch.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load, save
from torch import Tensor

from vitbackbone.contract import BackboneModule
from vitbackbone.evaluation.augmentation import Augmentation, Augmented, stream
from vitbackbone.evaluation.datasets import Images
from vitbackbone.evaluation.run import Run
from vitbackbone.files import progress_bar, publish
from vitbackbone.images import Preprocess

KEEP_SECONDS = 30.0  # between two checkpoints
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
    done = _resume(file, classifier)
    if done >= steps:
        return
    preprocess = run.backbone.preprocess
    if not isinstance(preprocess, Preprocess):
        raise ValueError(f"{run.backbone.spec.name} reads several pictures of a photo, which no protocol defines")
    augmentation = sized(run, augmentation)
    dataset = Augmented(images, preprocess, augmentation, seed)
    labels = torch.from_numpy(images.labels)
    device, lost, kept = run.machine.device, set[int](), time.monotonic()
    progress = progress_bar(what=name, shown=run.machine.progress, total=steps, initial=done, unit="step")
    with progress as bar, on_device(run):
        for number, part in enumerate(stream(dataset, done, steps, batch, run.machine.workers), done):
            lost |= {*part.lost}
            if len(part.rows):
                pixels = preprocess.normalise(part.pixels.to(device))
                with torch.no_grad():
                    inputs = read(pixels)
                classifier.step(inputs, labels[part.rows].to(device), number)
            bar.update()
            if time.monotonic() - kept > KEEP_SECONDS or number + 1 == steps:
                _keep(file, classifier, number + 1)
                kept = time.monotonic()
    if lost:
        run.unreadable += sorted({f"training: {images.names[row]}" for row in lost} - {*run.unreadable})
        run.note(f"{len(lost)} training images could not be read and are left out of the fit")


def sized(run: Run, augmentation: Augmentation) -> Augmentation:
    """Return the augmentation with the size of its crop, which may be the view's."""
    return (
        augmentation
        if augmentation.size
        else replace(augmentation, size=run.protocol.view.size(run.backbone.spec.stride)[1])
    )


@contextmanager
def on_device(run: Run) -> Iterator[BackboneModule]:
    """Give the backbone in eval mode on the run's device. Its tensors may take part in autograd, unlike those of
    `evaluating`."""
    backbone = run.backbone
    home = next((each.device for each in backbone.parameters()), torch.device("cpu"))
    modes = [(part, part.training) for part in backbone.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield backbone.to(run.machine.device)
    finally:
        for part, mode in modes:
            part.training = mode
        backbone.to(home)


def _keep(file: Path, classifier: Trained, done: int) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state().items()}
    with publish(file) as temporary:
        temporary.write_bytes(save(tensors | {"steps_done": torch.tensor(done)}))


def _resume(file: Path, classifier: Trained) -> int:
    """Load a checkpoint if there is one, and return how many steps it has done."""
    try:
        tensors = load(file.read_bytes())
        classifier.load(tensors)
    except FileNotFoundError:
        return 0
    except Exception as error:  # a damaged file raises anything
        log.warning("%s is damaged (%s); the training starts again", file, error)
        return 0
    done = int(tensors["steps_done"])
    log.info("%s: resumed at step %d", file.name, done)
    return done
