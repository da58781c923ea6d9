"""Features of images too large for attention, such as pathology slides and satellite scenes.

The image is cut into overlapping windows, the windows run in batches, and their maps are blended into one.

Axes: `D` width, `h w` patch grid of the whole image, `n` windows along an axis, `N` patches along it, `H W` pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitbackbone.contract import Backbone, Features, Geometry, device_of, evaluating, pool_mean
from vitbackbone.images import ImageTransform, Resolution, sides

Pixels = Tensor | NDArray[Any]


@dataclass(frozen=True)
class _Window:
    """A part of the image: its row and column among the windows, and its place and size in pixels."""

    row: int
    column: int
    top: int
    left: int
    size: tuple[int, int]  # (H, W)


def tile(
    backbone: Backbone, image: Pixels, size: Resolution, overlap: int, batch_size: int = 8, layer: int = -1
) -> Features:
    """Return the features of one image of any size, computed in overlapping windows.

    Where windows overlap, the weight of each falls linearly towards its ends, and the weights of a patch sum to 1. A
    patch in only one window keeps that window's features. Memory holds one batch of windows and the result, which is a
    float32 map on the CPU. `pooled` is the mean of the patches. The result has no CLS token and no registers, because
    each window has its own.

    `image`: uint8 pixels of a photo (H, W, 3), which are not resized, or floats (3, H, W), normalised as
    `backbone.preprocess` does. Either is a tensor or an array. A `numpy.memmap` stays on disk.
    `size`: side or (H, W) of the windows in pixels. A smaller image is one window.
    `overlap`: pixels that neighbouring windows share. The last window of a row or column may share more, because it
    ends at the border of the image.
    `layer`: layer index; negative ones count from the end. The final norm is applied if it exists and fits the layer.

    Raises `ValueError` if the image has another form, or if the backbone's stride does not divide `size` and `overlap`.
    """
    spec = backbone.spec
    (layer,) = spec.indices([layer])
    window_size = sides(size, "size")
    _check(image, window_size, overlap, batch_size, spec.stride)
    height, width = _extent(image)
    tops, lefts = (
        _starts(length, side, overlap, spec.stride) for length, side in zip((height, width), window_size, strict=True)
    )
    stride = spec.strides[layer]
    geometry = Geometry(((height, width),), stride)
    by_row, by_column = (
        _shares(starts, side // stride, patches, stride)
        for starts, side, patches in zip((tops, lefts), window_size, geometry.grid, strict=True)
    )
    windows = [
        _Window(row, column, top, left, (min(window_size[0], height - top), min(window_size[1], width - left)))
        for row, top in enumerate(tops)
        for column, left in enumerate(lefts)
    ]
    whole = torch.zeros(1, spec.dims[layer], *geometry.grid)
    with evaluating(backbone):
        for batch in _batches(windows, batch_size):
            images = torch.stack([_read(image, window, backbone.preprocess) for window in batch])
            images = images.to(device_of(backbone) or images.device)
            (features,) = backbone.forward_layers(images, [layer], norm=spec.norms([layer]))
            h, w = features.grid
            for window, patches in zip(batch, features.patches.float().cpu(), strict=True):
                y, x = window.top // stride, window.left // stride
                share = by_row[window.row, y : y + h, None] * by_column[window.column, x : x + w]
                whole[0, :, y : y + h, x : x + w] += share * patches
    return Features(None, whole.new_zeros(1, 0, whole.shape[1]), whole, geometry, pool_mean)


def _starts(length: int, side: int, overlap: int, multiple: int) -> list[int]:
    """Return the first pixel of each window along an axis. The last window ends with the image's last patch."""
    last = max(-(-length // multiple) * multiple - side, 0)
    return [*range(0, last, side - overlap), last]


def _shares(starts: Sequence[int], side: int, patches: int, stride: int) -> Float[Tensor, "n N"]:
    """Return the weight of each window in each patch along an axis.

    A weight is proportional to the patch's distance from the nearer end of the window. The weights of a patch sum to 1.
    """
    places, first = torch.arange(patches), torch.tensor(starts)[:, None] // stride
    depth = torch.minimum(places - first + 1, first + side - places).clamp(min=0)
    return depth / depth.sum(dim=0)


def _batches(windows: Sequence[_Window], batch_size: int) -> Iterator[list[_Window]]:
    """Yield batches of windows of one size. Windows at the right and bottom are smaller if the image ends in them."""
    for _, same in groupby(sorted(windows, key=lambda window: window.size), key=lambda window: window.size):
        alike = list(same)
        yield from (alike[start : start + batch_size] for start in range(0, len(alike), batch_size))


def _read(image: Pixels, window: _Window, preprocess: ImageTransform) -> Float[Tensor, "C H W"]:
    """Return the normalised pixels of a window."""
    rows, columns = (
        slice(start, start + side) for start, side in zip((window.top, window.left), window.size, strict=True)
    )
    if not _is_photo(image):
        pixels = image[:, rows, columns]
        return pixels if isinstance(pixels, Tensor) else torch.tensor(np.asarray(pixels))
    photo = image[rows, columns]
    rgb = photo.cpu().numpy() if isinstance(photo, Tensor) else np.asarray(photo)
    return preprocess(Image.fromarray(rgb), window.size, keep_aspect=True)  # at its own size, so nothing is resized


def _is_photo(image: Pixels) -> bool:
    return image.dtype == (torch.uint8 if isinstance(image, Tensor) else np.uint8)


def _extent(image: Pixels) -> tuple[int, int]:
    """Return (H, W) of an image in either form."""
    height, width = image.shape[:2] if _is_photo(image) else image.shape[1:]
    return int(height), int(width)


def _check(image: Pixels, window_size: tuple[int, int], overlap: int, batch_size: int, stride: int) -> None:
    wanted = "want a tensor or an array, uint8 (H, W, 3) of pixels or float (3, H, W), normalised"
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}; {wanted}")
    floats = image.is_floating_point() if isinstance(image, Tensor) else np.issubdtype(image.dtype, np.floating)
    fits = image.ndim == 3 and (image.shape[2] == 3 if _is_photo(image) else bool(floats))
    if not fits or 0 in image.shape:
        raise ValueError(f"image is {image.dtype} of shape {tuple(image.shape)}; {wanted}")
    if min(window_size) < stride or any(side % stride for side in window_size):
        raise ValueError(f"size={window_size}; want multiples of the backbone's stride, {stride}")
    if not 0 <= overlap < min(window_size) or overlap % stride:
        raise ValueError(
            f"overlap={overlap}; want a multiple of {stride} from 0 to less than the window, {window_size}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
