"""Probes on rows that are read a block at a time: as on arrays, never all at once, and as scikit-learn has it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from heads import KnnProbe, LinearProbe, load_probe, report, save_probe
from heads.probes import linear, rows
from heads.probes.rows import Rows
from vitbackbone.files import progress

BLOCK = 32


@dataclass
class Stored:
    """A memory map as `Rows`, which notes the size of each block that is read."""

    array: np.ndarray
    index: np.ndarray
    sizes: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.index), *self.array.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> "Stored":
        return Stored(self.array, self.index[index], self.sizes)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self), rows):
            self.sizes.append(len(self.index[start : start + rows]))
            yield np.array(self.array[self.index[start : start + rows]])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "ROWS", BLOCK)


@pytest.fixture
def stored(tmp_path):
    def store(array: np.ndarray) -> Stored:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(file, array)
        return Stored(np.load(file, mmap_mode="r"), np.arange(len(array)))

    return store


def samples(n: int, num_classes: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated features of overlapping classes of unequal sizes: X, y, and X of a test."""
    rng = np.random.default_rng(num_classes)
    mix = rng.normal(size=(16, 16)) / np.sqrt(np.arange(1, 17))
    y = np.concatenate([np.arange(num_classes), (num_classes * rng.random(n - num_classes) ** 1.5).astype(int)])
    centres = 0.7 * rng.normal(size=(num_classes, 16))
    train, test = ((centres[y] + rng.normal(size=(n, 16))) @ mix + 3 for _ in range(2))
    return train.astype(dtype), y, test.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("num_classes", [2, 5, 40])
@pytest.mark.parametrize(
    "probe", [LinearProbe(), LinearProbe("dinov2"), LinearProbe(scale=False), KnnProbe()], ids=repr
)
def test_lazy_rows_give_what_arrays_give(stored, probe, num_classes, dtype):
    X, y, test = samples(400, num_classes, dtype)
    names = np.array([f"class {i:02}" for i in range(num_classes)])[y]
    whole, lazy = clone(probe).fit(X, names), clone(probe).fit(stored(X), names)
    for given in (test, stored(test)):
        np.testing.assert_allclose(lazy.predict_proba(given), whole.predict_proba(test), atol=3e-3)
        assert (lazy.predict(given) == whole.predict(test)).mean() > 0.99
    assert lazy.n_features_in_ == 16
    assert lazy.predict_proba(test).dtype == whole.predict_proba(test).dtype
    if isinstance(probe, LinearProbe):
        assert lazy.C_ == whole.C_
        assert lazy.coef_.dtype == (np.float64 if dtype == np.float64 else np.float32)


