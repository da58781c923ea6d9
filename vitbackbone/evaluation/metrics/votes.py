"""The votes of nearest neighbours (Wu et al. 2018; Caron et al. 2021), in blocks of bounded memory.

Axes: `n` queries, `F` features, `k` neighbours, `K` classes.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 4096  # training samples of a block: with as many queries, 64 MB of similarities


def unit(features: Float[Tensor, "n F"]) -> Float[Tensor, "n F"]:
    """Scale each row to length 1. A row of zeros stays as it is."""
    return torch.nn.functional.normalize(features, dim=1)


def nearest(
    queries: Float[Tensor, "n F"], blocks: Iterable[tuple[int, Float[Tensor, "_ F"]]], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Return each query's highest similarities to training samples, descending, and the indices of these samples.

    `blocks`: training samples of length 1, each block with the index of its first sample. With fewer than `k` samples
    there are fewer columns.
    """
    top = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start, block in blocks:
        similarities = queries @ block.T
        wanted = min(k, len(block))
        if top.shape[1] == k:  # few samples of a later block come closer than the ones that were found
            wanted = min(wanted, int((similarities > top[:, -1:]).sum(dim=1).max()))
        found, columns = similarities.topk(wanted)
        top, rows = torch.cat([top, found], dim=1), torch.cat([rows, columns + start], dim=1)
        top, kept = top.topk(min(k, top.shape[1]))
        rows = rows.gather(1, kept)
    return top, rows


def votes(
    similarities: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n k"], classes: int, temperature: float
) -> Float[np.ndarray, "n K"]:
    """Return the votes of the neighbours for each class: the sum of exp(similarity / temperature), up to a factor.

    Softmax weights, as the authors have them, differ by a factor for each query, and so give the same ranks.
    """
    weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)
    cells = np.arange(len(labels))[:, None] * classes + labels
    summed = np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * classes)
    return summed.reshape(len(labels), classes)
