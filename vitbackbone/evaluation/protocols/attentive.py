"""Attentive probes on the patch tokens of augmented images: V-JEPA's and AIM's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from heads import Head, create_head
from vitbackbone.contract import Features
from vitbackbone.evaluation.augmentation import Augmentation
from vitbackbone.evaluation.datasets import Images
from vitbackbone.evaluation.metrics.accuracy import in_top
from vitbackbone.evaluation.metrics.intervals import wilson
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import plain, setting
from vitbackbone.evaluation.several_devices import ahead
from vitbackbone.evaluation.trained_heads import keep_head
from vitbackbone.evaluation.training import train
from vitbackbone.evaluation.views import CropView
from vitbackbone.images import ImageError, open_image

VJEPA = "jepa/evals/image_classification_frozen/eval.py"
AIM = "arXiv 2401.08541"
ROWS = 256  # test images that are classified at a time


@dataclass(frozen=True)
class Tokens:
    """The tokens that the probe reads."""

    head: Literal["vjepa_probe", "aim_probe"] = setting("vjepa_probe", "the probe, by its name among the heads", VJEPA)
    layers: int = setting(1, "mean of so many last blocks; V-JEPA's reads the last one", VJEPA)


@dataclass(frozen=True)
class AdamW(Augmentation):
    """AdamW on augmented images."""

    rate: float = setting(1e-3, "learning rate; it falls to 0 by a cosine", VJEPA)
    weight_decay: float = setting(1e-3, "weight decay of matrices; biases and norms have none", VJEPA)
    last_decay: float = setting(1e-6, "weight decay of the last step; it falls by a cosine, too", VJEPA)
    batch: int = setting(1024, "images of a step", VJEPA)
    epochs: float = setting(20.0, "passes over the training images, of whole steps", VJEPA)
    clip: float = setting(1.0, "longest gradient", VJEPA)


@dataclass(frozen=True)
class Accuracy:
    """The reported accuracies."""

    top: tuple[int, ...] = setting((1, 5), "the label is among the so many highest logits", VJEPA)


class Probing:
    """A probe and its optimiser."""

    def __init__(self, head: Head, fit: AdamW, steps: int) -> None:
        self.head = head.train()
        matrices = [p for p in head.parameters() if p.ndim > 1]
        others = [p for p in head.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": fit.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=fit.rate)
        self.fit, self.steps = fit, steps

    def step(self, inputs: tuple[Features, ...], labels: Tensor, number: int) -> None:
        """Take step `number`, counted from 0, on a batch."""
        fall, fit = (1 + math.cos(math.pi * (number + 1) / self.steps)) / 2, self.fit  # the first step has fallen once
        for group in self.optimizer.param_groups:
            group["lr"] = fit.rate * fall
        matrices = self.optimizer.param_groups[0]
        matrices["weight_decay"] = fit.last_decay + (fit.weight_decay - fit.last_decay) * fall
        loss = self.head.loss(labels, *inputs)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.head.parameters(), self.fit.clip)
        self.optimizer.step()

    def state(self) -> Mapping[str, Tensor]:
        """Return the head and the moments of AdamW."""
        named: dict[str, Tensor] = {f"head.{name}": value.detach() for name, value in self.head.state_dict().items()}
        for name, parameter in self.head.named_parameters():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                named[f"adamw.{name}.{kind}"] = value
        return named

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned."""
        own = {name: state[f"head.{name}"] for name in self.head.state_dict()}
        self.head.load_state_dict(own)
        for name, parameter in self.head.named_parameters():
            kinds = {key.rpartition(".")[2]: key for key in state if key.startswith(f"adamw.{name}.")}
            if kinds:
                moments = {kind: state[key] for kind, key in kinds.items()}
                place = {
                    kind: value if kind == "step" else value.to(parameter.device) for kind, value in moments.items()
                }
                self.optimizer.state[parameter] = place


