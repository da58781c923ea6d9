"""Probes: how good frozen features are, measured by classifiers that leave the backbone alone.

`LinearProbe` and `KnnProbe` are scikit-learn classifiers on plain arrays; `report` measures one.

Axes: `N` samples, `F` features, `K` classes.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from scipy.stats import binomtest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

Array = NDArray[Any]
Tensors = dict[str, Array]

# The values of C that a preset tries, ascending.
PRESETS: dict[str, tuple[float, ...]] = {
    "clip": (0.316,),  # Radford et al. 2021, README of openai/CLIP
    "dinov2": tuple(float(C) for C in 10 ** np.linspace(-6, 5, 45)),  # dinov2/eval/log_regression.py
}
MAX_ITER = 1000  # of both presets
HOLD_OUT_SEED = 0
BLOCK = 2**24  # similarities that KnnProbe holds at a time: 64 MB in float32


@no_type_check  # at run time: `fit` refuses wrong arguments itself, in the words that scikit-learn demands
class Probe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """What the probes share: the checks of scikit-learn's contract, and what goes into a file.

    float32 and float64 features stay what they are; half precision and integers become float32.
    """

    classes_: Array  # (K,), sorted
    n_features_in_: int  # F

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def _check_fit(self, X: ArrayLike, y: ArrayLike) -> tuple[Array, Array, Array]:
        """Features (N, F), classes (K,), and the index (N,) of each label among the classes."""
        check_no_label_missing(y)
        features, labels = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_all_finite=False)
        _check_finite(features)
        classes, codes = encode_labels(labels)
        return features, classes, codes

    def _check_predict(self, X: ArrayLike) -> Array:
        """Features (N, F) in the precision of the fit."""
        check_is_fitted(self)
        features: Array = validate_data(self, X, dtype=self._dtype(), reset=False, ensure_all_finite=False)
        _check_finite(features)
        return features

    def _dtype(self) -> np.dtype[Any]:
        raise NotImplementedError

    def _to_tensors(self) -> Tensors:
        """All that was fitted, but for the classes."""
        raise NotImplementedError

    def _from_tensors(self, tensors: Tensors) -> None:
        """The inverse; `classes_` is set before. Raises `KeyError` or `ValueError` on what does not fit."""
        raise NotImplementedError


def check_no_label_missing(y: ArrayLike | None) -> None:
    """Raises `ValueError` if a label is NaN or None."""
    if y is None:
        return  # scikit-learn speaks of that
    labels = np.asarray(y, dtype=object).ravel()
    missing = [i for i, label in enumerate(labels) if label is None or (isinstance(label, float) and math.isnan(label))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(labels)} labels are NaN or None, first that of sample {missing[0]}; leave the "
            "samples without a label out, of X and of y"
        )


def encode_labels(labels: Array) -> tuple[Array, Array]:
    """Classes (K,), sorted, and the index (N,) of each label among them. Raises `ValueError` on continuous labels."""
    check_classification_targets(labels)
    classes, codes = np.unique(labels, return_inverse=True)
    return classes, codes


def _check_finite(features: Array) -> None:
    wrong = np.flatnonzero(~np.isfinite(features.sum(axis=1, dtype=np.float64)))  # and no mask of the size of X
    if len(wrong):
        raise ValueError(
            f"the features of {len(wrong)} of {len(features)} samples hold NaN or inf, first sample {wrong[0]}; leave "
            "these samples out, of X and of y, or extract them again in a higher precision"
        )


@no_type_check
class LinearProbe(Probe):
    """Logistic regression on frozen features, as CLIP and DINOv2 measure them.

    `preset`: `"clip"` fits once, with C = 0.316. `"dinov2"` tries 45 values of C from 1e-6 to 1e5, keeps the one that
    is best on a tenth of the samples, the smallest on a tie, and refits on all. The tenth is drawn from each class, at
    least one sample of it, so classes of fewer than ten give more; a class of one sample gives none, and where all are
    such there is nothing to choose by and C is CLIP's.

    `scale`: bring each feature to mean 0 and variance 1 first. It makes the fit several times faster, and a value of C
    as strict for one backbone as for another, whatever the magnitude of its features. The papers fit raw features:
    `scale=False` does as they do, for a number to compare with theirs; accuracies differ, either way.

    Fitted: `coef_` (K, F), or (1, F) for two classes, and `intercept_`, both for raw features; `C_`; `classes_`.
    Raises `ValueError` on a single class or an unknown preset.
    """

    coef_: Array
    intercept_: Array
    C_: float

    def __init__(self, preset: str = "clip", scale: bool = True) -> None:
        self.preset = preset
        self.scale = scale

    def fit(self, X: ArrayLike, y: ArrayLike) -> "LinearProbe":
        """Fits on features (N, F) and labels (N,). Warns (`ConvergenceWarning`) after 1000 iterations."""
        if self.preset not in PRESETS:
            raise ValueError(f"LinearProbe: unknown preset {self.preset!r}; want one of {', '.join(PRESETS)}")
        features, classes, codes = self._check_fit(X, y)
        if self.scale:
            scaler = StandardScaler().fit(features)
            features = scaler.transform(features)
        candidates = PRESETS[self.preset]
        C = candidates[0] if len(candidates) == 1 else _sweep(candidates, features, codes)
        model = LogisticRegression(C=C, max_iter=MAX_ITER).fit(features, codes)
        coef, intercept = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
        if self.scale:  # w (x - mean) / std + b, as one matrix product
            coef = coef / scaler.scale_
            intercept = intercept - coef @ scaler.mean_
        self.classes_, self.C_ = classes, C
        self.coef_ = np.ascontiguousarray(coef, dtype=features.dtype)
        self.intercept_ = intercept.astype(features.dtype)
        return self

    def decision_function(self, X: ArrayLike) -> Array:
        """Logits (N, K); for two classes (N,), those of the second."""
        logits: Array = self._check_predict(X) @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities (N, K), in the order of `classes_`."""
        logits = self.decision_function(X)
        return np.stack([expit(-logits), expit(logits)], axis=1) if logits.ndim == 1 else softmax(logits, axis=1)

    def predict(self, X: ArrayLike) -> Array:
        """Labels (N,)."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)]

    def _dtype(self) -> np.dtype[Any]:
        return self.coef_.dtype

    def _to_tensors(self) -> Tensors:
        return {"coef": self.coef_, "intercept": self.intercept_, "C": np.array(self.C_)}

    def _from_tensors(self, tensors: Tensors) -> None:
        self.coef_, self.intercept_, self.C_ = tensors["coef"], tensors["intercept"], float(tensors["C"])
        rows = 1 if len(self.classes_) == 2 else len(self.classes_)
        if self.coef_.ndim != 2 or len(self.coef_) != rows or self.intercept_.shape != (rows,):
            raise ValueError(f"{len(self.classes_)} classes, but coef {self.coef_.shape}")
        self.n_features_in_ = self.coef_.shape[1]


def _sweep(candidates: Sequence[float], features: Array, codes: Array) -> float:
    """The candidate that is best on the held-out samples, the first of several; ascending, each fit starts from the
    one before, which is near."""
    held = hold_out(codes, 0.1)
    if not held.any():
        return PRESETS["clip"][0]
    train, test = (features[~held], codes[~held]), (features[held], codes[held])
    model = LogisticRegression(max_iter=MAX_ITER, warm_start=True)
    accuracies = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a candidate that did not converge is judged as it is
        for C in candidates:
            accuracies.append(model.set_params(C=C).fit(*train).score(*test))
    return candidates[int(np.argmax(accuracies))]


def hold_out(codes: Array, share: float) -> Array:
    """A mask (N,) of a share of each class, drawn with a fixed seed: at least one sample, but none of a class that has
    no other. `codes`: class indices (N,), from 0."""
    order = np.random.RandomState(HOLD_OUT_SEED).permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]  # shuffled within each class
    held = np.zeros(len(codes), dtype=bool)
    for rows in np.split(order, np.cumsum(np.bincount(codes))[:-1]):
        held[rows[: max(1, round(len(rows) * share)) if len(rows) > 1 else 0]] = True
    return held


@no_type_check
class KnnProbe(Probe):
    """DINO's weighted nearest neighbours (Caron et al. 2021; facebookresearch/dino, eval_knn.py).

    The `k` training samples of the highest cosine similarity vote, each with weight exp(similarity / temperature).
    With fewer than `k` of them, all vote. A zero vector has similarity 0 to everything.

    Predicting takes about 200 MB (float32) besides the features, however many there are.
    Fitted: `features_` (N, F) of length 1, `codes_` (N,) their indices in `classes_`.
    Raises `ValueError` unless `k` is a positive integer and `temperature` is positive.
    """

    features_: Array
    codes_: Array

    def __init__(self, k: int = 20, temperature: float = 0.07) -> None:
        self.k = k
        self.temperature = temperature

    def fit(self, X: ArrayLike, y: ArrayLike) -> "KnnProbe":
        """Stores features (N, F) and labels (N,)."""
        if not isinstance(self.k, int | np.integer) or self.k < 1:
            raise ValueError(f"KnnProbe: k must be a positive integer, got {self.k!r}")
        if not self.temperature > 0:
            raise ValueError(f"KnnProbe: temperature must be positive, got {self.temperature!r}")
        features, self.classes_, self.codes_ = self._check_fit(X, y)
        self.features_ = normalize(features)
        return self

    def predict_proba(self, X: ArrayLike) -> Array:
        """Each class's share of the votes, (N, K), in the order of `classes_`."""
        return np.concatenate(list(self._votes(X)))

    def predict(self, X: ArrayLike) -> Array:
        """Labels (N,)."""
        best = [votes.argmax(axis=1) for votes in self._votes(X)]
        return self.classes_[np.concatenate(best)]

    def _votes(self, X: ArrayLike) -> Iterator[Array]:
        """Shares of the votes of one block of samples after another, (rows, K)."""
        features = normalize(self._check_predict(X))
        num_classes = len(self.classes_)
        rows = max(1, BLOCK // len(self.features_))
        for start in range(0, len(features), rows):
            similarities = torch.from_numpy(features[start : start + rows] @ self.features_.T)  # (rows, N)
            top, nearest = (t.numpy() for t in similarities.topk(min(self.k, len(self.features_))))  # (rows, k)
            # relative to the nearest: the shares are the same, and no temperature overflows
            weights = np.exp((top - top[:, :1]).astype(np.float64) / self.temperature)
            cells = np.arange(len(top))[:, None] * num_classes + self.codes_[nearest]
            votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(top) * num_classes)
            votes = votes.reshape(-1, num_classes)
            yield votes / votes.sum(axis=1, keepdims=True)

    def _dtype(self) -> np.dtype[Any]:
        return self.features_.dtype

    def _to_tensors(self) -> Tensors:
        return {"features": self.features_, "codes": self.codes_}

    def _from_tensors(self, tensors: Tensors) -> None:
        self.features_, self.codes_ = tensors["features"], tensors["codes"]
        if self.features_.ndim != 2 or self.codes_.shape != self.features_.shape[:1]:
            raise ValueError(f"features {self.features_.shape}, but codes {self.codes_.shape}")
        if not np.array_equal(np.unique(self.codes_), np.arange(len(self.classes_))):
            raise ValueError(f"{len(self.classes_)} classes, but codes for {len(np.unique(self.codes_))}")
        self.n_features_in_ = self.features_.shape[1]


