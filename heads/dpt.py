"""DPT (Ranftl et al. 2021, "Vision transformers for dense prediction"), as DINOv2 has it.

    four maps -> CLS read out -> 4x, 2x, 1x, 0.5x -> fused, deepest first, each step twice as large -> classes or depth

Axes: `B` batch, `D` width, `C` channels, `K` classes, `h w` patch grid.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Needs
from heads.depth import DepthHead
from heads.options import Count, Layers, Length, Rate
from heads.parallel import BatchNorm2d
from heads.segmentation import Segmenter
from vitbackbone import BackboneSpec, Features, pool_cls

Readout = Literal["project", "ignore"]


class DPT(Segmenter):
    """Segmentation by DPT: the decoder, a convolution with batch norm, and a classifier.

    (section 3 and appendix of the paper; transformers, models/dpt/modeling_dpt.py)

    `layers`, `channels`, `readout`: see `Decoder`. `dropout` is the rate before the classifier.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: Count,
        layers: Layers = "even4",
        channels: Count = 256,
        readout: Readout | None = None,
        dropout: Rate = 0.1,
    ) -> None:
        readout = readout or default_readout(spec)
        super().__init__(spec, needs(layers, readout), num_classes)
        self.decoder = Decoder(spec, self.layers, channels, readout)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn = BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)

    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        x = F.relu(self.bn(self.conv(self.decoder(*features))))
        return twice(self.classifier(self.dropout(x)))


class DPTDepth(DepthHead):
    """Depth by DPT, (B, 1, H, W), in the unit of the training targets.

    (facebookresearch/dinov2, hub/depth/decode_heads.py)

    `layers`, `channels`, `readout`: see `Decoder`. `min_depth` is added to the output, so that it is positive.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        layers: Layers = "even4",
        channels: Count = 256,
        readout: Readout | None = None,
        min_depth: Length = 0.001,
    ) -> None:
        readout = readout or default_readout(spec)
        super().__init__(spec, needs(layers, readout))
        self.min_depth = min_depth
        self.decoder = Decoder(spec, self.layers, channels, readout)
        self.project = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels // 2, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, 32, kernel_size=3, padding=1)
        self.depth = nn.Conv2d(32, 1, kernel_size=1)
        if self.depth.bias is not None:
            nn.init.ones_(self.depth.bias)  # if it started below the last ReLU, the head would get no gradient

    def maps(self, *features: Features) -> Float[Tensor, "B 1 h w"]:
        x = F.relu(self.project(self.decoder(*features)))
        x = F.relu(self.conv2(twice(self.conv1(x))))
        return F.relu(self.depth(x)) + self.min_depth


def default_readout(spec: BackboneSpec) -> Readout:
    return "project" if spec.has_cls else "ignore"


def needs(layers: Layers, readout: Readout) -> Needs:
    return Needs(layers, norm=False, prefix=readout == "project", pooled=False)


class Decoder(nn.Module):
    """A decoder that fuses four maps of one stride into one map, eight times as large on even grids.

    `layers` are four, shallow first. `channels` is the width of the fused maps. `readout` says how CLS is used:
    `"project"` joins it to each patch, and `"ignore"` leaves it out. A head's default is `"project"` if there is a CLS
    token.

    Raises `ValueError` unless there are four layers of one stride, at least 8 wide.
    """

    def __init__(self, spec: BackboneSpec, layers: tuple[int, ...], channels: int, readout: Readout) -> None:
        super().__init__()
        widths = [spec.dims[layer] for layer in layers]
        strides = [spec.strides[layer] for layer in layers]
        if len(layers) != 4 or len(set(strides)) > 1 or widths[0] < 8:
            raise ValueError(
                f"DPT: layers {list(layers)} of {spec.name} have strides {strides} and widths {widths}; want four of "
                "one stride, at least 8 wide. UPerNet takes layers that already form a pyramid"
            )
        reduced = [width // 2 ** (3 - i) for i, width in enumerate(widths)]
        self.readouts = nn.ModuleList(nn.Linear(2 * width, width) for width in widths) if readout == "project" else None
        self.projections = nn.ModuleList(nn.Conv2d(w, r, kernel_size=1) for w, r in zip(widths, reduced, strict=True))
        self.resizers = nn.ModuleList(
            [
                nn.ConvTranspose2d(reduced[0], reduced[0], kernel_size=4, stride=4),
                nn.ConvTranspose2d(reduced[1], reduced[1], kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(reduced[3], reduced[3], kernel_size=3, stride=2, padding=1),
            ]
        )
        self.convs = nn.ModuleList(nn.Conv2d(r, channels, kernel_size=3, padding=1, bias=False) for r in reduced)
        self.fusions = nn.ModuleList(Fusion(channels, first=layer == 3) for layer in range(4))

    def forward(self, *features: Features) -> Float[Tensor, "B C h w"]:
        fused: Tensor | None = None
        for i in (3, 2, 1, 0):
            x = self._read(i, features[i])
            x = self.convs[i](self.resizers[i](self.projections[i](x)))
            fused = self.fusions[i](x) if fused is None else self.fusions[i](fused, x)
        assert fused is not None
        return fused

    def _read(self, index: int, features: Features) -> Float[Tensor, "B D h w"]:
        if self.readouts is None:
            return features.patches
        tokens = features.tokens
        cls = pool_cls(features)[:, None].expand_as(tokens)
        tokens = F.gelu(self.readouts[index](torch.cat([tokens, cls], dim=2)))
        return tokens.mT.unflatten(2, features.grid)


class Fusion(nn.Module):
    """A fusion block: it adds a map to the deeper blocks' output and doubles the size. The first adds nothing."""

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        self.residual = None if first else Residual(channels)
        self.out = Residual(channels)
        self.project = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Float[Tensor, "B C h w"], skip: Float[Tensor, "B C _ _"] | None = None) -> Tensor:
        if skip is not None and self.residual is not None:
            if torch.compiler.is_compiling() or skip.shape != x.shape:  # half of an odd side, doubled, is one longer
                skip = F.interpolate(skip, size=x.shape[-2:], mode="bilinear", align_corners=False)
            x = x + self.residual(skip)
        return self.project(twice(self.out(x)))


class Residual(nn.Module):
    """A residual block of two 3x3 convolutions, each after a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def twice(x: Float[Tensor, "B C h w"]) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
