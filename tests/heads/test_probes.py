"""The probes against scikit-learn's contract, plain scikit-learn, a double loop, and files."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import heads
from heads import (
    AttentiveProbe,
    KnnProbe,
    LinearProbe,
    accuracy_interval,
    blocks,
    load_probe,
    logistic,
    probes,
    report,
    save_probe,
)

SWEEP = 10 ** np.linspace(-6, 5, 45)
PROBES = [LinearProbe(), LinearProbe("dinov2"), LinearProbe(scale=False), KnnProbe(), KnnProbe(k=1)]


def clusters(n: int, num_classes: int, dim: int = 12, spread: float = 0.7, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Overlapping Gaussian clusters, whose features have very different means and scales: X, y, and X of a test."""
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(num_classes, dim))
    y = np.arange(n) % num_classes
    offset, magnitude = 5 * rng.normal(size=dim), np.exp(rng.normal(size=dim))
    train, test = ((centres[y] + rng.normal(size=(n, dim)) + offset) * magnitude for _ in range(2))
    return train, y, test


def exact(C: float) -> LogisticRegression:
    """scikit-learn's, by Newton's method and not stopped early: its L-BFGS is left far from the optimum by features
    that are correlated or not scaled."""
    return LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000)


@parametrize_with_checks(PROBES)
def test_keeps_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_works_in_pipelines_searches_and_cross_validation(probe):
    X, y, _ = clusters(120, 3, spread=3)
    names = np.array(["cat", "dog", "owl"])[y]
    assert cross_val_score(make_pipeline(MinMaxScaler(), probe), X, names, cv=3).min() > 0.9
    grid = {"scale": [True, False]} if isinstance(probe, LinearProbe) else {"k": np.array([1, 5])}
    search = GridSearchCV(probe, grid, cv=3).fit(X, names)
    assert search.best_score_ > 0.9
    assert set(search.predict(X)) == {"cat", "dog", "owl"}


# ---- LinearProbe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("scale", [True, False])
def test_clip_is_logistic_regression_with_its_c(num_classes, scale):
    X, y, test = clusters(200, num_classes)
    plain = exact(0.316)
    oracle = (make_pipeline(StandardScaler(), plain) if scale else plain).fit(X, y)
    probe = LinearProbe("clip", scale=scale).fit(X, y)
    assert probe.C_ == 0.316
    np.testing.assert_allclose(probe.predict_proba(test), oracle.predict_proba(test), atol=1e-3)
    np.testing.assert_array_equal(probe.predict(test), oracle.predict(test))
    assert probe.score(test, y) == oracle.score(test, y) < 1


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("scale", [True, False])
def test_a_fit_that_goes_on_ends_at_the_optimum(monkeypatch, num_classes, scale):
    X, y, test = clusters(200, num_classes)
    oracle = (make_pipeline(StandardScaler(), exact(0.316)) if scale else exact(0.316)).fit(X, y)
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-9)
    monkeypatch.setattr(logistic, "GAIN", 0.0)
    logits = LinearProbe(scale=scale).fit(X, y).decision_function(test)
    np.testing.assert_allclose(logits, oracle.decision_function(test), rtol=1e-6, atol=1e-6)


def test_scaling_is_folded_into_the_coefficients():
    X, y, test = clusters(200, 4)
    probe = LinearProbe().fit(X, y)
    assert probe.coef_.shape == (4, 12)
    np.testing.assert_allclose(probe.decision_function(test), test @ probe.coef_.T + probe.intercept_, rtol=1e-12)


@pytest.mark.parametrize("preset", ["clip", "dinov2"])
def test_with_scaling_the_magnitude_of_features_is_irrelevant(preset):
    X, y, test = clusters(200, 4)
    expected = LinearProbe(preset).fit(X, y)
    for factor, offset in [(1e4, 3.0), (1e-4, 0.0)]:
        probe = LinearProbe(preset).fit(X * factor + offset, y)
        assert probe.C_ == expected.C_
        np.testing.assert_allclose(probe.predict_proba(test * factor + offset), expected.predict_proba(test), atol=1e-3)


