"""Metrics of a fitted probe: accuracy and its interval, precision and recall of each class, the confusion matrix.

Axes: `N` samples, `K` classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import unique_labels

from heads.probes.base import Probe, labelled
from heads.probes.rows import Array


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """Return (low, high) of an accuracy's Wilson 95% interval.

    Raises `ValueError` unless 0 <= correct <= total > 0.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} correct of {total} samples; want one sample or more, and 0 to all of them correct")
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class ClassReport:
    """The metrics of a probe on one class."""

    name: str
    samples: int
    precision: float  # NaN where the class was never predicted
    recall: float  # NaN where the class has no sample


@dataclass(frozen=True)
class Report:
    """The metrics of a probe on a set of samples. `str()` gives a table to print."""

    correct: int
    total: int
    classes: tuple[ClassReport, ...]
    confusion: tuple[tuple[int, ...], ...]  # numbers of samples: a row for each class, a column for each predicted one

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high) of the Wilson 95% interval of the accuracy."""
        return accuracy_interval(self.correct, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        width = max(len(name) for name in ("class", *(row.name for row in self.classes)))
        lines = [
            f"accuracy {self.accuracy:.4f} (95% interval {low:.4f} to {high:.4f}), {self.correct} of {self.total}",
            "",
            f"{'class':<{width}}  samples  precision  recall",
        ]
        for row in self.classes:
            precision, recall = ("-" if math.isnan(v) else f"{v:.4f}" for v in (row.precision, row.recall))
            lines.append(f"{row.name:<{width}}  {row.samples:>7}  {precision:>9}  {recall:>6}")
        return "\n".join(lines)


def report(probe: Probe, X: Any, y: ArrayLike, class_names: Sequence[str] | None = None) -> Report:
    """Measure a fitted probe on features, as its `predict` takes them, and labels (N,).

    Samples with the label -1, "unknown", are left out with a warning. `class_names` has the name of each label, if
    labels are 0, 1, ...; by default a label is its own name. The table has the classes of the probe and of `y`.
    Samples of a class that the probe does not know count as wrong.

    Raises `ValueError` if the labels are of another kind than the probe's, or have no name.
    """
    predicted, truth = probe.predict(X), column_or_1d(y)
    check_consistent_length(predicted, truth)
    known = labelled(truth, "report")
    return report_of(probe.classes_, predicted[known], truth[known], class_names)


def report_of(classes: Array, predicted: Array, truth: Array, class_names: Sequence[str] | None = None) -> Report:
    """Measure predictions (N,) of a probe with classes (K,) against labels (N,), all of them known, as in `report`."""
    labels = unique_labels(classes, truth)  # refuses numbers against strings
    if class_names is not None and not all(
        isinstance(i, int | np.integer) and 0 <= i < len(class_names) for i in labels
    ):
        raise ValueError(f"class_names has {len(class_names)} names, for labels from 0; the labels are {list(labels)}")
    precision, recall, _, samples = precision_recall_fscore_support(
        truth, predicted, labels=labels, zero_division=float("nan")
    )
    confusion = tuple(tuple(row) for row in confusion_matrix(truth, predicted, labels=labels).tolist())
    names = [str(label) if class_names is None else class_names[label] for label in labels]
    rows = zip(names, samples.astype(int).tolist(), precision.tolist(), recall.tolist(), strict=True)
    return Report(int((predicted == truth).sum()), len(truth), tuple(ClassReport(*row) for row in rows), confusion)
