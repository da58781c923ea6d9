"""Augmented training images, streamed: each is decoded, cropped and flipped anew, and nothing is stored.

The crop of an image depends only on the seed and on its position in the stream. So a resumed run sees the same images
as an undisturbed one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitbackbone.evaluation.datasets import Images
from vitbackbone.evaluation.settings import setting
from vitbackbone.images import ImageError, Interpolation, Preprocess, View, open_image

TORCHVISION = "torchvision: RandomResizedCrop(224, bicubic), RandomHorizontalFlip(); dinov2/data/transforms.py"


@dataclass(frozen=True)
class Augmentation:
    """A random crop of random aspect, resized to a square, and a random flip. Mean and std are the checkpoint's own."""

    size: int = setting(224, "side of the crop after resizing, in pixels; 0 means the view's crop", TORCHVISION)
    least: float = setting(0.08, "smallest area of the crop, as a share of the photo", TORCHVISION)
    most: float = setting(1.0, "largest area of the crop, as a share of the photo", TORCHVISION)
    aspect: float = setting(4 / 3, "largest aspect ratio of the crop; the smallest is its inverse", TORCHVISION)
    tries: int = setting(
        10, "random crops until one fits into the photo; 0 cuts the first one to the photo", TORCHVISION, least=0
    )
    flip: float = setting(0.5, "probability of a horizontal flip", TORCHVISION)
    interpolation: Interpolation = setting("bicubic", "filter of the resize, antialiased", TORCHVISION)


def crop_box(size: tuple[int, int], crop: Augmentation, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random crop, drawn as by torchvision's `RandomResizedCrop`.

    With `tries` of 0, it is drawn as by MAE's code (util/crop.py).
    """
    height, width = size
    for _ in range(max(crop.tries, 1)):
        area = height * width * random.uniform(crop.least, crop.most)
        ratio = math.exp(random.uniform(-math.log(crop.aspect), math.log(crop.aspect)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not crop.tries:
            w, h = min(max(w, 1), width), min(max(h, 1), height)
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(0, height - h + 1)), int(random.integers(0, width - w + 1)), h, w
    ratio = min(max(width / height, 1 / crop.aspect), crop.aspect)
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


class Augmented(Dataset[Any]):
    """The images of a dataset, each by (its row, its position in the stream).

    `upright`: whether photos are turned by their EXIF orientation.
    """

    def __init__(
        self, images: Images, preprocess: Preprocess, crop: Augmentation, seed: int, upright: bool = False
    ) -> None:
        self.images = images
        self.upright = upright
        self.preprocess = replace(preprocess, interpolation=crop.interpolation)
        self.crop = crop
        self.seed = seed

    def __getitem__(self, at: tuple[int, int]) -> tuple[int, UInt8[Tensor, "3 S S"] | None]:
        """Return the row and the pixels, or None in their place if the image cannot be read."""
        row, position = at
        random = np.random.default_rng([self.seed, position])
        images = self.images
        source = images.root / images.names[row] if images.pixels is None else images.pixels[row]
        try:
            photo = open_image(source)
            rgb = (photo if self.upright else photo.as_stored()).decode()
        except (OSError, ImageError):
            return row, None
        top, left, h, w = crop_box((rgb.shape[1], rgb.shape[2]), self.crop, random)
        side = (self.crop.size, self.crop.size)
        view = View((h, w), side, (0, 0), side)
        pixels = self.preprocess.cut(rgb[:, top : top + h, left : left + w].contiguous(), view, True)
        return row, pixels.flip(2) if random.uniform() < self.crop.flip else pixels


@dataclass(frozen=True)
class Batch:
    """A batch of augmented images: bytes (B, 3, S, S), and the row of each. `lost`: rows that could not be read."""

    pixels: Tensor
    rows: Int[np.ndarray, " B"]
    lost: tuple[int, ...]


def stream(dataset: Augmented, start: int, steps: int, size: int, workers: int) -> Iterator[Batch]:
    """Yield the batches of steps `start` to `steps` of an endless stream of epochs, each in its own random order."""
    batches = _Batches(len(dataset.images), dataset.seed, start, steps, size)
    loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=_collate)
    return iter(loader)


def order(count: int, epoch: int, seed: int) -> Int[np.ndarray, " N"]:
    """Return the random order of an epoch."""
    return np.random.default_rng([seed, epoch, count]).permutation(count)


@dataclass(frozen=True)
class _Batches:
    """The (row, position) pairs of each batch."""

    count: int
    seed: int
    start: int
    steps: int
    size: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, rows = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            batch = []
            for position in range(step * self.size, (step + 1) * self.size):
                if position // self.count != epoch:
                    epoch = position // self.count
                    rows = order(self.count, epoch, self.seed)
                batch.append((int(rows[position % self.count]), position))
            yield batch

    def __len__(self) -> int:
        return self.steps - self.start


def _collate(parts: list[tuple[int, Tensor | None]]) -> Batch:
    kept = [(row, pixels) for row, pixels in parts if pixels is not None]
    pixels = torch.stack([pixels for _, pixels in kept]) if kept else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return Batch(pixels, np.array([row for row, _ in kept], dtype=np.int64), tuple(r for r, p in parts if p is None))
