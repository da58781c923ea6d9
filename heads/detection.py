"""Detection: the feature pyramids that detectors read, for plain Vision Transformers and for networks with levels.

Axes: `B` batch, `D` width, `C` channels of the pyramid, `h w` grid of a map.
"""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from heads.attached import check_backbone
from heads.base import Head, Needs
from heads.options import Count
from heads.registry import create_head
from vitbackbone import BackboneModule, BackboneSpec, ChannelNorm, Features, Geometry, align, stack_maps

Levels = OrderedDict[str, Tensor]  # maps (B, C, h, w), from high resolution to low

STRIDES = (4, 8, 16, 32)
Strides = Annotated[Sequence[Count], Field(min_length=1, description="a list of powers of two, ascending")]


class Pyramid(Head):
    """A head whose output is a dict of maps at several strides. A subclass defines `levels`.

    The output is an `OrderedDict` from high resolution to low, with the names that torchvision's detectors read. They
    are `"0"`, `"1"`, ... for `strides`, and `"pool"` for every other pixel of the last level. Images of different sizes
    are run one by one, because convolutions would mix their padding in. Their maps are padded with zeros at the right
    and bottom.

    Raises `ValueError` unless `strides` are powers of two, ascending.
    """

    def __init__(self, spec: BackboneSpec, needs: Needs, channels: Count, strides: Strides) -> None:
        super().__init__(spec, needs)
        ascending = list(strides) == sorted(set(strides))
        if not strides or not ascending or any(stride < 1 or stride & (stride - 1) for stride in strides):
            raise ValueError(f"strides={list(strides)}; want powers of two, ascending, such as {list(STRIDES)}")
        self.channels = channels
        self.strides = tuple(strides)

    @abstractmethod
    def levels(self, *features: Features) -> list[Float[Tensor, "B C _ _"]]:
        """Return the map of each stride, for images of one size."""

    def forward(self, *features: Features) -> Levels:
        geometry = features[0].geometry
        if not geometry.one_size:
            return _stack([self(*(each.image(i) for each in features)) for i in range(len(geometry.sizes))])
        maps = self.levels(*features)
        named = [(str(i), level) for i, level in enumerate(maps)]
        return OrderedDict([*named, ("pool", maps[-1][:, :, ::2, ::2])])


class SimpleFeaturePyramid(Pyramid):
    """ViTDet's pyramid on the last map.

    (Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection"; facebookresearch/detectron2,
    modeling/backbone/vit.py)

    A map of stride 16 goes through four branches. Two transposed convolutions make it 4 times larger, one makes it 2
    times larger, one branch keeps its size, and one max-pools it. Each branch ends in a 1x1 and a 3x3 convolution with
    norms. A map of a smaller stride needs fewer transposed convolutions and more pooling, and a map of a larger stride
    the opposite. The last row and column of an odd map are pooled too, so that every level covers the image.

    Detectors expect strides that are powers of two. Another map is first resampled to the nearest one, such as patch
    14 to stride 16.

    `channels`: the width of every level. `strides`: the strides of the levels, in pixels. `norm`: whether the
    backbone's final norm is applied; ViTDet's own backbone has none.
    """

    def __init__(
        self, spec: BackboneSpec, channels: Count = 256, strides: Strides = STRIDES, norm: bool = True
    ) -> None:
        super().__init__(spec, Needs("last", norm, pooled=False), channels, strides)
        self.base = 2 ** round(math.log2(spec.stride))
        self.branches = nn.ModuleList(_branch(spec.dim, channels, self.base, stride) for stride in strides)

    def levels(self, *features: Features) -> list[Float[Tensor, "B C _ _"]]:
        (last,) = features
        x = align(last, Geometry(last.geometry.sizes, self.base))
        return [branch(x) for branch in self.branches]


