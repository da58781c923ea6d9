"""Segmentation: a class for every pixel.

Axes: `B` batch, `D` width, `K` classes, `h w` patch grid, `H W` pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import DenseHead, Needs
from vitbackbone import BackboneSpec, Features, align

IGNORED = 255  # label of a pixel that no class is given to: left out of the loss


def check_labels(labels: Tensor, shape: tuple[int, int, int], num_classes: int, ignore_index: int) -> None:
    """Raises `ValueError` unless the labels are integers of the shape (B, H, W), each a class from 0 or ignored."""
    wanted = f"want integers of shape {shape}: classes 0 to {num_classes - 1}, or {ignore_index} for pixels to ignore"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}; {wanted}")
    if labels.shape != shape:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; {wanted}")
    unknown = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
    if len(unknown):
        raise ValueError(f"labels hold {unknown.unique().tolist()[:5]}; {wanted}")


def segmentation_loss(logits: Float[Tensor, "B K H W"], labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Cross-entropy, the mean over the pixels that are not ignored; 0 where all are.

    `labels`: integers (B, H, W). Raises `ValueError` on other ones, and on a label that is no class.
    """
    batch, num_classes, height, width = logits.shape
    check_labels(labels, (batch, height, width), num_classes, ignore_index)
    total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


class Segmenter(DenseHead):
    """A dense head whose output is a score for each class at each pixel, (B, K, H, W)."""

    def __init__(self, spec: BackboneSpec, needs: Needs, num_classes: int) -> None:
        super().__init__(spec, needs)
        self.num_classes = num_classes

    def anneal(self, progress: float) -> None:
        """Told how far training is, from 0 to 1. For a head whose training changes as it goes on (EoMT)."""

    def loss(self, labels: Tensor, *features: Features, ignore_index: int = IGNORED) -> Tensor:
        """What the head is trained by, given labels (B, H, W) and what the head is given (`Attached.features`). Labels
        of images of different sizes are filled up with `ignore_index`, at the right and bottom.

        Raises `ValueError` as `segmentation_loss` does.
        """
        return segmentation_loss(self(*features), labels, ignore_index)


class LinearSegmenter(Segmenter):
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
        super().__init__(spec, Needs(layers if isinstance(layers, str) else tuple(layers), norm), num_classes)
        width = sum(spec.dims[layer] for layer in self.layers)
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