def test_constant_features_are_ignored():
    X, y, test = clusters(100, 3)
    padded = [np.column_stack([a, np.full(100, 7.0)]) for a in (X, test)]
    expected, probe = LinearProbe().fit(X, y), LinearProbe().fit(padded[0], y)
    np.testing.assert_allclose(probe.predict_proba(padded[1]), expected.predict_proba(test), atol=2e-4)


@pytest.mark.parametrize("preset", ["clip", "dinov2"])
def test_float32_stays_and_predicts_as_float64(preset):
    X, y, test = clusters(200, 4)
    single = LinearProbe(preset).fit(X.astype(np.float32), y)
    double = LinearProbe(preset).fit(X, y)
    assert single.coef_.dtype == single.predict_proba(test).dtype == np.float32
    assert single.C_ == double.C_
    np.testing.assert_allclose(single.predict_proba(test), double.predict_proba(test), atol=2e-3)
    half = LinearProbe(preset).fit(X.astype(np.float16), y)
    assert half.coef_.dtype == np.float32


@pytest.mark.parametrize("num_classes", [2, 4])
def test_dinov2_chooses_the_c_of_a_naive_sweep_and_refits_on_all(num_classes):
    X, y, test = clusters(240, num_classes, dim=40, spread=0.35)
    held = probes.hold_out(y, 0.1)
    scaled = StandardScaler().fit_transform(X)
    accuracies = [
        LogisticRegression(C=C, max_iter=1000).fit(scaled[~held], y[~held]).score(scaled[held], y[held]) for C in SWEEP
    ]
    assert min(accuracies) < max(accuracies)  # there is something to choose
    probe = LinearProbe("dinov2").fit(X, y)
    assert math.isclose(probe.C_, SWEEP[np.argmax(accuracies)])
    refit = make_pipeline(StandardScaler(), exact(probe.C_)).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(test), refit.predict_proba(test), atol=2e-3)


def test_a_candidate_that_does_not_converge_is_judged_without_a_warning(monkeypatch):
    X, y, _ = clusters(240, 4, spread=3)
    monkeypatch.setattr(logistic, "MAX_ITER", 1)
    with pytest.warns(ConvergenceWarning, match="did not converge in 1 iterations") as warned:
        LinearProbe("dinov2").fit(X, y)
    assert len(warned) == 1  # that of the fit to all


def test_the_hold_out_takes_a_tenth_of_each_class_and_leaves_it_some():
    y = np.repeat([0, 1, 2, 3, 4], [200, 33, 5, 2, 1])
    np.random.default_rng(0).shuffle(y)
    held = probes.hold_out(y, 0.1)
    assert np.bincount(y[held], minlength=5).tolist() == [20, 3, 1, 1, 0]
    first = np.flatnonzero(y == 0)[:20]
    assert not held[first].all()  # drawn, not the first ones


def test_dinov2_with_one_sample_of_each_class_takes_the_c_of_clip():
    X, y, _ = clusters(6, 6)
    probe = LinearProbe("dinov2").fit(X, y)
    assert probe.C_ == 0.316
    np.testing.assert_array_equal(probe.predict(X), y)


def test_dinov2_with_fewer_than_ten_samples_of_a_class():
    X, y, test = clusters(5 * 8, 8, spread=3)
    probe = LinearProbe("dinov2").fit(X, np.array([f"class {i}" for i in y]))
    assert probe.score(test, np.array([f"class {i}" for i in y])) > 0.9


def digits() -> tuple[np.ndarray, ...]:
    """A third of scikit-learn's digits to fit on, and another to predict: X, y, X and y of a test."""
    X, y = load_digits(return_X_y=True)
    return X[::3], y[::3], X[1::3], y[1::3]


