"""`KnnProbe` votes as DINO's evaluation does."""

import math

import numpy as np
import pytest

from heads import KnnProbe
from heads.probes import rows
from tests.heads.samples import clusters


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
    monkeypatch.setattr(rows, "ROWS", block)
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