def _branch(dim: int, channels: int, base: int, stride: int) -> nn.Sequential:
    """Make the layers from a map of stride `base` to a map of `stride`, both powers of two."""
    layers: list[nn.Module] = []
    if stride > base:
        layers.append(PoolAll(stride // base))
    for doubling in range(int(math.log2(base / stride))):
        if doubling:
            layers += [ChannelNorm(dim), nn.GELU()]
        layers.append(nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2))
        dim //= 2
    return nn.Sequential(
        *layers,
        nn.Conv2d(dim, channels, kernel_size=1, bias=False),
        ChannelNorm(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        ChannelNorm(channels),
    )


class PoolAll(nn.Module):
    """The maximum of each square of `side` x `side` places, and of the part of a square at the right and bottom.

    It equals `nn.MaxPool2d(side, ceil_mode=True)`, which a graph fixes to the grid of its example.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D _ _"]:
        right, bottom = (((n - 1) // self.side + 1) * self.side - n for n in (x.shape[3], x.shape[2]))
        return F.max_pool2d(F.pad(x, (0, right, 0, bottom), value=-math.inf), self.side)


class FeaturePyramid(Pyramid):
    """The feature pyramid of a network that has a layer at every stride, such as Swin.

    (Lin et al. 2017, "Feature Pyramid Networks for Object Detection")

    The last layer of each stride goes through a 1x1 convolution. From the top down, each coarser level is added to the
    next finer one. A 3x3 convolution follows on each. The layers are read without the final norm.

    Raises `ValueError` unless the backbone has a layer of each stride.
    """

    def __init__(self, spec: BackboneSpec, channels: Count = 256, strides: Strides = STRIDES) -> None:
        missing = set(strides) - set(spec.strides)
        if missing:
            raise ValueError(
                f"strides={list(strides)}; want strides of layers. {spec.name} has no layer of stride "
                f"{', '.join(map(str, sorted(missing)))}, only of "
                f"{', '.join(map(str, sorted(set(spec.strides))))}; use SimpleFeaturePyramid, which makes levels"
            )
        last = {stride: layer for layer, stride in enumerate(spec.strides)}
        super().__init__(
            spec, Needs(tuple(last[stride] for stride in strides), norm=False, pooled=False), channels, strides
        )
        self.laterals = nn.ModuleList(nn.Conv2d(spec.dims[layer], channels, kernel_size=1) for layer in self.layers)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in strides)

    def levels(self, *features: Features) -> list[Float[Tensor, "B C _ _"]]:
        merged = [lateral(each.patches) for lateral, each in zip(self.laterals, features, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            fine, factor = merged[i], self.strides[i + 1] // self.strides[i]
            coarse = merged[i + 1].repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
            merged[i] = fine + coarse[:, :, : fine.shape[2], : fine.shape[3]]
        return [output(level) for output, level in zip(self.outputs, merged, strict=True)]


def feature_pyramid(spec: BackboneSpec, strides: Sequence[int] = STRIDES) -> Pyramid:
    """Make the pyramid that suits a backbone.

    It is a `FeaturePyramid` if the backbone has layers of all the strides. Otherwise it is a `SimpleFeaturePyramid`,
    with the final norm if there is one.
    """
    if set(strides) <= set(spec.strides) and len(set(spec.strides)) > 1:
        return create_head("fpn", spec, strides=list(strides))
    return create_head("simple_pyramid", spec, strides=list(strides), norm=spec.norms([-1]))


def pyramid_of(caller: str, backbone: BackboneModule, pyramid: Pyramid | None) -> Pyramid:
    """Return the given pyramid, or make one that suits the backbone.

    Raises `ValueError` unless `backbone` is a backbone and `pyramid` is a pyramid or None.
    """
    check_backbone(caller, backbone)
    if pyramid is not None and not isinstance(pyramid, Pyramid):
        raise ValueError(
            f"{caller} was given a {type(pyramid).__name__}; want a pyramid, such as create_head('simple_pyramid', "
            "backbone.spec)"
        )
    return pyramid or feature_pyramid(backbone.spec)


def _stack(alone: Sequence[Levels]) -> Levels:
    """Stack the levels of images that were run one by one into a batch."""
    batch = Levels()
    for name in alone[0]:
        batch[name] = stack_maps([levels[name] for levels in alone])
    return batch
