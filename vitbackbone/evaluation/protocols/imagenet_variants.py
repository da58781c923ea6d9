"""ImageNet's other test sets, with the head that the linear protocol chooses on the validation images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vitbackbone.evaluation.datasets import Images
from vitbackbone.evaluation.datasets.imagenet_variants import SEVERITIES
from vitbackbone.evaluation.metrics.accuracy import best_of, in_list
from vitbackbone.evaluation.metrics.corruption import ALEXNET, EXTRAS, corruption_errors, mean_corruption_error
from vitbackbone.evaluation.metrics.intervals import Interval, of_sums, wilson
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.protocols.linear import LINEAR, LINEAR_V3, LINEAR_V3_PAPER, accuracy_scores, best_head
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import setting
from vitbackbone.evaluation.vectors import vectors

CLASSES = 1000  # of ImageNet


@dataclass(frozen=True)
class OneAccuracy:
    """The reported accuracy."""

    top: tuple[int, ...] = setting((1, 5), "the label is among the so many highest logits")


@dataclass(frozen=True)
class Subset:
    """The accuracy among the classes of the test set."""

    cut: bool = setting(True, "cut the logits to the classes of the test set before the argmax", "hendrycks")


@dataclass(frozen=True)
class Real:
    """The accuracy by reassessed labels."""

    empty: Literal["skipped"] = setting("skipped", "images whose list of labels is empty", "reassessed-imagenet")


@dataclass(frozen=True)
class Corruption:
    """The mean corruption error."""

    short: int = setting(224, "short side before the centre crop: the images have 224 pixels, so none is resized", "v2")
    extras: bool = setting(False, "average the 4 extra corruptions too", "hendrycks/robustness: 15 corruptions")


def score_images(run: Run) -> list[Score]:
    """Classify images of all 1000 classes: V2 and Sketch."""
    name = run.protocol.also[0]
    found = run.read(name)
    images = found if isinstance(found, Images) else found.labelled(run.data.train.classes)[0]
    if isinstance(found, Images):
        _note_numbers(run, name)
    _check_classes(run, images)
    head, _ = best_head(run)
    test = vectors(run, images, run.protocol.view, head.features, name)
    scores = accuracy_scores(head.logits(run, test), test.labels, run.protocol.metric.top)
    return [replace(each, dataset=name) for each in scores]


def score_subset(run: Run) -> list[Score]:
    """Classify the images of ImageNet-A and -R, which have some of the 1000 classes, among only these classes."""
    name = run.protocol.also[0]
    images, subset = run.read(name).labelled(run.data.train.classes)
    head, _ = best_head(run)
    test = vectors(run, images, run.protocol.view, head.features, name)
    logits = head.logits(run, test)
    predicted = best_of(logits, subset) if run.protocol.metric.cut else logits.argmax(axis=1)
    return [_accuracy("top-1", predicted == test.labels, name)]


def score_real(run: Run) -> list[Score]:
    """Compare the predictions of the validation images with the lists of ReaL."""
    name = run.protocol.also[0]
    lists = run.read(name)
    _note_numbers(run, name)
    keys = {each: each.rpartition("/")[2].rpartition(".")[0] for each in run.data.test.names}
    lost = [each for each, key in keys.items() if key not in lists]
    if lost:
        raise ValueError(f"real.json has no list for {lost[0]}; names end in ILSVRC2012_val_00000001 and so on")
    head, test = best_head(run)
    predicted = head.logits(run, test).argmax(axis=1)
    right = in_list(predicted, [lists[keys[each]] for each in test.names])
    return [_accuracy("top-1", right, name, "images with a label")]


class Part(NamedTuple):
    """The errors of one corruption and severity."""

    weight: float  # weight of its error in the mCE
    rows: Int[np.ndarray, " N"]  # which photos these are
    wrong: Bool[np.ndarray, " N"]


def score_corrupted(run: Run) -> list[Score]:
    """Classify the corrupted images, and weigh the errors by AlexNet's."""
    name, metric = run.protocol.also[0], run.protocol.metric
    data, wanted = run.read(name), ALEXNET | (EXTRAS if metric.extras else {})
    corruption_errors({kind: 0.0 for kind, _ in data.parts}, wanted)  # raises if a corruption is missing
    head, _ = best_head(run)
    errors: dict[str, list[float]] = {}
    photos: dict[str, int] = {}  # the row of each photo, whatever its corruption
    parts: list[Part] = []
    view = replace(run.protocol.view, short=metric.short)
    for (kind, severity), part in sorted(data.parts.items()):
        if kind in wanted:
            images, _ = part.labelled(run.data.train.classes)
            test = vectors(run, images, view, head.features, f"{kind} {severity}")
            wrong = head.logits(run, test).argmax(axis=1) != test.labels
            errors.setdefault(kind, []).append(float(wrong.mean()))
            rows = [photos.setdefault(path.partition("/")[2], len(photos)) for path in test.names]
            parts.append(Part(100 / len(wanted) / wanted[kind] / len(SEVERITIES), np.array(rows), wrong))
    means = {kind: float(np.mean(each)) for kind, each in errors.items()}
    run.facts["errors"] = {kind: [100 * each for each in severities] for kind, severities in errors.items()}
    run.facts["corruption errors"] = {kind: 100 * each for kind, each in corruption_errors(means, wanted).items()}
    value = 100 * mean_corruption_error(means, wanted)
    interval, total = _of_photos(parts, len(photos)), sum(len(each.rows) for each in parts)
    return [Score("mCE", value, total, interval, better="lower", dataset=name, published="mCE")]