def score(run: Run) -> list[Score]:
    """Train the probe, and classify the test images."""
    protocol, fit = run.protocol, run.protocol.fit
    images = run.data.train.limited(run.limit)
    batch = min(fit.batch, len(images))
    steps = max(int(fit.epochs * math.ceil(len(images) / batch)), 1)
    head = _head(run, len(images.classes)).to(run.machine.device)

    def read(pixels: Tensor) -> tuple[Features, ...]:
        return run.backbone.forward_layers(pixels, head.layers, norm=head.needs.norm)

    key = [plain(protocol.features), plain(fit), plain(protocol.view)]
    train(run, "attentive", key, run.data.train, fit, read, Probing(head, fit, steps), steps=steps, batch=batch)
    head.eval()
    test = run.data.test.limited(run.limit)
    tops = protocol.metric.top
    found = _classified(run, [*key, steps, images.digest(), test.digest(), tops], test, head)
    read_rows = found[:, 0] >= 0
    if not read_rows.all():
        run.unreadable += [f"{run.dataset} test: {test.names[i]}" for i in np.flatnonzero(~read_rows)]
        run.note(f"{int((~read_rows).sum())} of {len(test)} test images could not be read and are left out")
    keep_head(run, "attentive", head)
    return [
        Score(
            f"top-{top}",
            100 * float(np.mean(right := found[read_rows, i] == 1)),
            len(right),
            wilson(right),
            main=top == 1,
            published=f"top-{top}",
        )
        for i, top in enumerate(tops)
    ]


def _head(run: Run, classes: int) -> Head:
    features, spec = run.protocol.features, run.backbone.spec
    options: dict[str, Any] = {"num_classes": classes}
    if features.head == "aim_probe":
        options["layers"] = list(range(-min(features.layers, spec.depth), 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_head(features.head, spec, **options)


def _classified(run: Run, key: list[Any], images: Images, head: Head) -> Int[np.ndarray, "N T"]:
    """Return whether each image's label is in each top k: 1, 0, or -1 where the image cannot be read."""
    preprocess = run.protocol.view.preprocess(run.backbone)
    tops = run.protocol.metric.top

    def read(row: int) -> Float[Tensor, "3 H W"] | None:
        source = images.root / images.names[row] if images.pixels is None else images.pixels[row]
        try:
            return preprocess.normalise(preprocess.pixels(open_image(source)))
        except (OSError, ImageError):
            return None

    def block(start: int, stop: int) -> dict[str, np.ndarray]:
        found = np.full((stop - start, len(tops)), -1)
        kept: list[int] = []
        pixels: list[Tensor] = []
        for row, image in zip(range(start, stop), ahead(read, range(start, stop), run.machine.workers), strict=True):
            if image is not None:
                pixels.append(image)
                kept.append(row - start)
        for first in range(0, len(kept), run.machine.batch_size):
            part = slice(first, first + run.machine.batch_size)
            batch = torch.stack(pixels[part]).to(run.machine.device)
            with torch.no_grad():
                features = run.backbone.forward_layers(batch, head.layers, norm=head.needs.norm)
                logits = head(*features).float().cpu().numpy()
            labels = images.labels[start:][kept[part]]
            found[kept[part]] = np.stack([in_top(logits, labels, top) for top in tops], axis=1)
        return {"right": found}

    with run.on_device():
        return run.blocks("attentive-test", key, len(images), ROWS, block)["right"]


ATTENTIVE = Protocol(
    name="attentive",
    variant="vjepa",
    summary="Train a probe that attends to the frozen patch tokens of augmented images.",
    source=VJEPA,
    kind="classification",
    datasets=("imagenet",),
    view=CropView(interpolation="bilinear"),
    features=Tokens(),
    fit=AdamW(),
    metric=Accuracy(),
    score=score,
    sources={"view.interpolation": VJEPA},
    traps=(
        "The probe reads patches, never CLS. Its accuracy is not comparable with a linear probe's.",
        "V-JEPA's code also changes the colours of training images by AutoAugment and erases parts of them.",
    ),
)
CHOSEN = ("fit.rate", "fit.weight_decay", "fit.last_decay", "fit.batch", "fit.epochs", "fit.clip")
ATTENTIVE_AIM = replace(
    ATTENTIVE,
    variant="aim",
    source=f"{AIM}; its training code is not published",
    view=CropView(),
    features=Tokens(head="aim_probe", layers=6),
    sources=dict.fromkeys(CHOSEN, "chosen here: AIM's recipe is not in its code"),
    traps=("The tokens are the mean of the last six blocks, before the final norm.",),
)
VARIANTS = (ATTENTIVE, ATTENTIVE_AIM)
