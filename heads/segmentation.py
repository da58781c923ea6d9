"""Segmentation: a class for every pixel.

Axes: `B` batch, `D` width, `K` classes, `h w` patch grid, `H W` pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import DenseHead, Needs
from heads.options import Count, Layers, Rate, check
from heads.parallel import BatchNorm2d, refuse_past_ddp, total
from vitbackbone import BackboneSpec, Features, align

IGNORED = 255  # the label of pixels without a class by default; the loss leaves them out


def ignored(num_classes: int, ignore_index: int | None) -> int:
    """Return the label to ignore, 255 for None. Raises `ValueError` if it is None and 255 is a class."""
    check("labels", {"ignore_index": int | None}, {"ignore_index": ignore_index})
    if ignore_index is not None:
        return ignore_index
    if num_classes > IGNORED:
        raise ValueError(
            f"label {IGNORED} is one of the {num_classes} classes, but by default it means no class; pass another "
            "ignore_index, such as -1"
        )
    return IGNORED


def check_labels(labels: Tensor, shape: tuple[int, int, int], num_classes: int, ignore_index: int) -> None:
    """Raise `ValueError` unless the labels are integers of the shape (B, H, W), each a class or ignored."""
    wanted = f"want integers of shape {shape}: classes 0 to {num_classes - 1}, or {ignore_index} for pixels to ignore"
    check_tensor("labels", labels, wanted)
    if 0 in shape:
        raise ValueError(f"the output has shape {shape}, without an image or a pixel; want at least one")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}; {wanted}")
    if labels.shape != shape:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; {wanted}")
    unknown = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
    if len(unknown):
        raise ValueError(f"labels hold {unknown.unique().tolist()[:5]}; {wanted}")


def check_tensor(name: str, value: object, wanted: str) -> None:
    """Raise `ValueError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(f"{name} is a {kind}, not a tensor; {wanted}. torch.as_tensor converts an array")


def segmentation_loss(logits: Float[Tensor, "B K H W"], labels: Tensor, ignore_index: int | None = None) -> Tensor:
    """Return the cross-entropy, averaged over the pixels that are not ignored, or 0 if all are ignored.

    In a training forward under DDP or FSDP it is averaged over the pixels of all processes.

    `labels` are integers (B, H, W). `ignore_index` is the label that means no class, by default 255. Raises
    `ValueError` on other labels, on a label that is not a class, and if there are 256 classes or more without an
    `ignore_index`.
    """
    check_tensor("logits", logits, "want scores of shape (B, K, H, W)")
    batch, num_classes, height, width = logits.shape
    ignore_index = ignored(num_classes, ignore_index)
    check_labels(labels, (batch, height, width), num_classes, ignore_index)
    labels = labels.to(logits.device, torch.long)
    loss = total(F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum"))
    return loss / total((labels != ignore_index).sum().to(loss)).clamp(min=1)


class Segmenter(DenseHead):
    """A dense head whose output is a score for each class at each pixel, (B, K, H, W).

    The attribute `ignore_index` is the label that `loss` leaves out. Set it before training. None stands for 255.
    """

    ignore_index: int | None = None

    def __init__(self, spec: BackboneSpec, needs: Needs, num_classes: Count) -> None:
        super().__init__(spec, needs)
        self.num_classes = num_classes

    def anneal(self, progress: float) -> None:
        """Take the progress of training, from 0 to 1. Only a head whose training changes over time needs it (EoMT)."""

    def loss(self, targets: Tensor, *features: Features, ignore_index: int | None = None) -> Tensor:
        """Return the training loss, given labels (B, H, W) and the head's features (`Attached.features`).

        If the images have different sizes, pad the labels with `ignore_index` at the right and bottom. The default of
        `ignore_index` is the head's own.

        Raises `ValueError` as `segmentation_loss` does, and `RuntimeError` under DDP outside its forward.
        """
        refuse_past_ddp(self)
        return segmentation_loss(self(*features), targets, self.ignore_index if ignore_index is None else ignore_index)


class LinearSegmenter(Segmenter):
    """Batch norm and a 1x1 convolution on the map of the last layer.

    (facebookresearch/dinov2, eval/segmentation/models/decode_heads/linear_head.py)

    `dropout` is the rate at which whole channels are dropped. DINOv3's is 0.1 (facebookresearch/dinov3,
    eval/segmentation/models/heads/linear_head.py).
    """

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: Count,
        layers: Layers = "last",
        norm: bool = True,
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__(spec, Needs(layers, norm, pooled=False), num_classes)
        width = sum(spec.dims[layer] for layer in self.layers)
        self.dropout = nn.Dropout2d(dropout)
        self.bn = BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)

    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        """Return the scores on the grid of the first map. Maps of other strides are resampled to it."""
        x = torch.cat([align(each, features[0].geometry) for each in features], dim=1)
        return self.classifier(self.bn(self.dropout(x)))


class MultiLayerSegmenter(LinearSegmenter):
    """A `LinearSegmenter` on the concatenated maps of the last four layers: DINOv2's "+ms" head, at one scale."""

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: Count,
        layers: Layers = "last4",
        norm: bool = True,
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__(spec, num_classes, layers, norm, dropout)