# ---- measuring -----------------------------------------------------------------------------------------------------


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """(low, high) of the Wilson 95% interval of an accuracy. Raises `ValueError` unless 0 <= correct <= total > 0."""
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class ClassReport:
    """How a probe does on one class."""

    name: str
    samples: int
    precision: float  # NaN where the class was never predicted
    recall: float  # NaN where the class has no sample


@dataclass(frozen=True)
class Report:
    """How a probe does on a set of samples. `str()` gives the table to print."""

    correct: int
    total: int
    classes: tuple[ClassReport, ...]

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
    """Measures a fitted probe on features, as it takes them, and labels (N,).

    `class_names`: the name of each label, where labels are 0, 1, ...; by default a label is its own name. The table
    has the classes of the probe and those of `y`; a class the probe does not know counts as wrong.
    Raises `ValueError` if the labels are of another kind than the probe's, or have no name.
    """
    predicted, truth = probe.predict(X), column_or_1d(y)
    labels = unique_labels(probe.classes_, truth)  # refuses numbers against strings
    if class_names is not None and not all(
        isinstance(i, int | np.integer) and 0 <= i < len(class_names) for i in labels
    ):
        raise ValueError(f"class_names has {len(class_names)} names, for labels from 0; the labels are {list(labels)}")
    precision, recall, _, samples = precision_recall_fscore_support(
        truth, predicted, labels=labels, zero_division=float("nan")
    )
    names = [str(label) if class_names is None else class_names[label] for label in labels]
    rows = zip(names, samples.astype(int).tolist(), precision.tolist(), recall.tolist(), strict=True)
    return Report(int((predicted == truth).sum()), len(truth), tuple(ClassReport(*row) for row in rows))
