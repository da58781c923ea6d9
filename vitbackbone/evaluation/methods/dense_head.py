"""A dense head on a frozen backbone: its prediction, its training in stages, and its folder.

Axes: `B` batch, `K` classes or one depth, `H W` pixels.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from heads import DenseHead, save_head
from vitbackbone.contract import BackboneModule, device_of
from vitbackbone.evaluation.methods.dense_training import Loop, Optimiser, Rows, Sample, train
from vitbackbone.evaluation.methods.inputs import centre_pad, features_of
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.trained_heads import head_folder
from vitbackbone.files import publish

CHECKPOINTS = 50  # steps between checkpoints of a training


def predict(
    backbone: BackboneModule, head: DenseHead, images: Float[Tensor, "B 3 H W"], size: tuple[int, int]
) -> Float[Tensor, "B K h w"]:
    """Return the head's maps, resized bilinearly to `size`. The backbone runs without gradient.

    Images are padded to whole patches on all sides, and the map of the padded image is resized, as the authors do.
    """
    with torch.no_grad():
        features = features_of(backbone, centre_pad(images, backbone.spec.stride), head.layers, head.needs.norm)
    return F.interpolate(head.maps(*features), size, mode="bilinear", align_corners=False)


class Training:
    """The training of one head, whose states at several steps are stages of a run.

    `make`: makes the head, with the initial weights of `seed`. `key`: all that the training depends on.
    """

    def __init__(
        self,
        run: Run,
        key: Sequence[Any],
        make: Callable[[], DenseHead],
        sample: Callable[[int, np.random.Generator], Sample],
        count: int,
        loss: Callable[[DenseHead, Rows, int], Tensor],
        optimiser: Optimiser,
        batch_size: int,
        seed: int,
    ) -> None:
        self.run, self.key, self.make = run, [*key, optimiser, batch_size, seed, count], make
        self.sample, self.count, self.loss = sample, count, loss
        self.optimiser, self.batch_size, self.seed = optimiser, batch_size, seed
        self._made: tuple[int, DenseHead] | None = None

    def at(self, stop: int) -> DenseHead:
        """Return the head after `stop` steps, trained from the last checkpoint if an earlier run did not save it."""
        if self._made is not None and self._made[0] == stop:
            return self._made[1]
        file = self.run.file("head", *self.key, stop)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            head = self.make().to(self.run.machine.device)
        if file.is_file():
            head.load_state_dict(load(file.read_bytes()))
        else:
            self._train(head, stop)
            with publish(file) as temporary:
                temporary.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}))
        self._made = (stop, head.eval())
        return head

    def on(self, run: Run, stop: int) -> DenseHead:
        """Return the head after `stop` steps where the run's backbone is: the head itself, or a copy for a replica."""
        head = self.at(stop)
        return head if run is self.run else deepcopy(head).to(device_of(run.backbone) or torch.device("cpu"))

    def _train(self, head: DenseHead, stop: int) -> None:
        machine = self.run.machine
        checkpoint = self.run.file("training", *self.key)
        loop = Loop(
            stop, self.batch_size, self.seed, checkpoint, CHECKPOINTS, max(machine.workers, 0), machine.progress
        )
        with self.run.on_device():
            train(head, self.sample, self.count, lambda rows, step: self.loss(head, rows, step), self.optimiser, loop)

    def publish_head(self, stop: int, name: str) -> Path:
        """Write the head after `stop` steps to a folder that `heads.load_head` reads, and add it to the run's heads."""
        folder = head_folder(self.run, name)
        save_head(self.at(stop), folder, self.run.backbone)
        self.run.heads[name] = folder
        return folder
