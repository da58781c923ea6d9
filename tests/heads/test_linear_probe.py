"""`LinearProbe` is scikit-learn's logistic regression, whatever the scale and the precision of the features."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from heads import LinearProbe
from heads.probes import linear, logistic
from tests.heads.samples import LazyRows, clusters

SWEEP = 10 ** np.linspace(-6, 5, 45)


def exact(C: float) -> LogisticRegression:
    """scikit-learn's, by Newton's method and not stopped early: its L-BFGS is left far from the optimum by features
    that are correlated or not scaled."""
    return LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000)


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
    held = linear.hold_out(y, 0.1)
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
    held = linear.hold_out(y, 0.1)
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
        "rarely another value": offset * (1 + 1.3e-7 * (rng.random((count, 8)) < 0.01)),
        "constant": np.full((count, 8), offset),
        "an outlier": np.where(np.arange(count)[:, None] == 7, offset, 0) * np.ones((1, 8)),
        "the label in the last bit": offset * (1 + 1.3e-7 * (y[:, None] == np.arange(10))),
    }[kind]


KINDS = [
    "rounding of float32",
    "rounding of float64",
    "rarely another value",
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


def test_linear_errors():
    X, y, _ = clusters(30, 3)
    with pytest.raises(ValueError, match="unknown preset 'clap'; want one of clip, dinov2"):
        LinearProbe("clap").fit(X, y)
    for preset in ("clip", "dinov2"):
        with pytest.raises(ValueError, match="class"):
            LinearProbe(preset).fit(X, np.zeros(30))
