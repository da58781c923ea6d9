"""The base of the probes: scikit-learn's contract on arrays and on `Rows`, and the checks of features and labels.

Axes: `N` samples, `F` features, `K` classes.
"""

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, no_type_check

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from heads.probes.rows import Array, InMemory, Rows, read_checked

Tensors = dict[str, Array]

FLOATS = [np.float32, np.float64]  # dtypes of features that are kept
UNLABELLED = -1  # the label of a sample whose class is unknown, as in `FeatureStore.labels`


@no_type_check  # no run-time checks: `fit` refuses wrong arguments itself, in the words that scikit-learn demands
class Probe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """The base class of the probes: the checks of scikit-learn's contract, and the tensors that a file holds.

    float32 and float64 features keep their dtype. Half precision and integers become float32.
    """

    classes_: Array  # (K,), sorted
    n_features_in_: int  # F

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def _check_fit(
        self, X: ArrayLike | Rows, y: ArrayLike, groups: ArrayLike | None = None
    ) -> tuple[Rows, Array, Array, Array | None]:
        """Return the features (N, F), the classes (K,), the class index (N,) of each sample, and the groups (N,).

        Samples without a label are left out. The features are not checked for NaN and inf yet.
        """
        check_no_label_missing(y)
        if isinstance(X, Rows):
            _check_shape(X)
            validate_data(self, X, skip_check_array=True)
            labels = column_or_1d(y, warn=True)
            check_consistent_length(X, labels)
            rows = X
        else:
            array, labels = validate_data(self, X, y, dtype=FLOATS, ensure_all_finite=False)
            rows = InMemory(array)
        members = None if groups is None else column_or_1d(groups)
        check_consistent_length(labels, members)
        known = labelled(labels, type(self).__name__)
        if not known.all():
            rows, labels, members = rows[known], labels[known], None if members is None else members[known]
        classes, codes = encode_labels(labels)
        return rows, classes, codes, members

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on the samples that have a label."""
        predicted, truth = self.predict(X), column_or_1d(y)
        check_consistent_length(predicted, truth)
        known = labelled(truth, type(self).__name__)
        weights = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(accuracy_score(truth[known], predicted[known], sample_weight=weights))

    def _predict_blocks(self, X: ArrayLike | Rows) -> Iterator[Array]:
        """Yield blocks of features (n, F) in the precision of the fit."""
        check_is_fitted(self)
        if isinstance(X, Rows):
            _check_shape(X)
            validate_data(self, X, reset=False, skip_check_array=True)
        else:
            X = InMemory(validate_data(self, X, dtype=self._dtype(), reset=False, ensure_all_finite=False))
        return read_checked(X, self._dtype(), "predicting")

    def _check_parameters(self) -> None:
        """Raise `ValueError` on an invalid parameter."""
        raise NotImplementedError

    def _dtype(self) -> np.dtype[Any]:
        raise NotImplementedError

    def _to_tensors(self) -> Tensors:
        """Return everything that was fitted, except the classes."""
        raise NotImplementedError

    def _from_tensors(self, tensors: Tensors) -> None:
        """Take what `_to_tensors` returned; `classes_` is set before.

        Raises `KeyError` or `ValueError` on tensors that do not fit.
        """
        raise NotImplementedError


def _check_shape(rows: Rows) -> None:
    if len(rows.shape) != 2 or 0 in rows.shape:
        raise ValueError(f"X has shape {rows.shape}; want (N, F), with at least one sample and one feature")


def check_no_label_missing(y: ArrayLike | None) -> None:
    """Raise `ValueError` if a label is NaN or None."""
    if y is None:
        return  # scikit-learn refuses it
    labels = np.asarray(y, dtype=object).ravel()
    missing = [i for i, label in enumerate(labels) if label is None or (isinstance(label, float) and math.isnan(label))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(labels)} labels are NaN or None, first at sample {missing[0]}; leave the "
            "samples without a label out of X and of y"
        )


def labelled(labels: Array, who: str) -> NDArray[np.bool_]:
    """Return a mask (N,) of the known labels: all but the number -1. Warns about the others.

    If the labels are only -1 and 1, both are kept, with a warning, because scikit-learn has two classes of these names.
    `who` is the name in errors and warnings. Raises `ValueError` if no label is known.
    """
    known = np.ones(len(labels), dtype=bool)
    if labels.dtype.kind in "if":
        known = labels != UNLABELLED
    missing = len(labels) - int(known.sum())
    if not missing:
        return known
    if not known.any():
        raise ValueError(f"{who}: every label is {UNLABELLED}, which means unknown; give the samples classes from 0")
    if set(labels[known].tolist()) == {1}:
        message = (
            f"{who}: the labels are -1 and 1, taken as two classes. If -1 means unknown, leave these samples out of X "
            "and of y"
        )
        known[:] = True
    else:
        message = f"{who}: {missing} of {len(labels)} samples have the label -1, which means unknown; they are left out"
    _warn(message)
    return known


def _warn(message: str) -> None:
    """Warn at the line that called this package, however deep the call is."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "heads":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def check_tensor(name: str, tensor: Array, shape: tuple[int, ...], dtypes: Sequence[Any], finite: bool = True) -> None:
    """Raise `ValueError` if a file's tensor has another shape or dtype, or holds NaN or, if `finite`, inf."""
    if tensor.shape != shape or tensor.dtype not in [np.dtype(dtype) for dtype in dtypes]:
        wanted = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise ValueError(f"{name} is {tensor.dtype} of shape {tensor.shape}; want {wanted} of shape {shape}")
    bad = ~np.isfinite(tensor) if finite else np.isnan(tensor)
    if bad.any():
        raise ValueError(f"{name} holds NaN{' or inf' if finite else ''}")


def encode_labels(labels: Array) -> tuple[Array, Array]:
    """Return the classes (K,), sorted, and each label's index (N,) among them.

    Raises `ValueError` on continuous labels.
    """
    check_classification_targets(labels)
    classes, codes = np.unique(labels, return_inverse=True)
    return classes, codes
