"""The probes against scikit-learn's contract, and what `fit` refuses."""

import math
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import heads
from heads import AttentiveProbe, KnnProbe, LinearProbe, report
from tests.heads.samples import PROBES, LazyRows, clusters


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


# ---- the package ---------------------------------------------------------------------------------------------------


def test_heads_exports_its_names_and_imports_scikit_learn_only_for_probes():
    for name in heads.__all__:
        assert getattr(heads, name).__module__.startswith("heads.")
    with pytest.raises(AttributeError, match="No heads attribute nothing"):
        heads.nothing  # noqa: B018  # the look-up is what raises
    code = "import heads, sys; assert not {'sklearn', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
