"""Photos encoded in every format that is read, and the difference of two pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitbackbone import Preprocess

Image.init()
SAVED = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
    "PPM": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG2000": {},
}
EXTRA = {"HEIF": ("pillow_heif", {"quality": -1, "chroma": 444}), "JXL": ("pillow_jxl", {"lossless": True})}
PREPROCESS = Preprocess((32, 32), 0.9)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    if kind in EXTRA:
        module = pytest.importorskip(EXTRA[kind][0])
        if kind == "HEIF":
            module.register_heif_opener()
        options = {**EXTRA[kind][1], **options}
    file = io.BytesIO()
    image.save(file, kind, **{**SAVED.get(kind, {}), **options})
    return file.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def apart(one: Tensor, other: Tensor) -> int:
    """Return the largest difference of two pictures, in levels of 255."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype == torch.uint8
    return int((one.int() - other.int()).abs().max())
