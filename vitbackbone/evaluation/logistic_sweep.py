"""Logistic regression by scikit-learn with a sweep of C, as DINOv2 and DINOv3 use it.

Axes: `N` samples, `F` features, `K` classes.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from vitbackbone.evaluation.metrics.accuracy import eleven_point_ap, mean_per_class
from vitbackbone.evaluation.run import Run

Scores = Float[np.ndarray, "N K"]
Labels = Int[np.ndarray, "N ..."]
RANKED = "11-point mAP"  # the metric that ranks images by their scores


@dataclass(frozen=True, eq=False)
class Samples:
    """Features with their labels."""

    features: Float[np.ndarray, "N F"]
    labels: Labels


class Logistic:
    """A fitted logistic regression: logits = features @ coef.T + intercept, one column for each class."""

    def __init__(self, coef: Float[np.ndarray, "K F"], intercept: Float[np.ndarray, " K"]) -> None:
        self.coef = coef
        self.intercept = intercept

    def scores(self, features: Float[np.ndarray, "N F"]) -> Scores:
        """Return the logits (N, K)."""
        return features.astype(np.float64) @ self.coef.T + self.intercept


def fit_logistic(
    features: Float[np.ndarray, "N F"], labels: Labels, classes: int, C: float, tolerance: float, iterations: int
) -> Logistic:
    """Fit on features in float64. If labels have two dimensions, each class has a binary fit of its own; -1 counts as
    absent.

    A class without a sample gets a logit of minus infinity. Raises `ValueError` if there is a single class.
    """
    if labels.ndim == 2:
        parts = [_binary(features, labels[:, i] == 1, C, tolerance, iterations) for i in range(classes)]
        return Logistic(np.stack([coef for coef, _ in parts]), np.array([bias for _, bias in parts]))
    found = _sklearn(features, labels, C, tolerance, iterations)
    coef, intercept = np.zeros((classes, features.shape[1])), np.full(classes, -np.inf)
    if len(found.classes_) == 2:  # scikit-learn has one row: the logit of the second class
        coef[found.classes_[1]], intercept[found.classes_] = found.coef_[0], [0.0, found.intercept_[0]]
    else:
        coef[found.classes_], intercept[found.classes_] = found.coef_, found.intercept_
    return Logistic(coef, intercept)


def _binary(
    features: Float[np.ndarray, "N F"], positive: Bool[np.ndarray, " N"], C: float, tolerance: float, iterations: int
) -> tuple[Float[np.ndarray, " F"], float]:
    if positive.all() or not positive.any():
        return np.zeros(features.shape[1]), np.inf if positive.all() else -np.inf
    found = _sklearn(features, positive.astype(int), C, tolerance, iterations)
    return found.coef_[0], float(found.intercept_[0])


def _sklearn(
    features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, " N"], C: float, tolerance: float, iterations: int
) -> Any:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        raise ValueError("a logistic regression needs training images of at least two classes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the largest values of C end at the limit of iterations, as upstream
        model = LogisticRegression(C=C, tol=tolerance, max_iter=iterations)
        return model.fit(features.astype(np.float64), labels)


def answers_of(kind: str, scores: Scores) -> Shaped[np.ndarray, "N ..."]:
    """Return what a metric reads: the scores if it ranks images, else the predicted class of each."""
    return scores if kind == RANKED else scores.argmax(axis=1)


def metric_of(kind: str, answers: Shaped[np.ndarray, "N ..."], labels: Labels) -> float:
    """Return a metric in [0, 1]: "top-1", "mean per class" or "11-point mAP", which is NaN without a positive.

    `answers`: as `answers_of` returns them.
    """
    if kind == RANKED:
        counted = [(answers[:, i], labels[:, i]) for i in range(answers.shape[1])]
        found = [eleven_point_ap(score[own >= 0], own[own >= 0] == 1) for score, own in counted if (own == 1).any()]
        return float(np.mean(found)) if found else float("nan")
    return mean_per_class(answers, labels) if kind == "mean per class" else float((answers == labels).mean())


def sweep(
    run: Run,
    key: Sequence[Any],
    train: Samples,
    held: Samples,
    classes: int,
    metric: str,
) -> float:
    """Return the C of the best metric on held-out samples, the first one on a tie. Each fit is kept as a stage."""
    fit, values = run.protocol.fit, c_values(run.protocol.fit.powers)
    found = []
    for C in values:

        def one(C: float = C) -> dict[str, np.ndarray]:
            model = fit_logistic(train.features, train.labels, classes, C, fit.tolerance, fit.iterations)
            return {"value": np.array(metric_of(metric, answers_of(metric, model.scores(held.features)), held.labels))}

        found.append(float(run.stage("logistic-c", [*key, C], one)["value"]))
    return values[int(np.argmax(found))]


def c_values(powers: tuple[float, ...]) -> list[float]:
    """Return 10 to evenly spaced powers: (first, last, how many), in float32 as by torch.linspace."""
    if len(powers) != 3 or powers[2] < 1:
        raise ValueError(f"fit.powers={powers}; want the first power, the last one and how many, such as -6,5,45")
    import torch

    return [float(C) for C in 10 ** torch.linspace(powers[0], powers[1], int(powers[2]))]