def nearly_constant(kind: str, offset: float, count: int, y: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(count)
    return {
        "rounding of float32": offset * (1 + 3e-8 * rng.normal(size=(count, 8))),
        "rounding of float64": offset * (1 + 1e-16 * rng.normal(size=(count, 8))),
        "seldom another value": offset * (1 + 1.3e-7 * (rng.random((count, 8)) < 0.01)),
        "constant": np.full((count, 8), offset),
        "an outlier": np.where(np.arange(count)[:, None] == 7, offset, 0) * np.ones((1, 8)),
        "the label in the last bit": offset * (1 + 1.3e-7 * (y[:, None] == np.arange(10))),
    }[kind]


KINDS = [
    "rounding of float32",
    "rounding of float64",
    "seldom another value",
    "constant",
    "an outlier",
    "the label in the last bit",
]


@pytest.mark.parametrize("offset", [1e-30, 1e-10, 1.0, -1e3, 1e10, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_features_that_hardly_vary_cost_no_accuracy(kind, dtype, offset):
    X, y, test, y_test = digits()
    X, test = (
        np.column_stack([part, nearly_constant(kind, offset, len(part), labels)]).astype(dtype)
        for part, labels in ((X, y), (test, y_test))
    )
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.316, max_iter=2000)).fit(X.astype(np.float64), y)
    ours = LinearProbe().fit(X, y)
    assert ours.score(X, y) >= theirs.score(X.astype(np.float64), y) - 0.005
    assert ours.score(test, y_test) >= theirs.score(test.astype(np.float64), y_test) - 0.01
    assert ours.score(test, y_test) > 0.93
    lazy = LinearProbe().fit(LazyRows(X), y)  # blocks of another size than the array
    np.testing.assert_allclose(lazy.predict_proba(test), ours.predict_proba(test), atol=1e-2)
    np.testing.assert_array_equal(lazy.predict(LazyRows(test)), lazy.predict(test))


@dataclass
class LazyRows:
    """Rows of an array that are read in odd blocks."""

    array: np.ndarray

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        return LazyRows(self.array[index])

    def blocks(self, rows):
        return (self.array[start : start + 97] for start in range(0, len(self.array), min(rows, 97)))


def test_half_precision_features_that_hardly_vary_cost_no_accuracy():
    X, y, test, y_test = digits()
    rng = np.random.default_rng(0)
    X, test = (
        np.column_stack([part, 1000 + 0.2 * rng.normal(size=(len(part), 8))]).astype(np.float16) for part in (X, test)
    )
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.316, max_iter=2000)).fit(X.astype(np.float64), y)
    assert LinearProbe().fit(X, y).score(test, y_test) >= theirs.score(test.astype(np.float64), y_test) - 0.01


def test_doubled_features_share_their_coefficients():
    X, y, test, _ = digits()
    doubled = make_pipeline(StandardScaler(), exact(0.316)).fit(np.hstack([X, X]), y)
    probe = LinearProbe().fit(np.hstack([X, X]), y)
    both = np.hstack([test, test])
    np.testing.assert_allclose(probe.predict_proba(both), doubled.predict_proba(both), atol=5e-3)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_values_far_from_all_that_were_fitted_on_are_finite_logits(num_classes):
    X, y, test = clusters(90, num_classes)
    X, test = (np.column_stack([part, 1e-30 * part[:, 0]]).astype(np.float32) for part in (X, test))
    probe = LinearProbe().fit(X, y)
    test[:, -1] = 3e38
    far = probe.predict_proba(test)
    assert np.isfinite(far).all()
    logits = (test.astype(np.float64) - probe._scaling.mean) / probe._scaling.scale @ probe._weights.T
    expected = (logits[:, 0] > 0).astype(int) if num_classes == 2 else logits.argmax(axis=1)
    np.testing.assert_array_equal(probe.predict(test), expected)


def test_features_too_large_to_fit_as_they_are_say_so():
    X, y, _ = clusters(60, 3)
    with pytest.raises(ValueError, match=r"bring them to one scale \(scale=True\)"):
        LinearProbe(scale=False).fit((X * 1e36).astype(np.float32), y)
    with pytest.raises(ValueError, match="feature 3 has values whose squares overflow"):
        LinearProbe().fit(np.where(np.arange(12) == 3, 1e200 * X, X), y)


# ---- labels that are unknown, and parameters -----------------------------------------------------------------------

