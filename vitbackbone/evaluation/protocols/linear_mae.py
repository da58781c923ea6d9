"""MAE's linear probe: batch norm, one linear layer, LARS with a large batch."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitbackbone.evaluation.augmentation import Augmentation
from vitbackbone.evaluation.mae_head import MaeHead
from vitbackbone.evaluation.metrics.accuracy import in_top
from vitbackbone.evaluation.metrics.intervals import wilson
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import plain, setting
from vitbackbone.evaluation.trained_heads import keep_linear
from vitbackbone.evaluation.training import train
from vitbackbone.evaluation.vectors import VectorFeatures, vectors
from vitbackbone.evaluation.views import CropView

CODE = "mae/main_linprobe.py"


@dataclass(frozen=True)
class Lars(Augmentation):
    """LARS on augmented images."""

    tries: int = setting(
        0, "random crops until one fits into the photo; 0 cuts the first one to the photo", "mae/util/crop.py", least=0
    )
    rate: float = setting(0.1, "learning rate for a batch of 256; it is multiplied by batch / 256", CODE)
    momentum: float = setting(0.9, "momentum; there is no weight decay", CODE)
    batch: int = setting(16_384, "images of a step", CODE)
    epochs: float = setting(90.0, "passes over the training images, of whole steps; 50 for ViT-L and ViT-H", CODE)
    warmup: float = setting(10.0, "epochs in which the rate rises linearly; then it falls to 0 by a cosine", CODE)
    eps: float = setting(1e-6, "epsilon of the batch norm, which has no scale and no shift", CODE)


@dataclass(frozen=True)
class Accuracy:
    """The reported accuracies."""

    top: tuple[int, ...] = setting((1, 5), "the label is among the so many highest logits", CODE)


def lengths(fit: Lars, count: int) -> tuple[int, int, int]:
    """Return the number of images in a step, of steps, and of steps of the warm-up. Raises `ValueError` if a step has
    one image."""
    batch = min(fit.batch, count)
    if batch < 2:
        raise ValueError(f"a step has {batch} image, and a batch norm needs at least 2; raise fit.batch or --limit")
    epoch = count // batch
    return batch, max(int(fit.epochs * epoch), 1), int(fit.warmup * epoch)


def score(run: Run) -> list[Score]:
    """Train the probe, and classify the test images."""
    protocol, fit, device = run.protocol, run.protocol.fit, run.machine.device
    features = protocol.features.check(run.backbone.spec)
    test = vectors(run, run.data.test, protocol.view, features, f"{run.dataset} test")
    images = run.data.train.limited(run.limit)
    batch, steps, warmup = lengths(fit, len(images))
    if batch < fit.batch:
        run.note(f"there are only {len(images)} training images, so a step has {batch} of them and not {fit.batch}")
    head = MaeHead(
        features.width(run.backbone.spec),
        len(images.classes),
        rate=fit.rate * batch / 256,
        momentum=fit.momentum,
        steps=steps,
        warmup=warmup,
        eps=fit.eps,
        device=device,
    )

    def read(pixels: Tensor) -> Float[Tensor, "B F"]:
        return features.read(run.backbone, pixels)

    key = [plain(features), plain(fit), plain(protocol.view)]
    train(run, "linear-mae", key, run.data.train, fit, read, head, steps=steps, batch=batch)
    weight, bias = (each.cpu() for each in head.folded())
    keep_linear(run, "linear", weight, bias, features)
    logits = (torch.from_numpy(test.array) @ weight.T + bias).numpy()
    return [
        Score(
            f"top-{top}",
            100 * float(np.mean(right := in_top(logits, test.labels, top))),
            len(test),
            wilson(right),
            main=top == 1,
            published=f"top-{top}",
        )
        for top in protocol.metric.top
    ]


MAE = Protocol(
    name="linear",
    variant="mae",
    summary="Train one linear classifier after a batch norm on the frozen features of augmented images.",
    source=f"{CODE}, arXiv 2111.06377",
    kind="classification",
    datasets=("imagenet",),
    view=CropView(),
    features=VectorFeatures(),
    fit=Lars(),
    metric=Accuracy(),
    score=score,
    traps=("Without the batch norm the figure is several points lower: MAE's features have no common scale.",),
)
