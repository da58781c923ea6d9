"""Features of images beyond what attention can take, such as slides of pathology and scenes from satellites: windows
that overlap, run one batch after another, and their maps faded into one.

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
from torch import Tensor, nn

from vitbackbone.contract import Backbone, Features, Geometry, evaluating, pool_mean
from vitbackbone.images import ImageTransform, Resolution

Pixels = Tensor | NDArray[Any]


@dataclass(frozen=True)
class _Window:
    """A part of the image, in pixels, and its place in the rows and columns of windows."""

    row: int
    column: int
    top: int
    left: int
    size: tuple[int, int]  # (H, W)


def tile(
    backbone: Backbone, image: Pixels, size: Resolution, overlap: int, batch_size: int = 8, layer: int = -1
) -> Features:
    """The features of one image of any size, from windows that overlap.

    Where windows overlap, each fades out linearly towards its ends; a patch that one window alone shows is what the
    backbone makes of that window. Only the windows of a batch are read and run at a time: beside them, memory holds the
    map that is returned, float32 on the CPU, of one image. Its `pooled` is the mean of the patches, and there is no CLS
    token and there are no registers, as each window has its own.

    `image`: uint8 (H, W, 3), the pixels of a photo, which are not resized; or (3, H, W), float, normalised as
    `backbone.preprocess` does. A tensor or an array; a `numpy.memmap` stays on disk.
    `size`: of the windows in pixels, a side or (H, W). An image that is smaller is one window.
    `overlap`: of neighbours in pixels; more where the last window would stand out of the image.
    `layer`: index of a block, negative from the end; the final norm is applied where the checkpoint has one.

    Raises `ValueError` on another image, and on a size and an overlap that are no multiples of the backbone's stride.
    """
    spec = backbone.spec
    (layer,) = spec.indices([layer])
    sides = (size, size) if isinstance(size, int) else size
    _check(image, sides, overlap, batch_size, spec.stride)
    height, width = _extent(image)
    tops, lefts = (
        _starts(length, side, overlap, spec.stride) for length, side in zip((height, width), sides, strict=True)
    )
    stride = spec.strides[layer]
    geometry = Geometry(((height, width),), stride)
    by_row, by_column = (
        _shares(starts, side // stride, patches, stride)
        for starts, side, patches in zip((tops, lefts), sides, geometry.grid, strict=True)
    )
    windows = [
        _Window(row, column, top, left, (min(sides[0], height - top), min(sides[1], width - left)))
        for row, top in enumerate(tops)
        for column, left in enumerate(lefts)
    ]
    parameter = next(backbone.parameters(), None) if isinstance(backbone, nn.Module) else None
    whole = torch.zeros(1, spec.dims[layer], *geometry.grid)
    with evaluating(backbone):
        for batch in _batches(windows, batch_size):
            images = torch.stack([_read(image, window, backbone.preprocess) for window in batch])
            images = images if parameter is None else images.to(parameter.device)
            (features,) = backbone.forward_layers(images, [layer], norm=spec.norms([layer]))
            h, w = features.grid
            for window, patches in zip(batch, features.patches.float().cpu(), strict=True):
                y, x = window.top // stride, window.left // stride
                share = by_row[window.row, y : y + h, None] * by_column[window.column, x : x + w]
                whole[0, :, y : y + h, x : x + w] += share * patches
    return Features(None, whole.new_zeros(1, 0, whole.shape[1]), whole, geometry, pool_mean)


def _starts(length: int, side: int, overlap: int, multiple: int) -> list[int]:
    """The first pixel of each window along an axis. The last one ends where the image does, padded to whole patches."""
    last = max(-(-length // multiple) * multiple - side, 0)
    return [*range(0, last, side - overlap), last]


def _shares(starts: Sequence[int], side: int, patches: int, stride: int) -> Float[Tensor, "n N"]:
    """How much of each patch along an axis comes from each window, by how far it is from the nearer end of the window.
    What comes from all is 1."""
    places, first = torch.arange(patches), torch.tensor(starts)[:, None] // stride
    depth = torch.minimum(places - first + 1, first + side - places).clamp(min=0)
    return depth / depth.sum(dim=0)


def _batches(windows: Sequence[_Window], batch_size: int) -> Iterator[list[_Window]]:
    """Those of one size together: at the right and bottom, where the stride does not divide the image, they are
    smaller."""
    for _, same in groupby(sorted(windows, key=lambda window: window.size), key=lambda window: window.size):
        alike = list(same)
        yield from (alike[start : start + batch_size] for start in range(0, len(alike), batch_size))


def _read(image: Pixels, window: _Window, preprocess: ImageTransform) -> Float[Tensor, "C H W"]:
    """A window as the backbone takes it."""
    rows, columns = (
        slice(start, start + side) for start, side in zip((window.top, window.left), window.size, strict=True)
    )
    if not _is_photo(image):
        pixels = image[:, rows, columns]
        return pixels if isinstance(pixels, Tensor) else torch.tensor(np.asarray(pixels))
    photo = image[rows, columns]
    rgb = photo.cpu().numpy() if isinstance(photo, Tensor) else np.asarray(photo)
    return preprocess(Image.fromarray(rgb), window.size, keep_aspect=True)  # at the size it has: nothing is resized


def _is_photo(image: Pixels) -> bool:
    return image.dtype == (torch.uint8 if isinstance(image, Tensor) else np.uint8)


def _extent(image: Pixels) -> tuple[int, int]:
    """(H, W)"""
    height, width = image.shape[:2] if _is_photo(image) else image.shape[1:]
    return int(height), int(width)


def _check(image: Pixels, sides: tuple[int, int], overlap: int, batch_size: int, stride: int) -> None:
    wanted = "want a tensor or an array, uint8 (H, W, 3) of pixels or float (3, H, W), normalised"
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}; {wanted}")
    floats = image.is_floating_point() if isinstance(image, Tensor) else np.issubdtype(image.dtype, np.floating)
    fits = image.ndim == 3 and (image.shape[2] == 3 if _is_photo(image) else bool(floats))
    if not fits or 0 in image.shape:
        raise ValueError(f"image is {image.dtype} of shape {tuple(image.shape)}; {wanted}")
    if min(sides) < stride or any(side % stride for side in sides):
        raise ValueError(f"size={sides}; want multiples of the backbone's stride, {stride}")
    if not 0 <= overlap < min(sides) or overlap % stride:
        raise ValueError(f"overlap={overlap}; want a multiple of {stride} from 0 to less than the windows, {sides}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