FITS = {
    "linear": (LinearProbe(), lambda X: X),
    "linear, rows": (LinearProbe(), LazyRows),
    "knn": (KnnProbe(k=3), lambda X: X),
    "knn, rows": (KnnProbe(k=3), LazyRows),
    "attentive": (AttentiveProbe("aim", epochs=2, progress=False), lambda X: X[:, None]),
}


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float32])
@pytest.mark.parametrize("name", FITS)
def test_samples_without_a_label_are_left_out_with_a_word(name, dtype):
    probe, give = FITS[name]
    X, y, test = (part.astype(np.float32) if part.dtype.kind == "f" else part for part in clusters(90, 3))
    unknown = np.arange(90) % 5 == 0
    labels = np.where(unknown, -1, y).astype(dtype)
    known = clone(probe).fit(give(X[~unknown]), y[~unknown].astype(dtype))
    with pytest.warns(UserWarning, match="18 of 90 samples have the label -1") as warned:
        fitted = clone(probe).fit(give(X), labels)
    assert warned[0].filename == __file__ or "jaxtyping" in warned[0].filename
    assert fitted.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(fitted.predict(give(test)), known.predict(give(test)))
    with pytest.warns(UserWarning, match="left out"):
        assert fitted.score(give(test), labels) == fitted.score(give(test[~unknown]), y[~unknown].astype(dtype))
    names = ["a", "b", "c"] if dtype != np.float32 else None
    with pytest.warns(UserWarning, match="left out"):
        result = report(fitted, give(test), labels, class_names=names)
    assert result.total == 72
    with pytest.raises(ValueError, match="every label is -1"):
        clone(probe).fit(give(X), np.full(90, -1, dtype))


@pytest.mark.parametrize("name", FITS)
def test_labels_of_minus_one_and_one_are_two_classes_with_a_word(name):
    probe, give = FITS[name]
    X, y, _ = clusters(60, 2, spread=3)
    with pytest.warns(UserWarning, match="taken as two classes"):
        fitted = clone(probe).fit(give(X.astype(np.float32)), 2 * y - 1)
    assert fitted.classes_.tolist() == [-1, 1]


WRONG = {
    "linear": {"preset": ("clap", None, 3, ["clip"]), "scale": ("no", None, 1.0)},
    "knn": {
        "k": (0, -1, True, 2.5, None, "3", np.nan),
        "temperature": (0, -0.1, math.nan, math.inf, None, True, "warm", [0.1]),
    },
    "attentive": {
        "form": ("dino", None),
        "num_heads": (0, -2, True, 1.5, "2"),
        "epochs": (0, 1.5, True, None),
        "batch_size": (0, "8", None),
        "lr": (0, -1, None, math.nan, True),
        "weight_decay": (-1, None, math.inf),
        "random_state": (None, True, -1, 2**32, 0.5, np.random.RandomState(0), np.random.default_rng(0)),
        "device": ("gpu", "cuda:99", 3.5, None),
        "progress": (None, "yes", 2),
    },
}


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        (name, parameter, value)
        for name, each in WRONG.items()
        for parameter, values in each.items()
        for value in values
    ],
    ids=str,
)
def test_a_wrong_parameter_is_refused_by_fit_in_words(name, parameter, value):
    probe, give = FITS[name]
    X, y, _ = clusters(30, 3)
    wrong = clone(probe).set_params(**{parameter: value})  # which no estimator of scikit-learn's refuses
    with pytest.raises(ValueError, match=rf"{type(probe).__name__}: (unknown )?{parameter}") as refused:
        wrong.fit(give(X), y)
    assert str(value) in str(refused.value) or repr(value) in str(refused.value)


@pytest.mark.parametrize("name", FITS)
def test_wrong_features_and_labels_are_refused_in_words(name):
    probe, give = FITS[name]
    X, y, _ = clusters(30, 3)
    X = X.astype(np.float32)
    bad = X.copy()
    bad[4, 2] = np.nan
    fitted = clone(probe).fit(give(X), y)
    for features, labels, match in [
        (give(bad), y, "NaN"),
        (give(X[:0]), y[:0], r"0 sample|no sample|at least one sample"),
        (give(X), y[:-1], "inconsistent numbers of samples"),
        *([] if isinstance(probe, KnnProbe) else [(give(X), np.zeros(30, int), "one class")]),
        (give(X), y + 0.5, "continuous|Unknown label type"),
        (give(X), [None] * 30, "None"),
    ]:
        with pytest.raises(ValueError, match=match):
            clone(probe).fit(features, labels)
    for features, match in [(give(bad), "NaN"), (give(X[:, :5]), r"5.*12|12.*5"), (give(X[:0]), "sample")]:
        with pytest.raises(ValueError, match=match):
            fitted.predict(features)


