"""Segmentation: a class for every pixel.

Axes: `B` batch, `D` width, `K` classes, `h w` patch grid, `H W` pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heads.base import DenseHead, Needs
from vitbackbone import BackboneSpec, Features, align


class LinearSegmenter(DenseHead):
    """Batch norm and a 1x1 convolution on the map of the last layer (facebookresearch/dinov2,
    eval/segmentation/models/decode_heads/linear_head.py).

    `dropout`: of whole channels; DINOv3's is 0.1 (facebookresearch/dinov3,
    eval/segmentation/models/heads/linear_head.py).
    """

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: int,
        layers: tuple[int, ...] | str = "last",
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, Needs(layers if isinstance(layers, str) else tuple(layers), norm))
        width = sum(spec.dims[layer] for layer in self.layers)
        self.num_classes = num_classes
        self.dropout = nn.Dropout2d(dropout)
        self.bn = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)

    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        """Maps of other strides are brought to the grid of the first."""
        x = torch.cat([align(each, features[0].geometry) for each in features], dim=1)
        return self.classifier(self.bn(self.dropout(x)))


class MultiLayerSegmenter(LinearSegmenter):
    """The same on the maps of the last four layers side by side: DINOv2's "+ms" head, at one scale."""

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: int,
        layers: tuple[int, ...] | str = "last4",
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, num_classes, layers, norm, dropout)
