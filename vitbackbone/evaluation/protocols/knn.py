"""Weighted nearest neighbours on CLS tokens, on all training images or on a few of each class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vitbackbone.evaluation.metrics.accuracy import in_top
from vitbackbone.evaluation.metrics.intervals import bootstrap, wilson
from vitbackbone.evaluation.metrics.votes import ROWS, nearest, unit, votes
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import plain, setting
from vitbackbone.evaluation.subsets import few_of_each
from vitbackbone.evaluation.vectors import VectorFeatures, Vectors, vectors
from vitbackbone.evaluation.views import CropView

V1, V2, V3 = "dino/eval_knn.py", "dinov2/eval/knn.py", "dinov3/eval/knn.py"


@dataclass(frozen=True)
class Neighbours:
    """The vote of the neighbours."""

    ks: tuple[int, ...] = setting((10, 20, 100, 200), "numbers of neighbours; each gives its own accuracy", V2)
    temperature: float = setting(0.07, "a neighbour of similarity s votes with exp(s / temperature)", V2, least=1e-6)
    shots: float = setting(0.0, "training images of each class; a share below 1; 0 means all", V3)
    tries: int = setting(1, "random choices of these images, with the seeds 0, 1, ...", V3)


@dataclass(frozen=True)
class TopK:
    """The accuracies that are reported."""

    top: tuple[int, ...] = setting((1, 5), "the label is among so many classes of the most votes", V2)
    main_k: int = setting(20, "the number of neighbours whose top-1 is compared with the published figure", V1)


def score(run: Run) -> list[Score]:
    """Vote for each test image."""
    fit, protocol = run.protocol.fit, run.protocol
    train = vectors(run, run.data.train, protocol.view, protocol.features, f"{run.dataset} train")
    test = vectors(run, run.data.test, protocol.view, protocol.features, f"{run.dataset} test")
    if not fit.shots:
        return _scores(run, [_right(run, train, test, "full")])
    if fit.tries < 1:
        raise ValueError(f"fit.tries={fit.tries}; want at least 1")
    tries = [
        _right(run, train.take(few_of_each(train.labels, fit.shots, seed)), test, f"seed{seed}")
        for seed in range(fit.tries)
    ]
    return _scores(run, tries)


Right = dict[tuple[int, int], Bool[np.ndarray, " N"]]  # whether each test image is right, by (k, top)


def _right(run: Run, train: Vectors, test: Vectors, which: str) -> Right:
    """Return whether each test image is classified right, for each k. Test images are read in blocks, and blocks are
    kept."""
    fit, metric = run.protocol.fit, run.protocol.metric
    if not fit.ks or min(fit.ks) < 1:
        raise ValueError(f"fit.ks={fit.ks}; want numbers of at least 1")
    ks = sorted({min(k, len(train)) for k in fit.ks})
    read = [run.data.digest(), train.digest, test.digest, metric.top]
    key = [plain(fit), plain(run.protocol.view), read, which, plain(run.protocol.features)]

    def block(start: int, stop: int) -> dict[str, Bool[np.ndarray, "n ks tops"]]:
        device = run.machine.device
        queries = unit(torch.from_numpy(np.array(test.block(start, stop))).to(device))
        top, rows = nearest(queries, _blocks(train, device), max(ks))
        similarities, labels = top.cpu().numpy(), train.labels[rows.cpu().numpy()]
        classes, own = len(run.data.train.classes), test.labels[start:stop]
        right = []
        for k in ks:
            scores = votes(similarities[:, :k], labels[:, :k], classes, fit.temperature)
            right.append([in_top(scores, own, most) for most in metric.top])
        return {"right": np.array(right).transpose(2, 0, 1)}

    right = run.blocks(f"knn-{which}", key, len(test), ROWS, block)["right"]
    return {(k, most): right[:, i, j] for i, k in enumerate(ks) for j, most in enumerate(metric.top)}


def _blocks(train: Vectors, device: str) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(train), ROWS):
        yield start, unit(torch.from_numpy(np.array(train.block(start, start + ROWS))).to(device))


def _scores(run: Run, tries: Sequence[Right]) -> list[Score]:
    metric, found = run.protocol.metric, []
    ks = sorted({k for k, _ in tries[0]})
    main = min(metric.main_k, max(ks)) if metric.main_k not in ks else metric.main_k
    for k, top in tries[0]:
        right, name = np.stack([each[k, top] for each in tries]), f"top-{top} (k={k})"
        if len(tries) == 1:
            interval = wilson(right[0])
        else:
            run.note_tries(name, 100 * right.mean(axis=1), main=top == 1)
            interval = bootstrap(partial(_mean_of, right), right.shape, "tries and images")
        value, published = float(np.mean(100 * right.mean(axis=1))), "top-1" if k == main and top == 1 else ""
        found.append(Score(name, value, right.shape[1], interval, main=top == 1, published=published))
    return found


def _mean_of(right: Bool[np.ndarray, "T N"], tries: Int[np.ndarray, " T"], rows: Int[np.ndarray, " N"]) -> float:
    return 100 * float(right[np.ix_(tries, rows)].mean())


KNN = Protocol(
    name="knn",
    variant="v2",
    summary="Classify each test image by the votes of its nearest training images.",
    source=f"{V2}, arXiv 2304.07193",
    kind="classification",
    datasets=("imagenet",),
    view=CropView(),
    features=VectorFeatures(),
    fit=Neighbours(),
    metric=TopK(),
    score=score,
    traps=(
        "The vectors are normed CLS tokens of length 1. Without the final norm the figure is another one.",
        "Weights exp(s / 0.07) and softmax(s / 0.07) give the same votes.",
        "The papers do not all say which k their figure has; every k is printed.",
        "Photos are shown as they are stored. Turned by their EXIF orientation, some have other neighbours.",
    ),
)
V1_KNN = replace(KNN, variant="v1", source=f"{V1}, arXiv 2104.14294")
V3_KNN = replace(KNN, variant="v3", source=f"{V3}, arXiv 2508.10104")
FEW = replace(
    KNN,
    name="knn-few-shot",
    variant="v3",
    summary="Classify each test image by the votes of its nearest among a few training images of each class.",
    source=V3,
    fit=Neighbours(shots=10, tries=5),
    sources={
        "fit.shots": "chosen here; the code takes any number",
        "fit.tries": "chosen here; the code takes any number",
    },
    traps=("The tries differ in their training images only: mean and sample standard deviation are reported.",),
)
VARIANTS = (KNN, V1_KNN, V3_KNN, FEW)