def test_linear_errors():
    X, y, _ = clusters(30, 3)
    with pytest.raises(ValueError, match="unknown preset 'clap'; want one of clip, dinov2"):
        LinearProbe("clap").fit(X, y)
    for preset in ("clip", "dinov2"):
        with pytest.raises(ValueError, match="class"):
            LinearProbe(preset).fit(X, np.zeros(30))


# ---- KnnProbe ------------------------------------------------------------------------------------------------------


def double_loop(X: np.ndarray, y: np.ndarray, test: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """eval_knn.py of facebookresearch/dino, spelled out."""
    votes = np.zeros((len(test), y.max() + 1))
    for i, a in enumerate(test):
        similarities = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in X]
        for j in sorted(range(len(X)), key=lambda j: -similarities[j])[:k]:
            votes[i, y[j]] += math.exp(similarities[j] / temperature)
    return votes / votes.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (60, 0.07), (500, 0.07)])
def test_knn_votes_as_dino(k, temperature):
    X, y, test = clusters(60, 4, spread=0.5)
    probe = KnnProbe(k, temperature).fit(X, y)
    expected = double_loop(X, y, test, k, temperature)
    np.testing.assert_allclose(probe.predict_proba(test), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(probe.predict(test), expected.argmax(axis=1))
    single = KnnProbe(k, temperature).fit(X.astype(np.float32), y)
    assert single.features_.dtype == np.float32
    np.testing.assert_allclose(single.predict_proba(test), expected, atol=1e-4)


@pytest.mark.parametrize("block", [1, 7, 60])
def test_knn_does_not_depend_on_its_blocks(monkeypatch, block):
    X, y, test = clusters(60, 4)
    expected = double_loop(X, y, test, 5, 0.07)
    monkeypatch.setattr(blocks, "ROWS", block)
    probe = KnnProbe(k=5).fit(X, y)
    assert len(list(probe._votes(test))) == -(-60 // block)
    np.testing.assert_allclose(probe.predict_proba(test), expected, rtol=1e-9)
    np.testing.assert_array_equal(probe.predict(test), expected.argmax(axis=1))


def test_knn_survives_zero_vectors_and_extreme_temperatures():
    X, y, test = clusters(60, 4)
    X[3], test[5] = 0, 0
    for temperature in (1e-6, 1e6):
        shares = KnnProbe(temperature=temperature).fit(X, y).predict_proba(test)
        np.testing.assert_allclose(shares.sum(axis=1), 1)
    nearest = KnnProbe(k=1).fit(X, y).predict_proba(test)
    np.testing.assert_allclose(KnnProbe(temperature=1e-6).fit(X, y).predict_proba(test)[:5], nearest[:5], atol=1e-9)
    np.testing.assert_allclose(KnnProbe(k=60).fit(X, y).predict_proba(test)[5], np.bincount(y) / 60)  # all equally far


@pytest.mark.parametrize("magnitude", [1e-42, 1e-30, 1e-20, 1e19, 1e30, 1e35])
def test_knn_does_not_depend_on_the_magnitude_of_float32(magnitude):
    X, y, test = (part.astype(np.float32) if part.dtype.kind == "f" else part for part in clusters(60, 4))
    expected = KnnProbe(k=5).fit(X, y).predict(test)
    probe = KnnProbe(k=5).fit(X * np.float32(magnitude), y)
    agreement = (probe.predict(test * np.float32(magnitude)) == expected).mean()
    assert agreement > (0.9 if magnitude < 1e-38 else 0.98)  # denormal numbers have few digits


def test_knn_errors():
    X, y, _ = clusters(30, 3)
    for wrong in ({"k": 0}, {"temperature": 0.0}, {"temperature": math.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            KnnProbe(**wrong).fit(X, y)
    with pytest.raises(ValueError, match=r"k must be a positive integer, got 2\.5"):
        KnnProbe().set_params(k=2.5).fit(X, y)


# ---- measuring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (8, 10), (10, 10), (431, 1000)])
def test_accuracy_interval_is_wilsons(correct, total):
    z, p = 1.959963984540054, correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2) / (1 + z * z / total)
    assert accuracy_interval(correct, total) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_accuracy_interval_of_nothing():
    for correct, total in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match=r"."):
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


# ---- files ---------------------------------------------------------------------------------------------------------

LABELS = {
    "strings": np.array(["cat", "ダックス", "owl"]),
    "objects": np.array(["cat", "dog", "owl"], dtype=object),
    "integers": np.array([3, -2, 12]),
    "narrow": np.array([3, 1, 2], dtype=np.uint8),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_a_saved_probe_predicts_the_same_bits(tmp_path, probe, dtype, labels):
    X, y, test = (a.astype(dtype) if a.dtype.kind == "f" else a for a in clusters(90, 3))
    fitted = clone(probe).fit(X, LABELS[labels][y])
    about = {"backbone": "nano", "layer": -1, "names": ["a", "b"], "nested": {"x": None}}
    save_probe(fitted, tmp_path / "new" / "probe", about=about)
    assert sorted(p.name for p in (tmp_path / "new" / "probe").iterdir()) == ["probe.json", "probe.safetensors"]

    loaded, about_loaded = load_probe(tmp_path / "new" / "probe")
    assert about_loaded == about
    assert type(loaded) is type(fitted)
    assert loaded.get_params() == fitted.get_params()
    assert loaded.n_features_in_ == 12
    assert loaded.classes_.dtype.kind == fitted.classes_.dtype.kind
    np.testing.assert_array_equal(loaded.classes_, fitted.classes_)
    np.testing.assert_array_equal(loaded.predict_proba(test), fitted.predict_proba(test))
    np.testing.assert_array_equal(loaded.predict(test), fitted.predict(test))
    assert loaded.predict_proba(test).dtype == fitted.predict_proba(test).dtype
    if isinstance(fitted, LinearProbe):
        assert loaded.C_ == fitted.C_
        np.testing.assert_array_equal(loaded.decision_function(test), fitted.decision_function(test))


def test_two_classes_feature_names_and_searched_parameters_survive(tmp_path):
    X, y, test = clusters(60, 2)
    frame = pd.DataFrame(X, columns=[f"cls{i}" for i in range(12)])
    linear = LinearProbe().fit(frame, y.astype(bool))
    save_probe(linear, tmp_path, about={})
    loaded, _ = load_probe(tmp_path)
    np.testing.assert_array_equal(
        loaded.decision_function(frame * 2), linear.decision_function(frame * 2)
    )  # pandas' warning about names is an error here
    assert loaded.predict(frame).dtype == bool

    save_probe(KnnProbe().set_params(k=np.int64(3)).fit(X, y), tmp_path, about={})  # in the place of the other
    loaded, _ = load_probe(tmp_path)
    assert loaded.k == 3
    np.testing.assert_array_equal(loaded.predict(test), KnnProbe(k=3).fit(X, y).predict(test))


def test_save_refuses_what_it_could_not_give_back(tmp_path):
    X, y, _ = clusters(30, 3)
    fitted = LinearProbe().fit(X, y)
    folder = tmp_path / "probe"
    for probe, about, match in [
        (make_pipeline(StandardScaler(), LinearProbe()).fit(X, y), {}, "given a Pipeline; want a LinearProbe"),
        (LinearProbe(), {}, "not fitted"),
        (LinearProbe().fit(X, y * 1.0), {}, "labels are float64"),
        (fitted, {"a": math.nan}, "JSON"),
    ]:
        with pytest.raises(ValueError, match=match):
            save_probe(probe, folder, about=about)
    with pytest.raises(TypeError, match="JSON does not hold"):
        save_probe(fitted, folder, about={"backbone": object()})
    assert not folder.exists()


def edit(record: Path, **fields: object) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), **fields}))


