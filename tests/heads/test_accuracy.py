"""Accuracies, their intervals, and the report of each class."""

import math

import numpy as np
import pytest

from heads import KnnProbe, LinearProbe, accuracy_interval, report
from tests.heads.samples import clusters


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (8, 10), (10, 10), (431, 1000)])
def test_accuracy_interval_is_wilsons(correct, total):
    z, p = 1.959963984540054, correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2) / (1 + z * z / total)
    assert accuracy_interval(correct, total) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_accuracy_interval_of_nothing():
    for correct, total in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match=f"{correct} correct of {total} samples"):
            accuracy_interval(correct, total)


def test_report_counts_by_class():
    X = np.array([[1.0, 0], [0, 1], [-1, 0]])
    probe = KnnProbe(k=1).fit(X, [0, 1, 2])
    # predicted:      0        0          1          1          1
    test = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [0.2, 1], [-0.1, 1]])
    result = report(probe, test, [0, 1, 1, 1, 3], class_names=["cat", "dog", "owl", "fox"])
    assert (result.correct, result.total, result.accuracy) == (3, 5, 0.6)
    assert result.interval == accuracy_interval(3, 5)
    rows = {row.name: (row.samples, row.precision, row.recall) for row in result.classes}
    assert rows == {
        "cat": (1, 0.5, 1.0),
        "dog": (3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        "owl": (0, pytest.approx(math.nan, nan_ok=True), pytest.approx(math.nan, nan_ok=True)),
        "fox": (1, pytest.approx(math.nan, nan_ok=True), 0.0),  # the probe has never seen one
    }
    assert result.confusion == ((1, 0, 0, 0), (1, 2, 0, 0), (0, 0, 0, 0), (0, 1, 0, 0))
    low, high = result.interval
    assert str(result).splitlines() == [
        f"accuracy 0.6000 (95% interval {low:.4f} to {high:.4f}), 3 of 5",
        "",
        "class  samples  precision  recall",
        "cat          1     0.5000  1.0000",
        "dog          3     0.6667  0.6667",
        "owl          0          -       -",
        "fox          1          -  0.0000",
    ]


def test_report_names_labels_by_themselves_and_refuses_what_does_not_fit():
    X, y, test = clusters(60, 3)
    names = np.array(["cat", "dog", "owl"])[y]
    probe = LinearProbe().fit(X, names)
    result = report(probe, test, names)
    assert [row.name for row in result.classes] == ["cat", "dog", "owl"]
    assert result.accuracy == probe.score(test, names)
    with pytest.raises(ValueError, match=r"[Mm]ix of label"):
        report(probe, test, y)
    with pytest.raises(ValueError, match="class_names has 2 names"):
        report(LinearProbe().fit(X, y), test, y, class_names=["cat", "dog"])
    with pytest.raises(ValueError, match="class_names has 3 names"):
        report(probe, test, names, class_names=["cat", "dog", "owl"])
