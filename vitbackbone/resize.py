"""Resize and crop in one, of pixels in 8 bits: Pillow's numbers, and torch's kernels where those are faster."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resized_crop(
    rgb: UInt8[Tensor, "3 h w"],
    resized: tuple[int, int],
    offset: tuple[int, int],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> UInt8[Tensor, "3 H W"]:
    """`rgb` resized to `resized`, of which the crop of `size` at `offset` (top, left) is kept."""
    top, left = offset
    image = Image.fromarray(np.ascontiguousarray(rgb.permute(1, 2, 0).numpy()))
    if image.size != (resized[1], resized[0]):
        image = image.resize((resized[1], resized[0]), FILTERS[interpolation])
    crop = image.crop((left, top, left + size[1], top + size[0]))
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)