FITTED = {
    "linear": lambda X, y: LinearProbe().fit(X, y),
    "knn": lambda X, y: KnnProbe().fit(X, y),
    "attentive": lambda X, y: AttentiveProbe("aim", epochs=1, progress=False).fit(X[:, None], y),
}

# Damages of probe.json, and the key that the error names beside the file
EDITS = {
    "kind": ("svm", ["x"], None, 3),
    "version": (2, "1", None, [1]),
    "classes": ([0, 1], [], [0, 1, "2"], [2, 1, 0], [0, 1, 1], "abc", None, [0, 1, 2.5], [0, 1, 10**30], {"a": 1}),
    "classes_dtype": ("float64", "O8", None, 7, "uint64[3]", "no dtype"),
    "feature_names": (["a"], "abc", [1] * 12, {}),
    "params": ({}, {"learning_rate": 1}, [], None, "x"),
    "about": ([], None, "x"),
    "record_sha256": (None, "0", 5),
    "sha256": ("0", None, 1),
}


@pytest.fixture(params=FITTED)
def saved(request, tmp_path):
    X, y, _ = clusters(30, 3)
    save_probe(FITTED[request.param](X.astype(np.float32), y), tmp_path, about={"backbone": "nano"})
    return tmp_path


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in EDITS.items() for value in values], ids=str)
def test_an_edited_record_is_refused_by_name(saved, key, value):
    edit(saved / "probe.json", **{key: value})
    with pytest.raises(ValueError, match=r"probe\.(json|safetensors)") as refused:
        load_probe(saved)
    assert str(saved) in str(refused.value)
    assert any(word in str(refused.value) for word in (key, "classes", "labels"))


