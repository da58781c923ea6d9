"""Logistic regression on frozen features with a sweep of C: on one dataset, on Fine-S, and on few images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from vitbackbone.evaluation.datasets import Images, Labelled
from vitbackbone.evaluation.datasets.imagenet import listed
from vitbackbone.evaluation.logistic_sweep import Logistic, Samples, answers_of, fit_logistic, metric_of, sweep
from vitbackbone.evaluation.metrics.intervals import bootstrap, wilson
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import plain, setting
from vitbackbone.evaluation.subsets import few_of_each, few_of_the_rest, hold_out_share, shuffled
from vitbackbone.evaluation.trained_heads import keep_linear
from vitbackbone.evaluation.vectors import VectorFeatures, Vectors, vectors
from vitbackbone.evaluation.views import CropView

V2, V3 = "dinov2/eval/log_regression.py", "dinov3/eval/log_regression.py"
MEMORY = "from memory: check before relying on it"
METRICS = {
    "aircraft": "mean per class",
    "pets": "mean per class",
    "caltech101": "mean per class",
    "flowers102": "mean per class",
    "voc2007": "11-point mAP",
}
FINE_S = (
    *("food101", "cifar10", "cifar100", "sun397", "cars", "aircraft"),
    *("voc2007", "dtd", "pets", "caltech101", "flowers102", "cub200"),
)


@dataclass(frozen=True)
class Sweep:
    """The regression and the choice of its strength."""

    powers: tuple[float, float, float] = setting(
        (-6.0, 5.0, 45.0), "C is 10 to these powers: first, last, how many", V3
    )
    tolerance: float = setting(1e-12, "tolerance of lbfgs", V3)
    iterations: int = setting(1000, "most iterations of lbfgs", V3)
    held_out: float = setting(0.1, "share of the training images that C is chosen on", V3)
    held_from: Literal["classes", "all"] = setting("classes", "draw the share from each class, or from all images", V3)
    refit: bool = setting(True, "fit again on all training images with the chosen C", V3)
    shots: float = setting(0.0, "training images of each class; a share below 1; 0 means all", V3)
    tries: int = setting(1, "random choices of these images, with the seeds 0, 1, ...", V3)
    fixed: float = setting(0.0, "the value of C; 0 means the sweep", V3)


@dataclass(frozen=True)
class Accuracy:
    """The reported metric."""

    metric: str = setting("by dataset", "top-1, mean per class, 11-point mAP, or what is usual for the dataset", MEMORY)


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers for a dataset's test images, as `answers_of` returns them, in each of several tries or one fit."""

    dataset: str
    metric: str
    tries: Sequence[Shaped[np.ndarray, "N ..."]]
    labels: Int[np.ndarray, "N ..."]

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.tries), len(self.labels)

    def values(self, tries: Int[np.ndarray, " T"], rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " T"]:
        """Return the metric in percent of some images in some tries."""
        found = {i: metric_of(self.metric, self.tries[i][rows], self.labels[rows]) for i in {*tries.tolist()}}
        return 100 * np.array([found[i] for i in tries.tolist()])

    def value(self, tries: Int[np.ndarray, " T"], rows: Int[np.ndarray, " n"]) -> float:
        """Return the mean over tries."""
        return float(np.mean(self.values(tries, rows)))

    def score(self, run: Run) -> Score:
        """Return the mean over all tries on all images."""
        tries, images = (np.arange(count) for count in self.counts)
        values = self.values(tries, images)
        if len(tries) > 1:
            run.note_tries(f"{self.metric} of {self.dataset}", values)
            interval = bootstrap(self.value, self.counts, "tries and images")
        elif self.metric == "top-1":
            interval = wilson(self.tries[0] == self.labels)
        else:
            interval = bootstrap(self.value, self.counts, "images")
        return Score(self.metric, float(np.mean(values)), len(images), interval, dataset=self.dataset)


def score(run: Run) -> list[Score]:
    """Fit on one dataset."""
    return [replace(answer(run, run.dataset, run.data).score(run), published="top-1")]


def score_fine(run: Run) -> list[Score]:
    """Fit on each of the given datasets of Fine-S, and average. Its interval draws the images of each dataset."""
    names = [name for name in FINE_S if name in run.folders]
    answers = [answer(run, name, run.read(name)) for name in names]
    found = [each.score(run) for each in answers]
    label = "mean of 12" if len(names) == len(FINE_S) else f"mean of {len(names)}"
    if len(names) < len(FINE_S):
        run.note(f"{len(FINE_S) - len(names)} of the 12 datasets were not given, so the mean is not a published figure")

    def drawn(*rows: Int[np.ndarray, " _"]) -> float:
        pairs = zip(answers, rows[::2], rows[1::2], strict=True)
        return float(np.mean([each.value(tries, images) for each, tries, images in pairs]))

    interval = bootstrap(drawn, [count for each in answers for count in each.counts], "images of each dataset")
    mean = float(np.mean([each.value for each in found]))
    return [Score(label, mean, len(names), interval, "datasets", dataset="fine-s", published=label), *found]


