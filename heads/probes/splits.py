"""Held-out samples: a share of each class, drawn by whole groups, so that a photo and its copies stay together.

Axes: `N` samples, `G` groups, `K` classes.
"""

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.utils import check_consistent_length, column_or_1d

HOLD_OUT_SEED = 0


def hold_out(codes: ArrayLike, share: float, groups: ArrayLike | None = None) -> Bool[np.ndarray, " N"]:
    """Return a mask (N,) of the samples to hold out: a share of each class, drawn with a fixed seed.

    `codes`: class indices (N,), from 0. Samples of unknown class have -1 and are never held out.
    `groups`: the group (N,) of each sample, such as a photo with its copies, an animal, or a camera. A group is held
    out whole or not at all, even if it has samples of several classes. By default each sample is its own group.

    Each class gives at least one group and keeps at least one. A class with a single group gives none.
    Raises `ValueError` on other codes, a share that is not between 0 and 1, and groups of another length.
    """
    labels = column_or_1d(codes)
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < -1:
        raise ValueError(f"codes are {labels.dtype} from {labels.min(initial=0)}; want class indices, -1 for unknown")
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share!r}")
    members = np.arange(len(labels)) if groups is None else as_codes(groups)
    check_consistent_length(labels, members)
    return _choose(labels.astype(np.int64), members, share)[members] & (labels >= 0)


def _choose(labels: Int[np.ndarray, " N"], members: Int[np.ndarray, " N"], share: float) -> Bool[np.ndarray, " G"]:
    """Choose the groups to hold out. Rare classes choose first, and each takes groups in a random order."""
    order = np.random.RandomState(HOLD_OUT_SEED).permutation(len(labels))
    groups, first = np.unique(members[order], return_index=True)
    chosen = np.zeros(len(groups), dtype=bool)
    known = labels >= 0
    num_classes = int(labels.max(initial=-1)) + 1
    cells, size = np.unique(members[known] * num_classes + labels[known], return_counts=True)
    group, label = np.divmod(cells, max(num_classes, 1))
    starts = np.searchsorted(group, np.arange(len(groups) + 1)).tolist()
    totals = np.bincount(label, size, minlength=num_classes).astype(int).tolist()
    by_class = np.lexsort((first[group], label))
    ends = np.searchsorted(label[by_class], np.arange(num_classes + 1))
    # Lists from here on: a million steps take one second with Python's numbers, and ten with NumPy's.
    of_cell, of_class, sizes = group.tolist(), label.tolist(), size.tolist()
    given = [0] * num_classes

    def take(one: int) -> None:
        """Hold a group out, unless a class would then have no sample left."""
        cells = range(starts[one], starts[one + 1])
        if all(given[of_class[cell]] + sizes[cell] < totals[of_class[cell]] for cell in cells):
            for cell in cells:
                given[of_class[cell]] += sizes[cell]
            chosen[one] = True

    for which in np.argsort(totals, kind="stable").tolist():
        own, wanted = by_class[ends[which] : ends[which + 1]], max(1, round(totals[which] * share))
        for cell in own.tolist():
            if given[which] >= wanted:
                break
            if given[which] + sizes[cell] / 2 <= wanted and not chosen[of_cell[cell]]:
                take(of_cell[cell])
        for cell in own[np.argsort(size[own], kind="stable")].tolist():  # if every group is larger than the share
            if given[which]:
                break
            take(of_cell[cell])
    return chosen


def join_groups(*groupings: ArrayLike) -> Int[np.ndarray, " N"]:
    """Join groupings (N,) of the same samples, and return group indices (N,) from 0.

    Two samples that share a group in any grouping share one in the result, also if other samples link them.
    """
    parts = [as_codes(groups) for groups in groupings]
    check_consistent_length(*parts)
    count = len(parts[0])
    starts = np.cumsum([count, *(int(part.max(initial=-1)) + 1 for part in parts)])
    nodes = np.tile(np.arange(count), len(parts))
    edges = np.concatenate([part + start for part, start in zip(parts, starts, strict=False)])
    graph = coo_matrix((np.ones(len(edges), dtype=np.int8), (nodes, edges)), shape=(starts[-1], starts[-1]))
    return as_codes(connected_components(graph, directed=False)[1][:count])


def as_codes(groups: ArrayLike) -> Int[np.ndarray, " N"]:
    """Return the index (N,) of each sample's group."""
    return np.unique(column_or_1d(groups), return_inverse=True)[1].reshape(-1)
