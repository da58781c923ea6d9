"""Logistic regression on rows that need not fit into memory, to the optimum of scikit-learn's `LogisticRegression`.

The objective is scikit-learn's: the mean loss + ||w||^2 / (2 C N), with a free intercept. L-BFGS minimises it in
coordinates where the curvature at w = 0 is the same in all directions. That takes a dozen passes over the rows; plain
features, which are correlated, take hundreds.

Axes: `N` samples, `F` features, `K` classes; `M` rows of coefficients, K, or 1 for two classes.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning

from heads.probes.rows import Array, Rows, read

MAX_ITER = 1000
TOLERANCE = 3e-5  # bound on the largest derivative, in the coordinates of the curvature
ROUGH = 3e-4  # the same bound for a solution that is only compared with others
GAIN = 1e-10  # smallest relative gain of an iteration; less is rounding in float32
SAMPLED = 8  # the curvature is estimated from this many rows for each feature
TOO_LARGE = "logistic regression overflows on features so large; bring them to one scale (scale=True)"


@dataclass(frozen=True)
class Solution:
    """Coefficients (M, F) and intercepts (M,), with their objective."""

    coef: Float[np.ndarray, "M F"]
    intercept: Float[np.ndarray, " M"]
    loss: float
    passes: int  # how many passes over the rows were needed


@dataclass(frozen=True)
class Curvature:
    """The principal axes of centred features, in the columns of `axes` (F, A), and the variances (A,) along them.

    If there are fewer samples than features, there are at most as many axes as samples. The optimum has no component
    along any other axis.
    """

    axes: Float[np.ndarray, "F A"]
    variances: Float[np.ndarray, " A"]

    @classmethod
    def of(cls, rows: Rows) -> "Curvature":
        """Estimate the curvature from some rows. It affects how fast the optimum is found, but not where it is.

        Raises `ValueError` if the squares of the features overflow.
        """
        count, width = rows.shape
        if count < width:  # the matrix of samples has the same variances and is smaller
            some = np.concatenate([*read(rows, "curvature")]).astype(np.float64)
            squares, vectors = eigh(some @ some.T)
            kept = squares > squares[-1] * count * np.finfo(np.float32).eps ** 2
            return cls(some.T @ (vectors[:, kept] / np.sqrt(squares[kept])), squares[kept] / count)
        chosen = np.random.RandomState(0).permutation(count)[: SAMPLED * width]
        gram = np.zeros((width, width))
        for block in read(rows[np.sort(chosen)], "curvature"):
            with np.errstate(over="ignore", invalid="ignore"):  # refused below
                gram += block.T @ block
        if not np.isfinite(gram).all():
            raise ValueError(TOO_LARGE)
        variances, axes = eigh(gram / len(chosen))
        return cls(axes, variances.clip(min=0))


class Objective:
    """The loss of centred rows (N, F) and labels (N,), indices of K classes."""

    def __init__(self, rows: Rows, codes: Int[np.ndarray, " N"], num_classes: int) -> None:
        self.rows = rows
        self.codes = codes
        self.outputs = 1 if num_classes == 2 else num_classes
        self.slope = 1 / 4 if num_classes == 2 else 1 / num_classes  # second derivative by a logit, all classes even
        self.passes = 0

    def minimum(
        self, C: float, curvature: Curvature, start: Solution | None = None, tolerance: float | None = None
    ) -> Solution:
        """Find the minimum to a tolerance, by default `TOLERANCE`. Warns (`ConvergenceWarning`) if it is not reached.

        Raises `ValueError` unless `C` is positive, and if the loss overflows.
        """
        if not 0 < C < np.inf:
            raise ValueError(f"C must be a positive number, got {C!r}")
        strength = 1 / (C * len(self.codes))
        stretch = curvature.axes / np.sqrt(self.slope * curvature.variances + strength)  # (F, A)
        shape = self.outputs, stretch.shape[1] + 1
        first = np.zeros(shape)
        if start is not None:
            first[:, :-1] = start.coef @ curvature.axes * np.sqrt(self.slope * curvature.variances + strength)
            first[:, -1] = start.intercept * np.sqrt(self.slope)

        def value(flat: Array) -> tuple[float, Array]:
            point = flat.reshape(shape)
            coef = point[:, :-1] @ stretch.T
            loss, by_coef, by_intercept = self._loss(coef, point[:, -1] / np.sqrt(self.slope))
            by_coef += strength * coef
            gradient = np.column_stack([by_coef @ stretch, by_intercept / np.sqrt(self.slope)])
            return loss + strength / 2 * (coef**2).sum(), gradient.ravel()

        options: dict[str, Any] = {"maxiter": MAX_ITER, "maxls": 50, "gtol": tolerance or TOLERANCE, "ftol": GAIN}
        self.passes = 0
        found = minimize(value, first.ravel(), method="L-BFGS-B", jac=True, options=options)
        if found.status == 1:
            message = f"logistic regression with C = {C:.3g} did not converge in {MAX_ITER} iterations"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        if not np.isfinite(found.fun):
            raise ValueError(TOO_LARGE)
        point = found.x.reshape(shape)
        return Solution(point[:, :-1] @ stretch.T, point[:, -1] / np.sqrt(self.slope), found.fun, self.passes)

    def measure(self, solution: Solution) -> tuple[int, float]:
        """Return how many rows a solution classifies correctly, and its mean loss on all rows."""
        right, loss = 0, 0.0
        for _, codes, logits in self._logits(solution.coef, solution.intercept, "held out"):
            best = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(axis=1)
            right += int((best == codes).sum())
            loss += _losses(logits, codes)[0].sum(dtype=np.float64)
        return right, loss / len(self.codes)

    def _loss(self, coef: Array, intercept: Array) -> tuple[float, Array, Array]:
        """Return the mean loss over the rows, and its derivatives (M, F) and (M,)."""
        self.passes += 1
        loss, by_coef, by_intercept = 0.0, np.zeros(coef.shape), np.zeros(len(coef))
        for block, codes, logits in self._logits(coef, intercept, f"pass {self.passes}"):
            losses, slopes = _losses(logits, codes)
            loss += losses.sum(dtype=np.float64)
            by_coef += slopes.T @ block
            by_intercept += slopes.sum(axis=0, dtype=np.float64)
        count = len(self.codes)
        return loss / count, by_coef / count, by_intercept / count

    def _logits(self, coef: Array, intercept: Array, work: str) -> Iterator[tuple[Array, Array, Array]]:
        """Yield blocks of rows (n, F) with their labels (n,) and logits (n, M)."""
        weights, bias, start = coef.T.astype(self.rows.dtype), intercept.astype(self.rows.dtype), 0
        for block in read(self.rows, work):
            yield block, self.codes[start : start + len(block)], block @ weights + bias
            start += len(block)


def extrapolate(path: Sequence[Solution]) -> Solution | None:
    """Extrapolate the last two solutions linearly, for equal steps of log C."""
    if len(path) < 2:
        return path[-1] if path else None
    before, last = path
    return replace(last, coef=2 * last.coef - before.coef, intercept=2 * last.intercept - before.intercept)


def _losses(logits: Float[np.ndarray, "n M"], codes: Int[np.ndarray, " n"]) -> tuple[Array, Array]:
    """Return the loss (n,) of each row, and its derivatives (n, M) with respect to the logits."""
    if logits.shape[1] == 1:
        logit, second = logits[:, 0], codes == 1
        return np.logaddexp(0, logit) - second * logit, (expit(logit) - second)[:, None]
    own = np.arange(len(codes)), codes
    logits = logits - logits.max(axis=1, keepdims=True)
    slopes = np.exp(logits)
    sums = slopes.sum(axis=1)
    slopes /= sums[:, None]
    slopes[own] -= 1
    return np.log(sums) - logits[own], slopes
