"""The nearest-neighbour probe, as a scikit-learn classifier.

It takes plain arrays, and `Rows` that need not fit into memory.

Axes: `N` samples, `F` features, `K` classes.
"""

from collections.abc import Iterator
from typing import Any, no_type_check

import numpy as np
import torch
from numpy.typing import ArrayLike

from heads.probes.base import FLOATS, Probe, Tensors, check_tensor
from heads.probes.parameters import count, positive
from heads.probes.rows import Array, InMemory, Rows, precision, read, read_checked
from heads.probes.scaling import unit_length


@no_type_check
class KnnProbe(Probe):
    """DINO's weighted nearest neighbours (Caron et al. 2021; facebookresearch/dino, eval_knn.py).

    The `k` training samples of the highest cosine similarity vote, each with weight exp(similarity / temperature). If
    there are fewer than `k`, all vote. A zero vector has similarity 0 to every other.

    X is an array, or `Rows` such as `FeatureStore(...).rows`. Neither the training features nor the features to predict
    need fit into memory. The training features are read once, in blocks, for every 4096 samples to predict.

    Rows with the label -1, "unknown" in a `FeatureStore`, are left out with a warning.

    Fitted: `features_` (N, F) with rows of length 1, or the `Rows` as given; their files must stay in place. `codes_`
    (N,) has the class index of each sample in `classes_`.
    Raises `ValueError` unless `k` is a positive integer and `temperature` a positive number.
    """

    features_: Array | Rows
    codes_: Array

    def __init__(self, k: int = 20, temperature: float = 0.07) -> None:
        self.k = k
        self.temperature = temperature

    def fit(self, X: ArrayLike | Rows, y: ArrayLike) -> "KnnProbe":
        """Store features (N, F) and labels (N,)."""
        self._check_parameters()
        rows, classes, codes, _ = self._check_fit(X, y)
        for _ in read_checked(rows, precision(rows.dtype), "checking"):
            pass
        self.classes_, self.codes_ = classes, codes
        self.features_ = unit_length(rows.array) if isinstance(rows, InMemory) else rows
        return self

    def predict_proba(self, X: ArrayLike | Rows) -> Array:
        """Return each class's share of the votes (N, K), in the order of `classes_`."""
        return np.concatenate(list(self._votes(X)))

    def predict(self, X: ArrayLike | Rows) -> Array:
        """Return the predicted labels (N,)."""
        best = [votes.argmax(axis=1) for votes in self._votes(X)]
        return self.classes_[np.concatenate(best)]

    def _votes(self, X: ArrayLike | Rows) -> Iterator[Array]:
        """Yield the shares of the votes (n, K), block by block."""
        for block in self._predict_blocks(X):
            num_classes = len(self.classes_)
            top, nearest = self._nearest(unit_length(block))
            # Relative to the nearest sample: the shares stay the same, and no temperature overflows.
            weights = np.exp((top - top[:, :1]).astype(np.float64) / self.temperature)
            cells = np.arange(len(top))[:, None] * num_classes + self.codes_[nearest]
            votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(top) * num_classes)
            votes = votes.reshape(-1, num_classes)
            yield votes / votes.sum(axis=1, keepdims=True)

    def _nearest(self, queries: Array) -> tuple[Array, Array]:
        """Return each query's highest similarities to training samples, descending, and their indices: (n, k) each."""
        top = torch.empty(len(queries), 0, dtype=torch.from_numpy(queries).dtype)
        nearest = torch.empty(len(queries), 0, dtype=torch.int64)
        for start, block in self._training_blocks():
            similarities = torch.from_numpy(queries @ block.T)  # (n, rows of the block)
            found, columns = similarities.topk(min(self.k, len(block)))
            top, nearest = torch.cat([top, found], dim=1), torch.cat([nearest, columns + start], dim=1)
            top, kept = top.topk(min(self.k, top.shape[1]))
            nearest = nearest.gather(1, kept)
        return top.numpy(), nearest.numpy()

    def _training_blocks(self) -> Iterator[tuple[int, Array]]:
        """Yield blocks (n, F) of training features of length 1, each with the index of its first sample."""
        start, stored = 0, self.features_
        for block in read(InMemory(stored) if isinstance(stored, np.ndarray) else stored, "neighbours"):
            yield start, block if isinstance(stored, np.ndarray) else unit_length(block.astype(self._dtype()))
            start += len(block)

    def _check_parameters(self) -> None:
        count(self, "k")
        positive(self, "temperature")

    def _dtype(self) -> np.dtype[Any]:
        return precision(self.features_.dtype)

    def _to_tensors(self) -> Tensors:
        features = np.concatenate([block for _, block in self._training_blocks()])  # not the path of stored rows
        return {"features": features, "codes": self.codes_}

    def _from_tensors(self, tensors: Tensors) -> None:
        features, codes = tensors["features"], tensors["codes"]
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(f"features has shape {features.shape}; want (N, F)")
        check_tensor("features", features, features.shape, FLOATS)
        check_tensor("codes", codes, (len(features),), [np.int64])
        if not np.array_equal(np.unique(codes), np.arange(len(self.classes_))):
            raise ValueError(f"{len(self.classes_)} classes, but codes for {len(np.unique(codes))}")
        self.features_, self.codes_ = features, codes
        self.n_features_in_ = features.shape[1]
