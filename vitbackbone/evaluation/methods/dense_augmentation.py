"""Random views of photos with a class or a depth for every pixel, as the authors train their heads.

Every random number comes from a generator that is handed in, so that a resumed training sees the same views.

Axes: `H W` pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TVF

from vitbackbone.evaluation.methods.inputs import pixels_of, resize, short_side, size_of

Generator = np.random.Generator


@dataclass(frozen=True)
class Colours:
    """The ranges of photometric distortion, each of which is applied with probability 1/2."""

    brightness: float  # largest amount that is added or subtracted, in levels of 255
    contrast: tuple[float, ...]  # least and most factor
    saturation: tuple[float, ...]
    hue: float  # largest turn around the colour circle, as a share of it


def distort(pixels: UInt8[Tensor, "3 H W"], colours: Colours, rng: Generator) -> UInt8[Tensor, "3 H W"]:
    """Change brightness, then contrast, saturation and hue, or saturation, hue and contrast.

    (facebookresearch/dinov3, eval/segmentation/transforms.py, `PhotoMetricDistortion`)
    """
    if rng.integers(2):
        pixels = _levels(pixels.float() + rng.uniform(-colours.brightness, colours.brightness))
    first = bool(rng.integers(2))
    if first:
        pixels = _contrast(pixels, colours, rng)
    if rng.integers(2):
        pixels = TVF.adjust_saturation(pixels, _draw(colours.saturation, rng))
    if rng.integers(2):
        pixels = TVF.adjust_hue(pixels, float(rng.uniform(-colours.hue, colours.hue)))
    return pixels if first else _contrast(pixels, colours, rng)


def _contrast(pixels: UInt8[Tensor, "3 H W"], colours: Colours, rng: Generator) -> UInt8[Tensor, "3 H W"]:
    return _levels(pixels.float() * _draw(colours.contrast, rng)) if rng.integers(2) else pixels


def _draw(bounds: tuple[float, ...], rng: Generator) -> float:
    """Return a number between the least and the most."""
    least, most = bounds
    return float(rng.uniform(least, most))


def _levels(values: Float[Tensor, "3 H W"]) -> UInt8[Tensor, "3 H W"]:
    return values.clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Crops:
    """The scaling and cropping of a photo for segmentation."""

    short: int  # side of the shorter side, before the random scale
    scales: tuple[float, ...]  # least and most scale
    size: int  # side of the crop
    most: float  # share of the known pixels that one class may have
    tries: int  # crops that are drawn until no class has more
    flip: float  # probability of a mirror image


def random_crop(
    photo: Image.Image, labels: UInt8[np.ndarray, "H W"], crops: Crops, ignored: int, rng: Generator
) -> tuple[UInt8[Tensor, "3 h w"], UInt8[Tensor, "h w"]]:
    """Return a random crop of a randomly scaled photo and its labels. It is smaller if the photo is.

    (mmsegmentation, `Resize`, `RandomCrop` with `cat_max_ratio`, `RandomFlip`)
    """
    size = short_side(size_of(photo), max(int(crops.short * _draw(crops.scales, rng)), 1), "nearest")
    pixels = pixels_of(resize(photo, size, "bilinear"))
    scaled = np.asarray(resize(Image.fromarray(labels), size, "nearest"))
    top, left = _corner(size, crops.size, rng)
    for _ in range(crops.tries):
        part = scaled[top : top + crops.size, left : left + crops.size]
        counts = np.bincount(part[part != ignored].ravel())
        if (counts > 0).sum() > 1 and counts.max() / counts.sum() < crops.most:
            break
        top, left = _corner(size, crops.size, rng)
    inside = np.s_[..., top : top + crops.size, left : left + crops.size]
    pixels, target = pixels[inside], torch.from_numpy(scaled[inside].copy())
    return (pixels.flip(2), target.flip(1)) if rng.random() < crops.flip else (pixels, target)


def _corner(size: tuple[int, int], side: int, rng: Generator) -> tuple[int, int]:
    top, left = (int(rng.integers(max(have - side, 0) + 1)) for have in size)
    return top, left


@dataclass(frozen=True)
class DepthViews:
    """The turns, crops and colours of a photo with depth."""

    rotation: float  # largest angle in degrees; the probability of a turn is 1/2
    flip: float
    size: tuple[int, ...]  # (H, W) of the crop
    gamma: tuple[float, ...]
    brightness: tuple[float, ...]
    colour: tuple[float, ...]


def random_depth_view(
    pixels: UInt8[Tensor, "3 H W"], depth: Float[Tensor, "H W"], views: DepthViews, rng: Generator
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "h w"]]:
    """Return a random view of a photo, with levels in [0, 1], and its depth.

    Turned corners are black, of unknown depth (facebookresearch/dinov3, eval/depth/transforms.py)
    """
    photo, target = pixels.float() / 255, depth[None]
    if rng.random() < 0.5:
        angle = float(rng.uniform(-views.rotation, views.rotation))
        photo = TVF.rotate(photo, angle, interpolation=InterpolationMode.BILINEAR)
        target = TVF.rotate(target, angle, interpolation=InterpolationMode.NEAREST)
    if rng.random() < views.flip:
        photo, target = photo.flip(2), target.flip(2)
    height, width = (min(have, want) for have, want in zip(photo.shape[1:], views.size, strict=True))
    top = int(rng.integers(photo.shape[1] - height + 1))
    left = int(rng.integers(photo.shape[2] - width + 1))
    photo, target = (each[:, top : top + height, left : left + width] for each in (photo, target))
    if rng.random() < 0.5:
        levels = (photo * 255) ** _draw(views.gamma, rng) * _draw(views.brightness, rng)
        factors = torch.tensor([_draw(views.colour, rng) for _ in range(3)])
        photo = (levels * factors[:, None, None]).clamp(0, 255) / 255
    return photo, target[0]
