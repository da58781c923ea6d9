"""Image file to normalised tensor, as one checkpoint wants it, and the way back from its pixels to the photo's."""

import math
import struct
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

ImageSource = str | PathLike[str] | Image.Image
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Resolution = int | tuple[int, int]  # side of a square, or (H, W)

# What Pillow raises on damaged files: it has no one error type. 78,000 damaged files raised all of the first five.
DECODE_ERRORS = (
    OSError,  # truncated data; UnidentifiedImageError is one
    ValueError,
    SyntaxError,
    TypeError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    EOFError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
)

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class View:
    """How an input of the network was cut from its photo: resized to `resized`, then cropped at `offset` to `size`.

    All sizes are (H, W); coordinates are continuous pixels, (0, 0) the top-left corner of the image.
    """

    source: tuple[int, int]  # the photo, upright
    resized: tuple[int, int]
    offset: tuple[int, int]  # (top, left) of the crop in the resized photo
    size: tuple[int, int]  # what the network is given

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """(x, y) of the photo for a point of the network's input."""
        return (
            (x + self.offset[1]) * self.source[1] / self.resized[1],
            (y + self.offset[0]) * self.source[0] / self.resized[0],
        )

    def from_source(self, x: float, y: float) -> tuple[float, float]:
        """(x, y) of the network's input for a point of the photo; outside of [0, W) x [0, H) if it was cropped away."""
        return (
            x * self.resized[1] / self.source[1] - self.offset[1],
            y * self.resized[0] / self.source[0] - self.offset[0],
        )


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform of a checkpoint: upright RGB, resize, crop, scale to [0, 1], normalise.

    With Pillow underneath, the result equals that of timm's `create_transform(is_training=False)` for the same
    settings (timm/data/transforms_factory.py).

    `crop_mode`: the photo is resized to `image_size / crop_pct` and its centre cropped; `"center"` keeps the aspect
    and lets the longer side stand out, `"squash"` ignores it.
    """

    image_size: tuple[int, int] = (224, 224)  # (H, W)
    crop_pct: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_rounding: Literal["even", "down"] = "even"  # of half a pixel: as timm and torchvision do, or transformers

    def __post_init__(self) -> None:
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"Preprocess: crop_pct must be in (0, 1], got {self.crop_pct}")
        if self.interpolation not in FILTERS or self.crop_mode not in ("center", "squash"):
            raise ValueError(f"Preprocess: unknown interpolation or crop_mode: {self.interpolation}, {self.crop_mode}")

    def __call__(
        self, image: ImageSource, resolution: Resolution | None = None, keep_aspect: bool = False
    ) -> Float[Tensor, "3 H W"]:
        """A path or a PIL image to a float32 tensor (3, H, W).

        `resolution`: replaces the checkpoint's own input size, in pixels.
        `keep_aspect`: the whole photo stays, nothing is cropped: its shorter side becomes the resolution, or with
        (H, W) it is made just large enough to cover that.
        Raises `OSError` (a `PIL.UnidentifiedImageError` among them) or `ValueError` on what cannot be read.
        """
        rgb = load_image(image)
        view = self.view((rgb.height, rgb.width), resolution, keep_aspect)
        top, left = view.offset
        if view.resized != view.source:
            rgb = rgb.resize((view.resized[1], view.resized[0]), FILTERS[self.interpolation])
        rgb = rgb.crop((left, top, left + view.size[1], top + view.size[0]))
        pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float() / 255  # (3, H, W)
        return (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    def view(self, source: tuple[int, int], resolution: Resolution | None = None, keep_aspect: bool = False) -> View:
        """What `__call__` cuts out of a photo of (H, W) pixels, for `Geometry.through`."""
        if resolution is None:
            size = self.image_size
        else:
            size = (resolution, resolution) if isinstance(resolution, int) else resolution
        if min(size) < 1:
            raise ValueError(f"resolution must be at least 1 pixel, got {resolution}")
        if keep_aspect:
            resized = _cover(source, size)
            return View(source, resized, (0, 0), resized)
        resized = self.scaled(size) if self.crop_mode == "squash" else _cover(source, self.scaled(size))
        top, left = (resized[0] - size[0]) / 2, (resized[1] - size[1]) / 2
        down = self.crop_rounding == "down"
        offset = (math.floor(top), math.floor(left)) if down else (round(top), round(left))
        return View(source, resized, offset, size)

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """What (H, W) is cropped from: that divided by `crop_pct`, whose own rounding must not cost a pixel."""
        return math.floor(size[0] / self.crop_pct + 1e-6), math.floor(size[1] / self.crop_pct + 1e-6)


def load_image(image: ImageSource) -> Image.Image:
    """An upright RGB image of the first frame.

    The EXIF orientation is applied. By mode: grey and palette images are expanded; alpha (LA, PA, RGBA, transparent
    palettes) is dropped and the stored colour kept, as timm, torchvision and transformers do; CMYK is converted
    without a colour profile; 16-bit grey (I;16, I) is scaled to 8 bits, not clipped. Float images (F) and 32-bit ones
    beyond 16 bits have no agreed range and raise `ValueError`.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(_upright(image))
    if not isinstance(image, str | PathLike):
        raise ValueError(f"image is a {type(image).__name__}; want a path or a PIL image")
    with _open(Path(image)) as opened:
        return _to_rgb(_upright(opened))


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError:
        raise
    except DECODE_ERRORS as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Decoded, with the EXIF orientation applied. Pillow's errors come out as `OSError` or `ValueError`."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, ValueError):
        raise
    except DECODE_ERRORS as error:
        raise ValueError(f"the image is damaged: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("a float image (mode F) has no agreed range; scale it to 8 or 16 bits first")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"a 32-bit image with values from {values.min()} to {values.max()}; scale it to 16 bits")
        image = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


def _cover(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The size with the aspect of `source` that just covers `target`, rounded as torchvision's Resize (a square
    target) and timm's ResizeKeepRatio (another) do."""
    if target[0] == target[1]:
        short, long = min(source), max(source)
        scaled = int(target[0] * long / short)
        return (target[0], scaled) if source[0] <= source[1] else (scaled, target[0])
    ratio = min(source[0] / target[0], source[1] / target[1])
    return round(source[0] / ratio), round(source[1] / ratio)
