"""Subsets of training images, drawn as DINOv3's code draws them (dinov3/eval/data.py)."""

import numpy as np
import torch
from jaxtyping import Bool, Int


def few_of_each(labels: Int[np.ndarray, "N ..."], shots: float, seed: int) -> Int[np.ndarray, " n"]:
    """Return the rows, ascending, of `shots` samples of each class, drawn with a seed.

    Below 1, `shots` is a share: max(int(share * samples of the class), 1). If images have several labels, classes share
    images, and a share gives too many. It is then drawn again, smaller in proportion.
    """
    drawn = _draw(labels, shots, seed)
    wanted = int((labels == 1).sum() * shots)
    if labels.ndim == 2 and shots < 1 and wanted:
        drawn = _draw(labels, shots * wanted / (labels[drawn] == 1).sum(), seed)
    return drawn


def _draw(labels: Int[np.ndarray, "N ..."], shots: float, seed: int) -> Int[np.ndarray, " n"]:
    generator = torch.Generator().manual_seed(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for own in _members(labels):
        count = max(int(len(own) * shots), 1) if shots < 1 else int(shots)
        chosen[own[torch.randperm(len(own), generator=generator)[:count].numpy()]] = True
    return np.flatnonzero(chosen)


def _members(labels: Int[np.ndarray, "N ..."]) -> list[Int[np.ndarray, " n"]]:
    """Return the rows of each class that has samples."""
    several = labels.ndim == 2
    classes = range(labels.shape[1]) if several else np.unique(labels)
    found = [np.flatnonzero(labels[:, each] == 1 if several else labels == each) for each in classes]
    return [own for own in found if len(own)]


def few_of_the_rest(
    labels: Int[np.ndarray, "N ..."], held: Bool[np.ndarray, " N"], shots: float, seed: int
) -> Int[np.ndarray, " n"]:
    """Return `few_of_each` of the samples that are not held out, which the authors have shuffled before."""
    order = shuffled(len(labels))
    rest = order[~held[order]]
    return np.sort(rest[few_of_each(labels[rest], shots, seed)])


def shuffled(count: int) -> Int[np.ndarray, " N"]:
    """Return the order in which samples are held out, and few of them are drawn from the rest."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()


def hold_out_share(labels: Int[np.ndarray, "N ..."], share: float) -> Bool[np.ndarray, " N"]:
    """Return a mask of the samples to choose settings on: max(1, int(share * samples)) of each class.

    They are the first of each class in a random order of all samples with the seed 0. A class of one sample gives none.
    An image with several labels is held out if any of its classes chooses it.
    """
    order = shuffled(len(labels))
    held = np.zeros(len(labels), dtype=bool)
    for own in _members(labels[order]):
        if len(own) > 1:
            held[order[own[: max(1, int(share * len(own)))]]] = True
    return held
