"""The layout of a dataset as it is distributed: how it is read in place, and how many of what it should have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vitbackbone.evaluation.settings import digest


class LayoutError(ValueError):
    """A folder does not have the layout that a dataset is distributed in."""


@dataclass(frozen=True)
class Layout:
    """A dataset and its official layout.

    `read` opens a folder and returns the record of the dataset's kind; it raises `LayoutError` with a sentence if a
    file or folder is missing. `counts` tells how many of what the record has. `official` are the counts of the whole
    dataset, by the same names.
    """

    name: str
    kind: str  # such as "classification"
    title: str  # such as "ImageNet-1k"
    tree: str  # the layout, for `describe` and the documentation
    read: Callable[[Path], Any]
    counts: Callable[[Any], Mapping[str, int]]
    official: Mapping[str, int] = field(default_factory=dict)
    source: str = ""

    def check(self, root: Path) -> "Check":
        """Compare a folder with the official counts. Raises `LayoutError` if it cannot be read at all."""
        return Check(self, root, dict(self.counts(self.read(root))))


@dataclass(frozen=True)
class Check:
    """The counts of a folder beside the official ones."""

    layout: Layout
    root: Path
    counts: Mapping[str, int]

    @property
    def differing(self) -> dict[str, tuple[int, int]]:
        """(here, official) of each count that differs."""
        official = self.layout.official
        return {
            name: (self.counts.get(name, 0), count)
            for name, count in official.items()
            if self.counts.get(name, 0) != count
        }


@dataclass(frozen=True, eq=False)
class Images:
    """Images in order, each with the index of its class, -1 if unknown.

    `pixels`: the images themselves, if the dataset is distributed as arrays; `names` are then for humans only.
    """

    root: Path
    names: Sequence[str]  # paths relative to `root`
    labels: Int[np.ndarray, " N"]
    classes: Sequence[str]
    pixels: UInt8[np.ndarray, "N H W 3"] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Int[np.ndarray, " n"]) -> "Images":
        """Return some of the images, in the given order."""
        names = [self.names[i] for i in rows.tolist()]
        pixels = None if self.pixels is None else self.pixels[rows]
        return replace(self, names=names, labels=self.labels[rows], pixels=pixels)

    def limited(self, limit: int | None) -> "Images":
        """Return at most `limit` images, a random choice with a fixed seed, in their order."""
        if limit is None or len(self) <= limit:
            return self
        return self.take(np.sort(np.random.RandomState(0).permutation(len(self))[:limit]))

    def digest(self) -> str:
        """Return a SHA-256 of the names and the labels."""
        return digest(list(self.names), self.labels.tolist())


@dataclass(frozen=True, eq=False)
class Labelled:
    """A classification dataset: its splits by name. `train` is fitted on, and `test` is reported."""

    train: Images
    test: Images


def need_folder(root: Path, *parts: str, tree: str) -> Path:
    """Return a folder of a dataset. Raises `LayoutError` if it is missing."""
    folder = root.joinpath(*parts)
    if not folder.is_dir():
        raise LayoutError(f"{root} has no folder {'/'.join(parts) or '.'}; the official layout is {tree}")
    return folder


def need_file(root: Path, *parts: str, tree: str) -> Path:
    """Return a file of a dataset. Raises `LayoutError` if it is missing."""
    file = root.joinpath(*parts)
    if not file.is_file():
        raise LayoutError(f"{root} has no file {'/'.join(parts)}; the official layout is {tree}")
    return file
