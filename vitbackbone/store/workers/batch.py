"""Embed a batch of images in the process of another engine, such as Ray Data, Daft or Spark."""

import logging
import os
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from vitbackbone.checkpoints import load_backbone
from vitbackbone.contract import Backbone, BackboneModule, device_of, evaluating
from vitbackbone.images import ImageError, ImageSource, prepare_images

log = logging.getLogger("vitbackbone")

FEATURES = ("cls", "pooled", "patches")


def embed_batch(
    images: Sequence[ImageSource | None] | NDArray[np.uint8],
    model: str | Backbone = "nano",
    *,
    features: str = "cls",
    device: str = "cpu",
    errors: str = "raise",
    max_pixels: int | None = None,
) -> Float[np.ndarray, "n ..."]:
    """Return the features of a batch of images as float32: `cls` and `pooled` (n, D), `patches` (n, D, h, w).

    A process loads a model once and keeps it, so that an engine may call this for each of its batches. For the same
    images, the result equals `extract` to 1e-5 for every batch size.

    `images`: the bytes of image files, arrays (H, W, 3) of bytes, or anything that `Preprocess` takes.
    `model`: a name as for `load_backbone`, or a backbone, which stays where it is.
    `features`: "pooled" is the checkpoint's own pooling. `device`: where a model that is given by name computes.
    `errors`: "nan" gives an image that cannot be read, or is None, a row of NaN and logs why; "raise" raises.
    `max_pixels`: the most pixels of an image; `PIL.Image.MAX_IMAGE_PIXELS` by default.

    Raises `ImageError` that names the image, and `ValueError` if the model has no such features.
    """
    if errors not in ("raise", "nan"):
        raise ValueError(f"errors={errors!r}; want 'raise' or 'nan'")
    backbone = _loaded(model, device, os.getpid()) if isinstance(model, str) else model
    if features == "cls" and not backbone.spec.has_cls:
        raise ValueError(f"{backbone.spec.name} has no CLS token; ask for features='pooled'")
    if features not in FEATURES:
        raise ValueError(f"features={features!r}; want 'cls', 'pooled' or 'patches'")
    good: list[int] = []
    pixels: list[torch.Tensor] = []
    for i, image in enumerate(images):
        try:
            if image is None:
                raise ImageError(f"image {i} is None")
            pixels += prepare_images(backbone.preprocess, [image], None, False, max_pixels, first=i)
            good.append(i)
        except ImageError as error:
            if errors == "raise":
                raise
            log.warning("%s", error)
    return _scattered(_forward(backbone, pixels, features), good, len(images))


def _forward(backbone: Backbone, pixels: list[torch.Tensor], features: str) -> Float[np.ndarray, "m ..."]:
    """Return the features of preprocessed images (C, H, W). Without images, return an array of the same kind without
    rows."""
    shape = (1, len(getattr(backbone.preprocess, "mean", "rgb")), *backbone.preprocess.image_size)
    batch = torch.stack(pixels) if pixels else torch.zeros(shape)
    device = device_of(backbone) if isinstance(backbone, BackboneModule) else None
    with torch.inference_mode(), evaluating(backbone):
        found = getattr(backbone(batch.to(device or "cpu")), features)
    return found.float().cpu().numpy()[: len(pixels)]


def _scattered(rows: Float[np.ndarray, "m ..."], good: list[int], count: int) -> Float[np.ndarray, "n ..."]:
    """Return the rows at their places among `count`, and NaN elsewhere."""
    found = np.full((count, *rows.shape[1:]), np.nan, dtype=np.float32)
    found[good] = rows
    return found


@lru_cache(2)
def _loaded(model: str, device: str, process: int) -> BackboneModule:
    """Load a model once in a process. `process`: its id, because a forked one must not use its parent's GPU."""
    return load_backbone(model, device=device)
