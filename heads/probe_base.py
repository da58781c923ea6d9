"""What the probes share: scikit-learn's contract on arrays and on `Rows`, the checks of features and labels.

Axes: `N` samples, `F` features, `K` classes.
"""

import math
from collections.abc import Iterator
from typing import Any, no_type_check

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from heads.blocks import Array, InMemory, Rows, read_checked

Tensors = dict[str, Array]

FLOATS = [np.float32, np.float64]  # that features may come in


@no_type_check  # at run time: `fit` refuses wrong arguments itself, in the words that scikit-learn demands
class Probe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """What the probes share: the checks of scikit-learn's contract, and what goes into a file.

    float32 and float64 features stay what they are; half precision and integers become float32.
    """

    classes_: Array  # (K,), sorted
    n_features_in_: int  # F

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def _check_fit(self, X: ArrayLike | Rows, y: ArrayLike) -> tuple[Rows, Array, Array]:
        """Features (N, F), not yet known to be finite, classes (K,), and the index (N,) of each label among them."""
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
        classes, codes = encode_labels(labels)
        return rows, classes, codes

    def _predict_blocks(self, X: ArrayLike | Rows) -> Iterator[Array]:
        """Features (n, F) in the precision of the fit, of one block of samples after another."""
        check_is_fitted(self)
        if isinstance(X, Rows):
            _check_shape(X)
            validate_data(self, X, reset=False, skip_check_array=True)
        else:
            X = InMemory(validate_data(self, X, dtype=self._dtype(), reset=False, ensure_all_finite=False))
        return read_checked(X, self._dtype(), "predicting")

    def _dtype(self) -> np.dtype[Any]:
        raise NotImplementedError

    def _to_tensors(self) -> Tensors:
        """All that was fitted, but for the classes."""
        raise NotImplementedError

    def _from_tensors(self, tensors: Tensors) -> None:
        """The inverse; `classes_` is set before. Raises `KeyError` or `ValueError` on what does not fit."""
        raise NotImplementedError


def _check_shape(rows: Rows) -> None:
    if len(rows.shape) != 2 or 0 in rows.shape:
        raise ValueError(f"X has shape {rows.shape}; want (N, F), a row of features for each of at least one sample")


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
