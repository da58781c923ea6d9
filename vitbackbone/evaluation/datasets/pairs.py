"""Photos with a target for every pixel: classes, or depth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from vitbackbone.evaluation.datasets.layout import LayoutError, stamp
from vitbackbone.evaluation.datasets.photos import open_photo, open_stored

IGNORED = 255


@dataclass(frozen=True, eq=False)
class Pairs:
    """A split: photos and their targets, as paths relative to `root`."""

    root: Path
    photos: Sequence[str]
    targets: Sequence[str]

    def __len__(self) -> int:
        return len(self.photos)

    def limited(self, limit: int | None) -> "Pairs":
        """Return at most `limit` pairs, a random choice with a fixed seed, in their order."""
        if limit is None or len(self) <= limit:
            return self
        rows = np.sort(np.random.RandomState(0).permutation(len(self))[:limit]).tolist()
        return replace(self, photos=[self.photos[i] for i in rows], targets=[self.targets[i] for i in rows])

    def digest(self) -> str:
        """Return a SHA-256 of the files."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return stamp(self.root, [*self.photos, *self.targets])

    def photo(self, index: int) -> Image.Image:
        """Return a photo in RGB."""
        return open_photo(self.root / self.photos[index])

    def stored(self, index: int) -> Image.Image:
        """Return a target as it is stored. Raises `LayoutError` if it cannot be read."""
        return open_stored(self.root / self.targets[index])


def paired(root: Path, photos: Sequence[str], targets: Sequence[str], named_by: str, tree: str) -> Pairs:
    """Return photos with their targets. `named_by`: the list file or folder that has their names.

    Raises `LayoutError` if there is none, or a file is missing.
    """
    missing = [each for each in [*photos, *targets] if not (root / each).is_file()]
    if missing:
        raise LayoutError(
            f"{root} lacks {len(missing)} files that {named_by} names, such as {missing[0]}; the official layout is "
            f"{tree}"
        )
    if not photos:
        raise LayoutError(f"{root / named_by} names no photo with its target; the official layout is {tree}")
    return Pairs(root, photos, targets)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmentation dataset. `lookup` has the class of each stored value, 255 for pixels to ignore."""

    train: Pairs
    test: Pairs
    classes: Sequence[str]
    lookup: UInt8[np.ndarray, "256"]

    def pair(self, split: Pairs, index: int) -> tuple[Image.Image, UInt8[np.ndarray, "H W"]]:
        """Return a photo and the class of each pixel. Raises `LayoutError` if they do not fit."""
        photo, labels = split.photo(index), self.labels(split, index)
        _same_size(split, index, photo, labels)
        return photo, labels

    def labels(self, split: Pairs, index: int) -> UInt8[np.ndarray, "H W"]:
        """Return the class of each pixel of a photo. Raises `LayoutError` if the file holds no indices."""
        image = split.stored(index)
        if image.mode not in ("P", "L"):
            raise LayoutError(f"{split.root / split.targets[index]} has mode {image.mode}; want 8-bit class indices")
        return self.lookup[np.asarray(image)]


def _same_size(split: Pairs, index: int, photo: Image.Image, target: Shaped[np.ndarray, "H W"]) -> None:
    """Raise `LayoutError` if a photo and its target differ in size."""
    if target.shape != (photo.height, photo.width):
        raise LayoutError(
            f"{split.root / split.targets[index]} has {target.shape[1]} x {target.shape[0]} pixels, and its photo "
            f"{split.photos[index]} has {photo.width} x {photo.height}; want equal sizes"
        )


def lookup(classes: dict[int, int]) -> UInt8[np.ndarray, "256"]:
    """Return a table of the class of each stored value; all values that `classes` lacks are ignored."""
    table = np.full(256, IGNORED, dtype=np.uint8)
    for stored, each in classes.items():
        table[stored] = each
    return table


@dataclass(frozen=True, eq=False)
class Depths:
    """A depth dataset. Stored values are divided by `scale` to give metres; 0 is unknown."""

    train: Pairs
    test: Pairs
    scale: float

    def pair(self, split: Pairs, index: int) -> tuple[Image.Image, Float[np.ndarray, "H W"]]:
        """Return a photo and its depth. Raises `LayoutError` if they do not fit."""
        photo, depth = split.photo(index), self.depth(split, index)
        _same_size(split, index, photo, depth)
        return photo, depth

    def depth(self, split: Pairs, index: int) -> Float[np.ndarray, "H W"]:
        """Return depth in metres, 0 where unknown. Raises `LayoutError` if the file holds no depth."""
        image = split.stored(index)
        if not image.mode.startswith("I"):
            raise LayoutError(f"{split.root / split.targets[index]} has mode {image.mode}; want 16-bit depth")
        return np.asarray(image, dtype=np.float32) / np.float32(self.scale)
