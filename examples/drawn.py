"""Pictures to learn from without a download: handwritten digits on pieces of two photos, all from scikit-learn.

The digit, the pixels of its ink and its centre are known exactly.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from vitbackbone import Preprocess

SIZE = 48  # pixels a side of a picture


@dataclass(frozen=True)
class Batch:
    """Pictures and their exact labels."""

    images: Tensor  # (B, 3, 48, 48), normalised
    digits: Tensor  # (B,), 0 to 9
    ink: Tensor  # (B, 48, 48), 1 where there is ink
    middles: Tensor  # (B, 2), (x, y) of the digit's middle, from 0 to 1


class Pictures:
    """A source of batches, one for every step. The last 500 digits, by other writers, are only for testing."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self.digits, self.labels = load_digits(return_X_y=True)
        self.photos: list[NDArray[np.uint8]] = load_sample_images().images

    def draw(self, step: int, count: int = 32, test: bool = False) -> Batch:
        """Draw the batch of a step, which is always the same."""
        rng = np.random.default_rng([step, test])
        drawn = [self._one(rng, test) for _ in range(count)]
        images = torch.stack([self.preprocess(Image.fromarray(picture), SIZE) for picture, *_ in drawn])
        digits, ink, middles = ([known[i] for known in drawn] for i in (1, 2, 3))
        return Batch(images, torch.tensor(digits), torch.from_numpy(np.stack(ink)), torch.tensor(middles))

    def _one(
        self, rng: np.random.Generator, test: bool
    ) -> tuple[NDArray[np.uint8], int, NDArray[np.int64], tuple[float, float]]:
        known = len(self.digits) - 500
        index = int(rng.integers(known, len(self.digits)) if test else rng.integers(known))
        side = int(rng.integers(28, 45))
        top, left = rng.integers(0, SIZE - side, 2)
        photo = self.photos[int(rng.integers(2))]
        y, x = (int(rng.integers(0, length - SIZE)) for length in photo.shape[:2])
        digit = Image.fromarray(np.uint8(self.digits[index].reshape(8, 8) * 15.9)).resize((side, side))
        ink = np.zeros((SIZE, SIZE), np.int64)
        ink[top : top + side, left : left + side] = np.asarray(digit) > 110
        picture = photo[y : y + SIZE, x : x + SIZE].copy()
        picture[ink == 1] = 255 * rng.integers(2)  # white or black
        return picture, int(self.labels[index]), ink, ((left + side / 2) / SIZE, (top + side / 2) / SIZE)
