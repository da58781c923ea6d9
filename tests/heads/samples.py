"""Samples for probes, and the probes that are held to every promise."""

from dataclasses import dataclass

import numpy as np

from heads import KnnProbe, LinearProbe

PROBES = [LinearProbe(), LinearProbe("dinov2"), LinearProbe(scale=False), KnnProbe(), KnnProbe(k=1)]


def clusters(n: int, num_classes: int, dim: int = 12, spread: float = 0.7, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Overlapping Gaussian clusters, whose features have very different means and scales: X, y, and X of a test."""
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(num_classes, dim))
    y = np.arange(n) % num_classes
    offset, magnitude = 5 * rng.normal(size=dim), np.exp(rng.normal(size=dim))
    train, test = ((centres[y] + rng.normal(size=(n, dim)) + offset) * magnitude for _ in range(2))
    return train, y, test


@dataclass
class LazyRows:
    """Rows of an array that are read in odd blocks."""

    array: np.ndarray

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        return LazyRows(self.array[index])

    def blocks(self, rows):
        return (self.array[start : start + 97] for start in range(0, len(self.array), min(rows, 97)))
