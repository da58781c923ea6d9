"""Linear classifiers on frozen features of augmented images: DINO's, DINOv2's 52 heads, DINOv3's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitbackbone.evaluation.augmentation import Augmentation
from vitbackbone.evaluation.linear_heads import HeadInput, LinearHeads, head_inputs
from vitbackbone.evaluation.metrics.accuracy import in_top
from vitbackbone.evaluation.metrics.intervals import wilson
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.protocols.linear_mae import MAE
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import plain, setting
from vitbackbone.evaluation.trained_heads import keep_linear
from vitbackbone.evaluation.training import train
from vitbackbone.evaluation.vectors import VectorFeatures, Vectors, vectors
from vitbackbone.evaluation.views import CropView

V1, V2, V3 = "dino/eval_linear.py", "dinov2/eval/linear.py", "dinov3/eval/linear.py"
ROWS = 4096  # test vectors that are classified at a time
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
PAPER_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class LinearFeatures:
    """The inputs of the heads: each number of blocks, with each choice of the mean."""

    blocks: tuple[int, ...] = setting((1, 4), "an input has the CLS tokens of so many last blocks, side by side", V2)
    means: tuple[bool, ...] = setting((False, True), "an input ends with the mean of the last block's patches", V2)
    norm: bool = setting(True, "apply the checkpoint's final norm to each block", V2)

    def extracted(self) -> VectorFeatures:
        """Return the vector that has all inputs in it. Raises `ValueError` if there is no input."""
        if not self.blocks or not self.means or min(self.blocks) < 1:
            raise ValueError(
                f"features.blocks={self.blocks} and features.means={self.means}; want at least one of each"
            )
        return VectorFeatures(max(self.blocks), any(self.means), self.norm)


@dataclass(frozen=True)
class Sgd(Augmentation):
    """Stochastic gradient descent on augmented images, for every rate at once."""

    rates: tuple[float, ...] = setting(RATES, "learning rates; each has its own head", V2)
    scaled: bool = setting(True, "multiply the rates by batch / 256", V2)
    weight_decays: tuple[float, ...] = setting((0.0,), "weight decays; each has its own head", V2)
    momentum: float = setting(0.9, "momentum", V2)
    batch: int = setting(1024, "images of a step: 128 on each of 8 GPUs", V2)
    steps: int = setting(12_500, "steps, 10 epochs of 1,250; the rate falls to 0 by a cosine", V2)
    seed: int = setting(0, "of the weights N(0, 0.01), of the order and of the crops", "chosen here")

    def scaled_rates(self) -> list[float]:
        return [rate * self.batch / 256 if self.scaled else rate for rate in self.rates]


@dataclass(frozen=True)
class Top:
    """The reported accuracies."""

    top: tuple[int, ...] = setting((1, 5), "the label is among the so many highest logits", V2)
    choose: Literal["test"] = setting(
        "test", "the split that the best head is chosen on: the reported one, as in the code", V2
    )


@dataclass(frozen=True, eq=False)
class BestHead:
    """The head of the highest accuracy on the test images."""

    input: HeadInput
    weight: Float[Tensor, "K F"]
    bias: Float[Tensor, " K"]
    features: VectorFeatures

    def logits(self, run: Run, images: Vectors) -> Float[np.ndarray, "N K"]:
        """Classify extracted vectors."""
        parts = []
        for start in range(0, len(images), ROWS):
            block = torch.from_numpy(np.array(images.block(start, start + ROWS))).to(self.weight.device)
            parts.append((self.input.of(block) @ self.weight.T + self.bias).cpu().numpy())
        return np.concatenate(parts)


def score(run: Run) -> list[Score]:
    """Train all heads in one pass, choose the best on the test images, and report it."""
    head, test = best_head(run)
    scores = accuracy_scores(head.logits(run, test), test.labels, run.protocol.metric.top)
    read = VectorFeatures(head.input.blocks, head.input.mean, head.features.norm)
    keep_linear(run, "linear", head.weight, head.bias, read)
    return scores


def best_head(run: Run) -> tuple[BestHead, Vectors]:
    """Train the heads, or load them, and return the best one with the test vectors."""
    protocol, device = run.protocol, run.machine.device
    features = protocol.features.extracted().check(run.backbone.spec)
    fit = run.shortened(protocol.fit, len(run.data.train))
    test = vectors(run, run.data.test, protocol.view, features, f"{run.dataset} test")
    spec = run.backbone.spec
    inputs = head_inputs(protocol.features.blocks, protocol.features.means, features.widths(spec), spec.dim)
    heads = LinearHeads(
        inputs,
        fit.scaled_rates(),
        len(run.data.train.classes),
        steps=fit.steps,
        momentum=fit.momentum,
        weight_decays=fit.weight_decays,
        seed=fit.seed,
        device=device,
    )

    def read(pixels: Tensor) -> Float[Tensor, "B V"]:
        return features.read(run.backbone, pixels)

    key = [plain(protocol.features), plain(fit), plain(protocol.view)]
    train(run, "linear", key, run.data.train, fit, read, heads, steps=fit.steps, batch=fit.batch, seed=fit.seed)
    counts = _count_right(heads, test, device)
    best = int(counts.argmax())
    chosen, rate, decay = heads.names()[best]
    run.facts["heads"] = [
        {"input": each.name, "rate": step, "weight_decay": each_decay, "top-1": 100 * int(count) / len(test)}
        for (each, step, each_decay), count in zip(heads.names(), counts, strict=True)
    ]
    run.facts["best"] = {"input": chosen.name, "rate": rate, "weight_decay": decay}
    if len(counts) > 1:
        run.note(f"the best of {len(counts)} heads is chosen on the reported images, as the authors' code does")
    return BestHead(*heads.one(best), features), test


def _count_right(heads: LinearHeads, test: Vectors, device: str) -> Int[np.ndarray, " heads"]:
    counts = np.zeros(len(heads.names()), dtype=np.int64)
    for start in range(0, len(test), ROWS):
        block = torch.from_numpy(np.array(test.block(start, start + ROWS))).to(device)
        counts += heads.accuracies(block, torch.from_numpy(test.labels[start : start + ROWS]).to(device))
    return counts


def accuracy_scores(
    logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], tops: Sequence[int]
) -> list[Score]:
    """Return the top-k accuracies of logits."""
    found = []
    for top in tops:
        right = in_top(logits, labels, top)
        value, name = 100 * float(right.mean()), f"top-{top}"
        found.append(Score(name, value, len(right), wilson(right), main=top == min(tops), published=name))
    return found


LINEAR = Protocol(
    name="linear",
    variant="v2",
    summary="Train linear classifiers on the frozen features of augmented images.",
    source=f"{V2}, arXiv 2304.07193",
    kind="classification",
    datasets=("imagenet", "inaturalist-2018", "inaturalist-2021"),
    view=CropView(),
    features=LinearFeatures(),
    fit=Sgd(),
    metric=Top(),
    score=score,
    traps=(
        "52 heads are trained in one pass: 4 inputs times 13 learning rates. The best on the reported split counts.",
        "Rates are base rates, multiplied by batch / 256. Change the batch and the rates move with it.",
        "The paper states rates from 1e-4 to 0.5; its code has 1e-5 to 0.1, times batch / 256 = 4.",
    ),
)
LINEAR_V3 = replace(
    LINEAR,
    variant="v3",
    source=f"{V3}, arXiv 2508.10104",
    features=LinearFeatures(blocks=(1,), means=(True,)),
    traps=("The code always appends the mean of the patches; the paper reads CLS alone (variant v3-paper).",),
)
LINEAR_V3_PAPER = replace(
    LINEAR,
    variant="v3-paper",
    source="arXiv 2508.10104, appendix D",
    view=CropView(tokens=1024),
    features=LinearFeatures(blocks=(1,), means=(False,)),
    fit=Sgd(size=0, rates=PAPER_RATES, scaled=False, weight_decays=(0.0, 1e-5), batch=1024, steps=12_511),
    traps=("1024 patch tokens: 448 pixels at patch 14, 512 at patch 16.",),
)
LINEAR_V1 = replace(
    LINEAR,
    variant="v1",
    source=f"{V1}, arXiv 2104.14294",
    features=LinearFeatures(blocks=(4,), means=(False,)),
    fit=Sgd(rates=(0.001,), interpolation="bilinear", batch=1024, steps=125_100),
    traps=(
        "For ViT-S. For ViT-B the authors read the last block alone and append the mean: --set blocks=1 means=true.",
    ),
)
VARIANTS = (LINEAR, LINEAR_V1, LINEAR_V3, LINEAR_V3_PAPER, MAE)
