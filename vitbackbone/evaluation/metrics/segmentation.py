"""Intersection over union of classes, over the pixels of a whole set of images."""

import numpy as np
from jaxtyping import Float, Int, Shaped


def areas(
    predicted: Shaped[np.ndarray, "H W"], labels: Shaped[np.ndarray, "H W"], num_classes: int, ignored: int = 255
) -> Int[np.ndarray, "3 K"]:
    """Count the pixels of each class of one image: right, predicted, labelled. Ignored pixels are left out."""
    known = labels != ignored
    predicted, labels = predicted[known], labels[known]
    right = predicted[predicted == labels]
    return np.stack([_count(each, num_classes) for each in (right, predicted, labels)])


def _count(classes: Shaped[np.ndarray, " N"], num_classes: int) -> Int[np.ndarray, " K"]:
    return np.bincount(classes.astype(np.int64), minlength=num_classes)[:num_classes]


def iou(total: Shaped[np.ndarray, "3 K"]) -> Float[np.ndarray, " K"]:
    """Return the IoU of each class from the summed `areas` of all images. It is NaN if a class occurs nowhere."""
    right, predicted, labelled = total
    with np.errstate(invalid="ignore"):
        return right / (predicted + labelled - right)


def mean_iou(total: Shaped[np.ndarray, "3 K"]) -> float:
    """Return the mean IoU over the classes that occur in the labels or the predictions.

    (mmsegmentation, core/evaluation/metrics.py) It differs from a mean over images.
    """
    return float(np.nanmean(iou(total)))


def mean_recall(total: Shaped[np.ndarray, "3 K"]) -> float:
    """Return the share of each class's pixels that are right, averaged over the classes that occur in the labels."""
    right, _, labelled = total
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(right / labelled))


def pixel_accuracy(total: Shaped[np.ndarray, "3 K"]) -> float:
    """Return the share of the labelled pixels that are right."""
    right, _, labelled = total
    return float(right.sum() / labelled.sum())


def remove_zero(labels: Shaped[np.ndarray, "H W"], ignored: int = 255) -> Shaped[np.ndarray, "H W"]:
    """Return labels with 0 ignored and every class one lower, as ADE20k's 150 classes are counted."""
    return np.where((labels == 0) | (labels == ignored), ignored, labels - 1).astype(labels.dtype)
