"""The votes of nearest neighbours (Wu et al. 2018; Caron et al. 2021), in blocks of bounded memory.

Axes: `n` queries, `F` features, `k` neighbours, `K` classes.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 4096  # training samples of a block; with as many queries, the similarities take 64 MB


def unit(features: Float[Tensor, "n F"]) -> Float[Tensor, "n F"]:
    """Scale each row to length 1. A row of zeros stays as it is."""
    return torch.nn.functional.normalize(features, dim=1)


def nearest(
    queries: Float[Tensor, "n F"], blocks: Iterable[tuple[int, Float[Tensor, "_ F"]]], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Return each query's highest similarities to training samples, descending, and the indices of these samples.

    `blocks`: training samples of length 1 in their order, each block with the index of its first sample. With fewer
    than `k` samples there are fewer columns. Of equal similarities the lower index comes first, whatever the blocks.
    """
    top = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start, block in blocks:
        similarities = queries @ block.T
        wanted = min(k, len(block))
        if top.shape[1] == k:  # few samples of a later block are closer than the neighbours found so far
            wanted = min(wanted, int((similarities > top[:, -1:]).sum(dim=1).max()))
        found, columns = _highest(similarities, wanted)
        top, rows = torch.cat([top, found], dim=1), torch.cat([rows, columns + start], dim=1)
        top, kept = _sorted(top, k)
        rows = rows.gather(1, kept)
    return top, rows


def _sorted(values: Float[Tensor, "n m"], count: int) -> tuple[Float[Tensor, "n _"], Int[Tensor, "n _"]]:
    """Return the highest values and their columns. Equal values keep the order of their columns."""
    values, columns = values.sort(dim=1, descending=True, stable=True)
    return values[:, :count], columns[:, :count]


def _highest(values: Float[Tensor, "n m"], count: int) -> tuple[Float[Tensor, "n _"], Int[Tensor, "n _"]]:
    """Return what `_sorted` returns, without sorting all columns."""
    one_more = min(count + 1, values.shape[1])
    columns = values.topk(one_more).indices.sort(dim=1).values
    found, order = _sorted(values.gather(1, columns), one_more)
    columns = columns.gather(1, order)
    if 0 < count < one_more:  # topk takes any of equal values
        tied = torch.nonzero(found[:, count - 1] == found[:, count]).flatten()
        found[tied], columns[tied] = _sorted(values[tied], one_more)
    return found[:, :count], columns[:, :count]


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