def score_listed(run: Run) -> list[Score]:
    """Fit on the training images that a list names; C is chosen on a share of the others."""
    name = run.protocol.also[0]
    some = listed(run.data.train, run.read(name))
    rest = np.flatnonzero(~np.isin(np.array(run.data.train.names), np.array(some.names)))
    others = run.data.train.take(rest)
    held = others.take(np.flatnonzero(_held(run, others.labels)))
    return [replace(_fit_apart(run, some, held).score(run), published="top-1")]


def answer(run: Run, name: str, data: Labelled) -> Answers:
    """Fit on a dataset, and classify its test images."""
    fit, metric = run.protocol.fit, _metric(run, name)
    train, test = (
        _vectors(run, part, f"{name} {split}") for split, part in (("train", data.train), ("test", data.test))
    )
    if fit.shots:
        return _few_shots(run, name, train, test, metric)
    held = _held(run, train.labels)
    C = _choose(run, name, train, ~held, held, metric)
    rows = np.arange(len(train)) if fit.refit else np.flatnonzero(~held)
    return _answered(run, name, _fitted(run, name, train, rows, C), test, metric, C)


def _few_shots(run: Run, name: str, train: Vectors, test: Vectors, metric: str) -> Answers:
    """Fit on a few images of each class, for each try, as DINOv3's few-shot evaluation does."""
    fit = run.protocol.fit
    if fit.tries < 1:
        raise ValueError(f"fit.tries={fit.tries}; want at least 1")
    held = np.zeros(len(train), dtype=bool) if fit.fixed else _held(run, train.labels)
    labels, found = train.labels, []
    for seed in range(fit.tries):
        draw = few_of_each(labels, fit.shots, seed) if fit.fixed else few_of_the_rest(labels, held, fit.shots, seed)
        C = _choose(run, name, train, np.isin(np.arange(len(train)), draw), held, metric)
        run.facts[f"{name}, seed {seed}"] = {"C": C}
        found.append(answers_of(metric, _fitted(run, name, train, draw, C).scores(test.array)))
    return Answers(name, metric, found, test.labels)


def _fit_apart(run: Run, some: Images, held: Images) -> Answers:
    """Fit on some images, choose C on others, and classify the test images."""
    name, metric = run.dataset, _metric(run, run.dataset)
    parts = [
        _vectors(run, part, what) for part, what in ((some, "listed"), (held, "held out"), (run.data.test, "test"))
    ]
    data = [Samples(part.array, part.labels) for part in parts]
    key = [_key(run), run.data.digest(), [each.digest for each in parts[:2]], [*parts[0].names], metric]
    C = sweep(run, key, data[0], data[1], len(some.classes), metric)
    return _answered(run, name, _fitted(run, name, parts[0], np.arange(len(parts[0])), C), parts[2], metric, C)


def _choose(
    run: Run, name: str, train: Vectors, fitted: Bool[np.ndarray, " N"], held: Bool[np.ndarray, " N"], metric: str
) -> float:
    """Return the C of the best metric on held-out images, or the fixed one."""
    if run.protocol.fit.fixed:
        return run.protocol.fit.fixed
    if not held.any() or not fitted.any():
        raise ValueError(
            f"{name} has too few training images to choose C on a share of them; give more, or set C by fit.fixed"
        )
    key = [_key(run), run.read(name).digest(), train.digest, np.flatnonzero(fitted).tolist(), metric]
    array, labels = train.array, train.labels
    pairs = Samples(array[fitted], labels[fitted]), Samples(array[held], labels[held])
    return sweep(run, key, *pairs, _classes(train, run.read(name)), metric)


def _fitted(run: Run, name: str, train: Vectors, rows: Int[np.ndarray, " n"], C: float) -> Logistic:
    fit, classes = run.protocol.fit, _classes(train, run.read(name))

    def compute() -> dict[str, np.ndarray]:
        model = fit_logistic(train.array[rows], train.labels[rows], classes, C, fit.tolerance, fit.iterations)
        return {"coef": model.coef, "intercept": model.intercept}

    key = [_key(run), run.read(name).digest(), [train.names[i] for i in rows.tolist()], C]
    found = run.stage("logistic", key, compute)
    return Logistic(found["coef"], found["intercept"])