@pytest.mark.parametrize("key", EDITS)
def test_a_record_without_a_key_is_refused_by_name(saved, key):
    record = json.loads((saved / "probe.json").read_text())
    del record[key]
    (saved / "probe.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"probe\.json.*{key}"):
        load_probe(saved)


@pytest.mark.parametrize("change", [{"about": {"backbone": "other"}}, {"params": "seed"}], ids=str)
def test_a_record_that_fits_but_was_edited_is_noticed(saved, change):
    record = json.loads((saved / "probe.json").read_text())
    if change == {"params": "seed"}:
        name, value = {"linear": ("scale", False), "knn": ("k", 3), "attentive": ("epochs", 7)}[record["kind"]]
        change = {"params": {**record["params"], name: value}}
    edit(saved / "probe.json", **change)
    with pytest.raises(ValueError, match=r"probe\.json was edited after"):
        load_probe(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, "\udcff", "{}"], ids=lambda t: t[:9]
)
def test_a_malformed_record_is_refused_by_name(saved, text):
    (saved / "probe.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"probe\.json"):
        load_probe(saved)


def rewrite(folder: Path, **tensors: np.ndarray | None) -> None:
    """Put other tensors into a saved probe, with a digest that fits them."""
    file = folder / "probe.safetensors"
    changed = {**safetensors.numpy.load_file(file), **tensors}
    file.write_bytes(safetensors.numpy.save({name: value for name, value in changed.items() if value is not None}))
    edit(folder / "probe.json", sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def test_other_tensors_are_refused_by_name(saved):
    original = safetensors.numpy.load_file(saved / "probe.safetensors")
    for name, tensor in original.items():
        if tensor.dtype == np.int64 and tensor.ndim == 0:
            continue  # the steps that batch norm counted, which predict nothing
        nan = np.full_like(tensor, np.nan) if tensor.dtype.kind == "f" else tensor - 10**6
        for other in (None, nan, tensor[..., None], tensor.astype(np.int8), np.zeros(0, tensor.dtype)):
            rewrite(saved, **{name: other})
            with pytest.raises(ValueError, match=r"probe\.safetensors"):
                load_probe(saved)
            rewrite(saved, **{name: tensor})
    load_probe(saved)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_cut_tensors_are_refused_by_name(saved, size):
    file = saved / "probe.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    edit(saved / "probe.json", sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"probe\.safetensors"):
        load_probe(saved)


def test_missing_files_are_named(saved):
    (saved / "probe.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no probe.json; want"):
        load_probe(saved)
    with pytest.raises(FileNotFoundError, match=r"has no probe.safetensors and no probe.json; want a folder"):
        load_probe(saved / "nowhere")


# ---- the package ---------------------------------------------------------------------------------------------------


def test_heads_exports_its_names_and_imports_scikit_learn_only_for_probes():
    for name in heads.__all__:
        assert getattr(heads, name).__module__.startswith("heads.")
    with pytest.raises(AttributeError, match="No heads attribute nothing"):
        heads.nothing  # noqa: B018  # the look-up is what raises
    code = "import heads, sys; assert not {'sklearn', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