def _of_photos(parts: Sequence[Part], count: int) -> Interval:
    """Return the interval of the weighted sum of errors. Each of `count` photos is drawn with all its corruptions."""
    counts = np.zeros((count, len(parts), 2), dtype=np.int8)
    for column, part in enumerate(parts):
        counts[part.rows, column, 0], counts[part.rows, column, 1] = part.wrong, 1
    weights = np.array([part.weight for part in parts])

    def figure(total: Float[np.ndarray, "P 2"]) -> float:
        return float(np.dot(weights, total[:, 0] / total[:, 1]))

    return of_sums(counts, figure, "photos with all their corruptions")


def _accuracy(metric: str, right: Bool[np.ndarray, " N"], dataset: str, of: str = "images") -> Score:
    value = 100 * float(right.mean())
    return Score(metric, value, len(right), wilson(right), of, dataset=dataset, published=metric)


def _note_numbers(run: Run, name: str) -> None:
    """Note that numbered classes mean other classes if only a part of ImageNet is given."""
    if (count := len(run.data.train.classes)) != CLASSES:
        run.note(f"{name} numbers {CLASSES} classes; a number is taken as a place among the {count} classes given")


def _check_classes(run: Run, images: Images) -> None:
    """Raise `ValueError` if the images have class indices that the head lacks, as V2 has with part of ImageNet."""
    count = len(run.data.train.classes)
    if int(images.labels.max()) >= count:
        raise ValueError(
            f"{images.root} has the class {int(images.labels.max())}, and the ImageNet given has {count} classes; "
            "give the whole ImageNet"
        )


def _variants(
    name: str, title: str, score: Callable[[Run], Sequence[Score]], metric: object, traps: Sequence[str]
) -> list[Protocol]:
    summary = f"Classify {title} with the linear head chosen on ImageNet's validation images."
    return [
        replace(
            each,
            name=name,
            summary=summary,
            datasets=("imagenet",),
            also=(name,),
            metric=metric,
            score=score,
            traps=tuple(traps),
        )
        for each in (LINEAR, LINEAR_V3, LINEAR_V3_PAPER)
    ]


V2_TRAP = "Folders are class indices. Sorted as text they are 0, 1, 10, 100, and the accuracy is chance."
CUT_TRAP = "The logits are cut to the 200 classes before the argmax. Over 1000 classes the figure is much lower."
C_TRAPS = (
    "The images have 224 pixels already: they are cropped, not resized to 256 first.",
    "The mean is over 15 corruptions. DINOv3's code also averages the 4 extra ones: --set extras=true.",
)
VARIANTS = (
    *_variants("imagenet-v2", "ImageNet V2", score_images, OneAccuracy(), (V2_TRAP,)),
    *_variants(
        "imagenet-real", "the validation images by ReaL labels", score_real, Real(), ("Empty lists are skipped.",)
    ),
    *_variants("imagenet-a", "ImageNet-A", score_subset, Subset(), (CUT_TRAP,)),
    *_variants("imagenet-r", "ImageNet-R", score_subset, Subset(), (CUT_TRAP,)),
    *_variants("imagenet-sketch", "ImageNet-Sketch", score_images, OneAccuracy(), ()),
    *_variants("imagenet-c", "ImageNet-C", score_corrupted, Corruption(), C_TRAPS),
)