def _answered(run: Run, name: str, model: Logistic, test: Vectors, metric: str, C: float) -> Answers:
    """Classify the test images with a fitted model, and keep it as a head of the package."""
    run.facts[name] = {"C": C}
    weight, bias = (torch.from_numpy(each).float() for each in (model.coef, model.intercept))
    features = run.protocol.features.check(run.backbone.spec)
    keep_linear(run, f"logistic-{name}" if name != run.dataset else "logistic", weight, bias, features)
    return Answers(name, metric, [answers_of(metric, model.scores(test.array))], test.labels)


def _vectors(run: Run, images: Images, what: str) -> Vectors:
    return vectors(run, images, run.protocol.view, run.protocol.features, what)


def _held(run: Run, labels: Int[np.ndarray, "N ..."]) -> Bool[np.ndarray, " N"]:
    fit = run.protocol.fit
    if fit.held_from == "classes":
        return hold_out_share(labels, fit.held_out)
    held = np.zeros(len(labels), dtype=bool)
    held[shuffled(len(labels))[: int(len(labels) * fit.held_out)]] = True
    return held


def _metric(run: Run, name: str) -> str:
    asked = run.protocol.metric.metric
    if asked == "by dataset":
        return METRICS.get(name, "top-1")
    if asked not in ("top-1", "mean per class", "11-point mAP"):
        raise ValueError(f"metric.metric={asked}; want top-1, mean per class, 11-point mAP or by dataset")
    return asked


def _classes(train: Vectors, data: Labelled) -> int:
    return len(data.train.classes)


def _key(run: Run) -> list[Any]:
    return [plain(run.protocol.view), plain(run.protocol.features), plain(run.protocol.fit)]


LOGISTIC = Protocol(
    name="logistic",
    variant="v3",
    summary="Fit a logistic regression on frozen features, with the best of 45 strengths.",
    source=f"{V3}, arXiv 2508.10104",
    kind="classification",
    datasets=("imagenet", *FINE_S),
    view=CropView(short=224),
    features=VectorFeatures(),
    fit=Sweep(),
    metric=Accuracy(),
    score=score,
    several_labels=True,
    sources={"view.short": V3},
    traps=(
        "The short side is resized to 224, not to 256.",
        "Features are not scaled, and the fit is in float64.",
        "C is chosen on a tenth of the training images, and the fit is repeated on all of them.",
    ),
)
LOGISTIC_V2 = replace(
    LOGISTIC, variant="v2", source=f"{V2}, arXiv 2304.07193", fit=Sweep(held_from="all"), sources={"view.short": V2}
)
MIEB = replace(
    LOGISTIC,
    variant="mieb",
    source="mteb, MIEB, arXiv 2504.10471",
    fit=Sweep(shots=16.0, tries=5, iterations=100, tolerance=1e-4, fixed=1.0, refit=False),
    sources={},
    traps=("MIEB lets each model preprocess its images itself; here all have one view. Its draws are others.",),
)
FINE = replace(
    LOGISTIC,
    name="fine-s",
    summary="Fit a logistic regression on each of 12 small datasets, and average their metrics.",
    datasets=FINE_S,
    score=score_fine,
    joined=True,
    traps=(
        "Aircraft, Pets, Caltech-101 and Flowers report the mean of the classes, VOC 2007 the 11-point mAP.",
        "SUN397 and Caltech-101 depend on the list files of their splits.",
    ),
)
FINE_V2 = replace(FINE, variant="v2", source=f"{V2}, arXiv 2304.07193", fit=Sweep(held_from="all"))
SHOT = Sweep(held_out=0.01, refit=False, shots=0.01)
LOW_SHOT = replace(
    LOGISTIC,
    name="low-shot",
    summary="Fit a logistic regression on 1 % or 10 % of ImageNet's training images.",
    datasets=("imagenet",),
    fit=SHOT,
    sources={"fit.shots": "chosen here; the code takes any share"},
    traps=("C is chosen on 1 % of the training images, which are not part of the fit; there is no second fit.",),
)


def _low_shot(share: str, score: Callable[[Run], list[Score]]) -> Protocol:
    also = (f"imagenet-{share}",)
    source = f"{V3}; the list of SimCLR (google-research/simclr, imagenet_subsets)"
    return replace(LOW_SHOT, variant=share, source=source, fit=replace(SHOT, shots=0.0), also=also, score=score)


VARIANTS = (
    LOGISTIC,
    LOGISTIC_V2,
    MIEB,
    FINE,
    FINE_V2,
    LOW_SHOT,
    _low_shot("1percent", score_listed),
    _low_shot("10percent", score_listed),
)
