"""Subsets of training images, drawn as DINOv3's code draws them (dinov3/eval/data.py)."""

import numpy as np
import torch
from jaxtyping import Bool, Int


def few_of_each(labels: Int[np.ndarray, " N"], shots: float, seed: int) -> Int[np.ndarray, " n"]:
    """Return the rows, ascending, of `shots` samples of each class, drawn with a seed.

    Below 1, `shots` is a share: max(int(share * samples of the class), 1).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = max(int(len(own) * shots), 1) if shots < 1 else int(shots)
        chosen[own[torch.randperm(len(own), generator=generator)[:count].numpy()]] = True
    return np.flatnonzero(chosen)


def few_of_the_rest(
    labels: Int[np.ndarray, " N"], held: Bool[np.ndarray, " N"], shots: float, seed: int
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
    With several labels an image, it is held out if any of its classes chooses it.
    """
    order = shuffled(len(labels))
    ordered = labels[order]
    held = np.zeros(len(labels), dtype=bool)
    classes = range(labels.shape[1]) if labels.ndim == 2 else np.unique(labels)
    for label in classes:
        own = np.flatnonzero(ordered[:, label] == 1 if labels.ndim == 2 else ordered == label)
        if len(own) > 1:
            held[order[own[: max(1, int(share * len(own)))]]] = True
    return held
