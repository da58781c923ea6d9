"""Accuracies of class scores.

Axes: `N` images, `K` classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int


def in_top(scores: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"], k: int) -> Bool[np.ndarray, " N"]:
    """Return whether each label is among the `k` classes of the highest scores.

    (torchmetrics, `MulticlassAccuracy(top_k=k)`) Of equal highest scores, the first counts. If more classes are equal
    than there are places, such as classes without a vote, `torch.topk` on the CPU decides, as upstream.
    """
    if k == 1:
        return scores.argmax(axis=1) == labels
    best = torch.from_numpy(scores).topk(min(k, scores.shape[1])).indices.numpy()
    return (best == labels[:, None]).any(axis=1)


def in_list(predicted: Int[np.ndarray, " N"], lists: Sequence[Sequence[int]]) -> Bool[np.ndarray, " M"]:
    """Return whether each prediction is in its list, for the M images whose list is not empty (ImageNet ReaL)."""
    return np.array([label in each for label, each in zip(predicted.tolist(), lists, strict=True) if each], dtype=bool)


def best_of(scores: Float[np.ndarray, "N K"], subset: Int[np.ndarray, " S"]) -> Int[np.ndarray, " N"]:
    """Return the best class of a subset: the scores are cut to the subset before the argmax (ImageNet-A and -R)."""
    return subset[scores[:, subset].argmax(axis=1)]


def mean_per_class(predicted: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> float:
    """Return the accuracy of each class, averaged over the classes that occur in the labels or the predictions.

    (torchmetrics, `MulticlassAccuracy(average="macro")`) A class that is predicted and has no image counts as 0.
    """
    classes = np.union1d(predicted, labels)
    totals, hits = (np.bincount(each, minlength=classes[-1] + 1) for each in (labels, labels[predicted == labels]))
    return float((hits[classes] / np.maximum(totals[classes], 1)).mean())


def eleven_point_ap(scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"]) -> float:
    """Return VOC 2007's average precision: the highest precision at recalls of at least 0, .1, ..., 1, averaged.

    (Everingham et al. 2010, section 4.2; dinov3/eval/metrics/classification.py) As in the authors' code, the precision
    at recall 0 is 1, equal scores share a threshold, and recalls are compared in float32. Raises `ValueError` if no
    sample is positive.
    """
    if not positive.any():
        raise ValueError("an average precision needs at least one positive")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # True at the last image of each score
    hits = positive[order].cumsum()
    precision, recall = (hits / np.arange(1, len(hits) + 1))[last], (hits / hits[-1]).astype(np.float32)[last]
    levels = torch.linspace(0, 1, 11)[1:].tolist()
    return float(np.mean([1.0, *(precision[recall >= np.float32(level)].max() for level in levels)]))
