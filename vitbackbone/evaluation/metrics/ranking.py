"""Average precision of rankings, by the trapezoidal rule of retrieval, and micro-AP over all pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import average_precision_score

Ids = Int[np.ndarray, " _"]  # indices of images in the database


def average_precision(ranks: Int[np.ndarray, " _"], positives: int) -> float:
    """Return the area under a precision-recall curve, by the trapezoidal rule.

    (Philbin et al. 2007; filipradenovic/revisitop, python/evaluate.py) It differs from scikit-learn's step rule.

    `ranks`: ascending 0-based ranks of the positives that were found. `positives`: how many there are in all.
    """
    count = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, count / np.maximum(ranks, 1))
    after = (count + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * positives))


@dataclass(frozen=True)
class Ranked:
    """The scores of one query."""

    ap: float
    precision: tuple[float, ...]  # at each k


def score_query(ranking: Ids, ok: Ids, junk: Ids, ks: Sequence[int]) -> Ranked | None:
    """Score the ranking of the whole database for one query. Junk leaves the ranking before ranks are counted.

    (Radenović et al. 2018; filipradenovic/revisitop, python/evaluate.py)

    Precision at k looks no further than the last positive. Returns None for a query without positives, which the mean
    leaves out.
    """
    if not len(ok):
        return None
    positives = np.flatnonzero(np.isin(ranking, ok))
    positives = positives - np.searchsorted(np.flatnonzero(np.isin(ranking, junk)), positives)
    if not len(positives):
        return Ranked(0.0, (0.0,) * len(ks))
    precision = []
    for k in ks:
        depth = min(int(positives.max()) + 1, k)
        precision.append(float((positives < depth).sum() / depth))
    return Ranked(average_precision(positives, len(ok)), tuple(precision))


def micro_average_precision(
    similarity: Float[np.ndarray, " pairs"], positive: Bool[np.ndarray, " pairs"], positives: int
) -> float:
    """Return the average precision of all pairs of queries and images in one ranking (Douze et al. 2021, DISC21).

    `positives`: how many pairs are positive in all; those that were not retrieved count as missed.
    """
    found = int(positive.sum())
    if not found:
        return 0.0
    return float(average_precision_score(positive, similarity)) * found / positives
