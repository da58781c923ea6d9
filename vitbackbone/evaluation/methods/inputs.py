"""Photos as the protocols show them: resized by their own rules, normalised by the checkpoint's numbers.

Axes: `C` colours, `H W` pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import BackboneModule, BackboneSpec, Features, device_of

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
FILTERS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
Rounding = Literal["down", "nearest"]  # of the longer side


def short_side(size: tuple[int, int], short: int, rounding: Rounding = "down") -> tuple[int, int]:
    """Return (height, width) with the shorter side `short`, and the aspect kept up to whole pixels.

    torchvision's `Resize` rounds the longer side down, and mmsegmentation's rounds it to the nearest pixel.
    """
    height, width = size
    half = 0.5 if rounding == "nearest" else 0.0
    if height > width:
        return int(short * height / width + half), short
    return short, int(short * width / height + half)


def long_side(size: tuple[int, int], long: int) -> tuple[int, int]:
    """Return (height, width) with the longer side `long`, and the shorter rounded down, at least 1."""
    height, width = size
    scale = long / max(height, width)
    return (long, max(int(width * scale), 1)) if height >= width else (max(int(height * scale), 1), long)


def size_of(photo: Image.Image) -> tuple[int, int]:
    """Return (height, width) of a photo."""
    return photo.height, photo.width


def resize(photo: Image.Image, size: tuple[int, int], filter_: Filter) -> Image.Image:
    """Resize a photo to (height, width) with Pillow's filters, which do not alias."""
    return photo if size_of(photo) == size else photo.resize((size[1], size[0]), FILTERS[filter_])


def resize_aliased(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a photo bilinearly from the four nearest pixels, as OpenCV does by default.

    OpenCV computes with 11 bits, so a pixel may differ from its own by 1 of 255.
    """
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, size, mode="bilinear", align_corners=False)[0].round().byte()
    return Image.fromarray(np.ascontiguousarray(resized.permute(1, 2, 0).numpy()))


def centre_crop(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the centre of a photo, with a black border where the photo is smaller, as torchvision's `CenterCrop`."""
    top, left = (
        -((want - have) // 2) if have < want else round((have - want) / 2)
        for have, want in zip(size_of(photo), size, strict=True)
    )
    return photo.crop((left, top, left + size[1], top + size[0]))  # Pillow fills with black


def whole_patches(photo: Image.Image, stride: int) -> Image.Image:
    """Cut the right and the bottom off, so that both sides are multiples of the stride, at least one patch."""
    height, width = (max(side // stride, 1) * stride for side in size_of(photo))
    return photo.crop((0, 0, width, height))


def pixels_of(photo: Image.Image) -> Shaped[Tensor, "3 H W"]:
    """Return the bytes of a photo as a tensor."""
    return torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1).contiguous()


def normalised(
    photo: Image.Image, backbone: BackboneModule, std: Sequence[float] | None = None
) -> Float[Tensor, "3 H W"]:
    """Return a photo normalised by the checkpoint's mean and deviation. `std` replaces ImageNet's deviation."""
    preprocess: Any = backbone.preprocess
    own = getattr(preprocess, "std", None)
    if std is not None and own == (0.229, 0.224, 0.225):
        preprocess = replace(preprocess, std=tuple(std))
    return preprocess.normalise(pixels_of(photo))


def centre_pad(images: Float[Tensor, "B C H W"], stride: int) -> Float[Tensor, "B C h w"]:
    """Pad with zeros to whole patches, equally on both sides. An odd row or column goes to the bottom or the right.

    (facebookresearch/dinov2, eval/depth/models/backbones, `CenterPadding`)
    """
    (top, bottom), (left, right) = (_halves(-side % stride) for side in images.shape[-2:])
    return F.pad(images, (left, right, top, bottom))


def _halves(pad: int) -> tuple[int, int]:
    return pad // 2, pad - pad // 2


def features_of(
    backbone: BackboneModule, images: Float[Tensor, "B C H W"], layers: Sequence[int], norm: bool
) -> tuple[Features, ...]:
    """Return features of layers, on the backbone's device. Call it in inference mode, unless a head is trained."""
    device = device_of(backbone) or torch.device("cpu")
    return backbone.forward_layers(images.to(device), layers, norm)


def last(backbone: BackboneModule, images: Float[Tensor, "B C H W"]) -> Features:
    """Return the features of the last layer, normed if the backbone has a final norm."""
    return features_of(backbone, images, [-1], backbone.spec.has_norm)[0]


def stand_in(spec: BackboneSpec, norm: bool, cls: bool) -> list[str]:
    """Return a sentence for each part that a protocol wants and the backbone lacks: the final norm, the CLS token."""
    found = []
    if norm and not spec.has_norm:
        found.append("the backbone has no final norm, so its layers are read as they are")
    if cls and not spec.has_cls:
        found.append("the backbone has no CLS token; its own pooling stands in for it, and no head joins it to patches")
    return found


def vectors(features: Features) -> Float[Tensor, "B D"]:
    """Return the CLS token of each image, or the checkpoint's own pooling if it has none."""
    return features.cls if features.cls is not None else features.pooled
