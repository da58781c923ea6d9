"""UPerNet (Xiao et al. 2018, "Unified perceptual parsing for scene understanding") on a Vision Transformer.

    four maps -> pyramid of 4x, 2x, 1x, 0.5x -> pooled context on the coarsest -> top-down sums -> all side by side

Axes: `B` batch, `D` width, `C` channels, `K` classes, `h w` patch grid.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Needs
from heads.options import Count, Layers
from heads.parallel import BatchNorm2d, is_together, tie
from heads.segmentation import Segmenter
from vitbackbone import BackboneSpec, Features

SCALES = ((4, 1), (2, 1), (1, 1), (1, 2))  # sizes of the levels relative to the maps, as fractions
POOLED = (1, 2, 3, 6)  # sides of the grids that the coarsest map is pooled to
AUXILIARY_WEIGHT = 0.4


class UPerNet(Segmenter):
    """UPerNet as mmsegmentation puts it on a ViT (configs/_base_/models/upernet_vit-b16_ln_mln.py).

    It reads evenly spread blocks without the final norm, and a neck makes a pyramid of them. If the layers have
    different strides, as Swin's do, they form the pyramid already and there is no neck.

    The auxiliary head `auxiliary` helps training: it predicts the same classes from only the third map, as in
    mmsegmentation on MAE and Swin. `loss` adds its loss with weight 0.4, and `head.auxiliary(features)` runs it.
    Training needs batches of at least two images of one size, because batch norm sees a map pooled to one place.

    Raises `ValueError` unless `layers` are four, of one stride or each coarser than the one before.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: Count,
        layers: Layers = "even4",
        channels: Count = 512,
    ) -> None:
        super().__init__(spec, Needs(layers, norm=False, pooled=False), num_classes)
        widths = [spec.dims[layer] for layer in self.layers]
        strides = [spec.strides[layer] for layer in self.layers]
        rising = all(fine < coarse for fine, coarse in pairwise(strides))
        if len(strides) != 4 or not (rising or len(set(strides)) == 1):
            raise ValueError(
                f"UPerNet: layers {list(self.layers)} of {spec.name} have strides {strides}; "
                "want four layers of one stride, or each coarser than the one before"
            )
        self.neck = None if rising else Neck(widths)
        self.context = PooledContext(widths[-1], channels)
        self.laterals = nn.ModuleList(conv_norm(width, channels, 1) for width in widths[:-1])
        self.smooth = nn.ModuleList(conv_norm(channels, channels, 3) for _ in widths[:-1])
        self.fuse = conv_norm(4 * channels, channels, 3)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.auxiliary = FCN(spec, num_classes, self.layers[2])

    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        levels = self.neck([each.patches for each in features]) if self.neck else over_same_pixels(features)
        paths = [lateral(x) for lateral, x in zip(self.laterals, levels[:-1], strict=True)]
        paths.append(self.context(levels[-1]))
        for i in (2, 1, 0):
            paths[i] = paths[i] + _resized(paths[i + 1], paths[i])
        smooth = [conv(x) for conv, x in zip(self.smooth, paths[:-1], strict=True)]
        together = torch.cat([_resized(x, paths[0]) for x in (*smooth, paths[-1])], dim=1)
        maps = self.classifier(self.fuse(together))
        if self.neck is None:
            h, w = features[0].grid
            maps = maps[:, :, :h, :w]
        return maps

    def forward(self, *features: Features) -> Float[Tensor, "B K H W"]:
        return tie(super().forward(*features), self.auxiliary)

    def loss(self, targets: Tensor, *features: Features, ignore_index: int | None = None) -> Tensor:
        given = self.ignore_index if ignore_index is None else ignore_index
        # Before the call of `self`, because FSDP may free its parameters after that.
        auxiliary = self.auxiliary.loss(targets, features[2], ignore_index=given)
        return super().loss(targets, *features, ignore_index=given) + AUXILIARY_WEIGHT * auxiliary


class FCN(Segmenter):
    """A 3x3 convolution and a classifier on one map (Long et al. 2015)."""

    def __init__(self, spec: BackboneSpec, num_classes: Count, layer: int, channels: Count = 256) -> None:
        super().__init__(spec, Needs((layer,), norm=False, pooled=False), num_classes)
        self.conv = conv_norm(spec.dims[layer], channels, 3)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        return self.classifier(self.conv(features[0].patches))


class Neck(nn.Module):
    """A neck that makes a pyramid of maps of one stride (open-mmlab/mmsegmentation, models/necks/multilevel_neck.py).

    Each map goes through a 1x1 convolution, is resized, and goes through a 3x3 convolution. Half of an odd side is
    rounded up.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(width, width, kernel_size=1) for width in widths)
        self.outer = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for width in widths)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Tensor]:
        levels = []
        for inner, outer, (up, down), x in zip(self.inner, self.outer, SCALES, maps, strict=True):
            size = [(side * up + down - 1) // down for side in x.shape[-2:]]
            levels.append(outer(F.interpolate(inner(x), size=size, mode="bilinear", align_corners=False)))
        return levels


class PooledContext(nn.Module):
    """A map concatenated with its averages over coarse grids (Zhao et al. 2017, "Pyramid scene parsing network")."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(conv_norm(width, channels, 1) for _ in POOLED)
        self.fuse = conv_norm(width + len(POOLED) * channels, channels, 3)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C h w"]:
        if self.training and len(x) < 2 and not is_together():
            raise ValueError(
                "UPerNet trains on at least two images of one size at a time, because batch norm needs several values "
                "of each channel. Crop the images to one size, or raise the batch size"
            )
        pooled = [averages(x.shape[-2], side, x) @ x @ averages(x.shape[-1], side, x).mT for side in POOLED]
        context = [_resized(branch(each), x) for branch, each in zip(self.branches, pooled, strict=True)]
        return self.fuse(torch.cat([x, *context], dim=1))


def averages(size: int, cells: int, like: Tensor) -> Float[Tensor, "cells size"]:
    """Return the weights that average a side of a map in cells, as `F.adaptive_avg_pool2d` does.

    The pooling is a product with this matrix, which an ONNX graph can hold for any size. The exporter supports
    `F.adaptive_avg_pool2d` only where `cells` divides the side.
    """
    cell = torch.arange(cells, device=like.device)[:, None]
    first, end = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
    place = torch.arange(size, device=like.device)
    return ((place >= first) & (place < end)).to(like.dtype) / (end - first)


def conv_norm(width: int, channels: int, kernel: int) -> nn.Sequential:
    """Make a convolution that keeps the size, a batch norm and a ReLU."""
    conv = nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, BatchNorm2d(channels), nn.ReLU())


def over_same_pixels(features: Sequence[Features]) -> list[Tensor]:
    """Extend the maps by their edge values until all cover the same pixels.

    If a stride does not divide the image, maps of different strides end at different places. Resizing one to another
    would then shift it.
    """
    sides = zip(*(each.geometry.padded_size for each in features), strict=True)
    height, width = (max(side) for side in sides)
    maps = []
    for each in features:
        h, w = each.grid
        stride = each.geometry.stride
        bottom, right = (height + stride - 1) // stride - h, (width + stride - 1) // stride - w
        maps.append(F.pad(each.patches, (0, right, 0, bottom), mode="replicate"))
    return maps


def _resized(x: Float[Tensor, "B C _ _"], like: Tensor) -> Float[Tensor, "B C h w"]:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