@pytest.mark.parametrize("num_classes", [2, 5, 40])
@pytest.mark.parametrize("scale", [True, False])
def test_lazy_rows_reach_the_optimum_of_scikit_learn(stored, scale, num_classes):
    X, y, test = samples(400, num_classes)
    exact = LogisticRegression(C=0.316, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    oracle = (make_pipeline(StandardScaler(), exact) if scale else exact).fit(X.astype(np.float64), y)
    probe = LinearProbe(scale=scale).fit(stored(X), y)
    np.testing.assert_allclose(probe.predict_proba(stored(test)), oracle.predict_proba(test), atol=1e-3)


@pytest.mark.parametrize("probe", [LinearProbe(), LinearProbe("dinov2"), KnnProbe()], ids=repr)
def test_rows_are_never_read_all_at_once(stored, probe):
    X, y, test = samples(400, 5)
    train, queries = stored(X), stored(test)
    fitted = probe.fit(train, y)
    fitted.predict(queries)
    assert sum(train.sizes) >= 400
    assert sum(queries.sizes) == 400
    assert max(train.sizes) == max(queries.sizes) == BLOCK


def test_a_sweep_passes_over_the_rows_some_hundred_times(stored):
    X, y, _ = samples(400, 5)
    once, sweep = stored(X), stored(X)
    LinearProbe().fit(once, y)
    LinearProbe("dinov2").fit(sweep, y)
    assert sum(once.sizes) < 50 * len(X)  # 25.3 were seen: how often a line search looks depends on the processor
    assert sum(sweep.sizes) < 600 * len(X)


def test_long_reading_shows_a_bar_with_rate_and_time_left(stored, monkeypatch, capsys):
    X, y, _ = samples(400, 5)
    LinearProbe().fit(stored(X), y)
    assert capsys.readouterr().err == ""  # not for what takes less than two seconds
    for name in ("DELAY", "INTERVAL", "LOGGED"):
        monkeypatch.setattr(progress, name, 0)
    LinearProbe().fit(stored(X), y)
    shown = capsys.readouterr().err
    assert re.search(r"mean and variance: +\d+%.* 384/400 \[.*<.*row/s\]", shown)
    assert "pass 1: " in shown
    LinearProbe("dinov2").fit(X, y)  # in memory: of the sweep alone
    shown = capsys.readouterr().err
    assert re.search(r"values of C: +\d+%.* \d+/45 \[.*<", shown)
    assert "pass" not in shown


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_sweep_ends_early_and_is_as_good_as_a_naive_one(stored, monkeypatch, num_classes):
    X, y, _ = samples(500, num_classes)
    held = linear.hold_out(y, 0.1)
    scaled = StandardScaler().fit_transform(X)

    def accuracy(C: float) -> float:
        model = LogisticRegression(C=C, max_iter=1000).fit(scaled[~held], y[~held])
        return model.score(scaled[held], y[held])

    tried = []
    minimum = linear.Objective.minimum
    monkeypatch.setattr(linear.Objective, "minimum", lambda self, C, *rest: tried.append(C) or minimum(self, C, *rest))
    probe = LinearProbe("dinov2").fit(stored(X), y)
    candidates = linear.PRESETS["dinov2"]
    assert tried[:-1] == list(candidates[: len(tried) - 1])
    assert tried[-1] == probe.C_
    assert len(tried) < len(candidates)
    assert accuracy(probe.C_) >= max(accuracy(C) for C in candidates) - 1 / held.sum()  # of one sample


def test_samples_that_are_not_finite_are_counted_over_all_blocks(stored):
    X, y, test = samples(400, 5)
    X[[40, 41, 200]] = np.nan
    X[64:96] = np.inf  # a whole block
    test[3, 2] = np.nan
    for probe in (LinearProbe(), KnnProbe()):
        with pytest.raises(ValueError, match=r"35 of 400 samples hold NaN or inf, first sample 40"):
            clone(probe).fit(stored(X), y)
        fitted = clone(probe).fit(np.nan_to_num(X, posinf=0), y)
        with pytest.raises(ValueError, match=r"1 of 400 samples hold NaN or inf, first sample 3"):
            fitted.predict(stored(test))


def test_rows_of_a_wrong_shape_are_refused(stored):
    X, y, test = samples(400, 5)
    for probe in (LinearProbe(), KnnProbe()):
        with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[400, 399\]"):
            probe.fit(stored(X), y[1:])
        with pytest.raises(ValueError, match=r"X has shape \(400, 4, 4\); want \(N, F\)"):
            probe.fit(stored(X.reshape(400, 4, 4)), y)
        probe.fit(stored(X), y)
        with pytest.raises(ValueError, match="15 features"):
            probe.predict(stored(test[:, 1:]))


def test_a_probe_of_lazy_rows_is_measured_and_saved(stored, tmp_path):
    X, y, test = samples(400, 5)
    for probe in (LinearProbe(), KnnProbe()):
        fitted = probe.fit(stored(X), y)
        save_probe(fitted, tmp_path / "probe", about={})
        loaded, _ = load_probe(tmp_path / "probe")
        np.testing.assert_array_equal(loaded.predict(test), fitted.predict(stored(test)))
        assert report(fitted, stored(test), y).correct == (fitted.predict(test) == y).sum()


def test_the_protocol_tells_rows_from_arrays(stored):
    X, _, _ = samples(40, 2)
    assert isinstance(stored(X), Rows)
    assert not isinstance(X, Rows)


def test_fewer_samples_than_features_reach_the_optimum_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 200)) @ rng.normal(size=(200, 200)), np.arange(60) % 3
    X[:, 0] += 9 * y
    scaled = StandardScaler().fit_transform(X)
    theirs = LogisticRegression(C=0.316, max_iter=10_000, tol=1e-10).fit(scaled, y).predict_proba(scaled)
    np.testing.assert_allclose(LinearProbe().fit(X, y).predict_proba(X), theirs, atol=1e-3)
