"""The linear probe: logistic regression on frozen features, as a scikit-learn classifier.

It takes plain arrays, and `Rows` that need not fit into memory.

Axes: `N` samples, `F` features, `K` classes.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, no_type_check

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning

from heads.probes.base import FLOATS, Probe, Tensors, check_tensor
from heads.probes.logistic import ROUGH, Curvature, Objective, Solution, extrapolate
from heads.probes.parameters import choice, flag
from heads.probes.rows import Array, InMemory, Rows, precision, read
from heads.probes.scaling import Scaled, Scaling
from heads.probes.splits import as_codes, hold_out, join_groups
from vitbackbone import progress_bar

# The values of C that a preset tries, ascending.
PRESETS: dict[str, tuple[float, ...]] = {
    "clip": (0.316,),  # Radford et al. 2021, README of openai/CLIP
    "dinov2": tuple(float(C) for C in 10 ** np.linspace(-6, 5, 45)),  # dinov2/eval/log_regression.py
}
PATIENCE = 4  # the sweep ends if this many values of C, a factor of ten, bring no improvement


@no_type_check
class LinearProbe(Probe):
    """Logistic regression on frozen features, as CLIP and DINOv2 measure them, in memory or not.

    `preset`: `"clip"` fits once, with C = 0.316. `"dinov2"` tries up to 45 ascending values of C from 1e-6 to 1e5 on a
    held-out tenth of the samples. It stops when neither accuracy nor loss has improved for a factor of ten. Then it
    refits on all samples with the C of the best accuracy, the smallest one on a tie. The tenth is drawn from each
    class, at least one sample each, so classes of fewer than ten give more. A class of one sample gives none. If no
    class gives any, C is CLIP's.

    `scale`: first bring each feature to mean 0 and variance 1. A value of C is then as strict for one backbone as for
    another, whatever the magnitude of its features. The papers fit raw features: set `scale=False` to
    compare with their accuracies.

    X is an array, or `Rows` such as `FeatureStore(...).rows`, which are read in blocks of 4096. That takes about ten
    passes over them for one value of C, and about a hundred for 45. Either way the fit is the optimum of scikit-learn's
    `LogisticRegression` (`heads/probes/logistic.py`).
    Memory: 70 MB at 768 features, and 32 bytes for each sample.

    Rows with the label -1, "unknown" in a `FeatureStore`, are left out with a warning.

    Fitted: `classes_` (K,); `C_`; `coef_` (K, F), or (1, F) for two classes, and `intercept_`, both for raw features.
    Predictions do not use these two. They scale features first, because products with raw, nearly constant features
    would lose all digits in float32.
    Raises `ValueError` on a single class or a wrong parameter.
    """

    C_: float

    def __init__(self, preset: str = "clip", scale: bool = True) -> None:
        self.preset = preset
        self.scale = scale

    def fit(self, X: ArrayLike | Rows, y: ArrayLike, groups: ArrayLike | None = None) -> "LinearProbe":
        """Fit on features (N, F) and labels (N,). Warns (`ConvergenceWarning`) after 1000 iterations.

        `groups`: the group (N,) of each sample. The held-out tenth of `"dinov2"` has whole groups. Samples with equal
        features always count as one group.
        """
        self._check_parameters()
        rows, classes, codes, members = self._check_fit(X, y, groups)
        if len(classes) < 2:
            raise ValueError(f"LinearProbe was given samples of one class, {str(classes[0])!r}; want at least two")
        dtype = precision(rows.dtype)
        scaling = Scaling.of(rows, dtype)
        scaling = scaling if self.scale else scaling.without_scale()  # the mean changes no more than the intercept
        scaled: Rows = Scaled(rows, scaling, dtype)
        if isinstance(rows, InMemory):
            scaled = InMemory(next(scaled.blocks(len(rows))))
        curvature = Curvature.of(scaled)
        candidates = PRESETS[self.preset]
        C, start = (
            (candidates[0], None) if len(candidates) == 1 else _sweep(candidates, scaled, codes, members, curvature)
        )
        found = Objective(scaled, codes, len(classes)).minimum(C, curvature, start)
        self.classes_, self.C_, self._scaling = classes, C, scaling
        self._weights = np.ascontiguousarray(found.coef, dtype=dtype)
        self._bias = found.intercept.astype(dtype)
        return self

    @property
    def coef_(self) -> Array:
        return self._raw()[0].astype(self._dtype())

    @property
    def intercept_(self) -> Array:
        return self._raw()[1].astype(self._dtype())

    def _raw(self) -> tuple[Array, Array]:
        """Return the coefficients and intercepts for raw features, in float64."""
        coef = self._weights / self._scaling.scale
        return coef, self._bias - coef @ self._scaling.mean

    def decision_function(self, X: ArrayLike | Rows) -> Array:
        """Return the logits (N, K), or (N,) of the second class if there are two."""
        return np.concatenate(list(self._logits(X)))

    def predict_proba(self, X: ArrayLike | Rows) -> Array:
        """Return the probabilities (N, K), in the order of `classes_`."""
        logits = self.decision_function(X)
        return np.stack([expit(-logits), expit(logits)], axis=1) if logits.ndim == 1 else softmax(logits, axis=1)

    def predict(self, X: ArrayLike | Rows) -> Array:
        """Return the predicted labels (N,)."""
        best = [(part > 0).astype(int) if part.ndim == 1 else part.argmax(axis=1) for part in self._logits(X)]
        return self.classes_[np.concatenate(best)]

    def _logits(self, X: ArrayLike | Rows) -> Iterator[Array]:
        for block in self._predict_blocks(X):
            with np.errstate(over="ignore", invalid="ignore"):
                logits = self._scaling.of_block(block, self._dtype()) @ self._weights.T + self._bias
            beyond = ~np.isfinite(logits).all(axis=1)  # float32 overflows if a feature is far from all fitted ones
            if beyond.any():
                logits[beyond] = self._bounded_logits(block[beyond])
            yield logits[:, 0] if len(self.classes_) == 2 else logits

    def _bounded_logits(self, block: Array) -> Array:
        """Compute logits in float64, shifted and clipped to the range of the dtype. Classes keep their order."""
        logits = self._scaling.of_block(block, np.dtype(np.float64)) @ self._weights.T.astype(np.float64) + self._bias
        if logits.shape[1] > 1:
            logits -= logits.max(axis=1, keepdims=True)
        limit = float(np.finfo(self._dtype()).max) / 2
        return logits.clip(-limit, limit)

    def _check_parameters(self) -> None:
        choice(self, "preset", PRESETS)
        flag(self, "scale")

    def _dtype(self) -> np.dtype[Any]:
        return self._weights.dtype

    def _to_tensors(self) -> Tensors:
        scaling = {"mean": self._scaling.mean, "scale": self._scaling.scale}
        return {"weights": self._weights, "bias": self._bias, **scaling, "C": np.array(self.C_)}

    def _from_tensors(self, tensors: Tensors) -> None:
        weights = tensors["weights"]
        width = weights.shape[1] if weights.ndim == 2 else 0
        outputs = 1 if len(self.classes_) == 2 else len(self.classes_)
        if len(self.classes_) < 2 or width == 0 or len(weights) != outputs:
            raise ValueError(f"{len(self.classes_)} classes, but weights of shape {weights.shape}")
        check_tensor("weights", weights, (outputs, width), FLOATS)
        check_tensor("bias", tensors["bias"], (outputs,), [weights.dtype])
        check_tensor("mean", tensors["mean"], (width,), [np.float64])
        check_tensor("scale", tensors["scale"], (width,), [np.float64], finite=False)
        check_tensor("C", tensors["C"], (), [np.float64])
        if not (tensors["scale"] > 0).all():
            raise ValueError("scale holds values that are not positive")
        if not tensors["C"] > 0:
            raise ValueError(f"C is {tensors['C']}; want a positive number")
        self._weights, self._bias, self.C_ = weights, tensors["bias"], float(tensors["C"])
        self._scaling = Scaling(tensors["mean"], tensors["scale"])
        self.n_features_in_ = width


def _sweep(
    candidates: Sequence[float], rows: Rows, codes: Array, groups: Array | None, curvature: Curvature
) -> tuple[float, Solution | None]:
    """Return the best candidate on held-out samples, the first one on a tie, and its solution without these samples.

    Candidates ascend. Each fit starts from an extrapolation of the last two. The sweep ends once neither accuracy nor
    loss on the held-out samples improves.
    """
    same = as_codes([hash(row.tobytes()) for block in read(rows, "copies") for row in block])
    held = hold_out(codes, 0.1, same if groups is None else join_groups(same, groups))
    if not held.any():
        return PRESETS["clip"][0], None
    num_classes = int(codes.max()) + 1
    train, test = (Objective(rows[mask], codes[mask], num_classes) for mask in (~held, held))
    best: tuple[float, Solution | None] = candidates[0], None
    most, lowest, stale = -1, math.inf, 0
    path: list[Solution] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a candidate that did not converge is still compared
        for C in progress_bar(candidates, "values of C", passing=True, unit="fit"):
            path = [*path[-1:], train.minimum(C, curvature, extrapolate(path), ROUGH)]
            right, loss = test.measure(path[-1])
            stale = 0 if right > most or loss <= lowest else stale + 1
            if right > most:
                best, most = (C, path[-1]), right
            lowest = min(lowest, loss)
            if stale == PATIENCE:
                break
    return best
