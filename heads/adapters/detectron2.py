"""A backbone for detectron2's detectors.

    body = as_detectron2(load_backbone("nano"))
    detector = GeneralizedRCNN(backbone=body, **body.detector_kwargs, proposal_generator=..., roi_heads=...)

detectron2 need not be installed. If it is, the shapes have its own type.

Axes: `B` batch, `H W` pixels.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from heads.adapters.pixels import mean_and_std
from heads.attached import attach
from heads.detection import Pyramid, pyramid_of
from vitbackbone import BackboneModule


@dataclass(frozen=True)
class ShapeSpec:
    """The fields of detectron2's type of that name (detectron2/layers/shape_spec.py)."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Detectron2Backbone(nn.Module):
    """A backbone and its pyramid with the methods of detectron2's `Backbone`.

    (detectron2/modeling/backbone/backbone.py)

    The maps are named by the logarithm of their stride: `"p2"` has stride 4, and `"p6"` has stride 64.
    """

    def __init__(self, backbone: BackboneModule, pyramid: Pyramid) -> None:
        super().__init__()
        self.attached = attach(backbone, {"pyramid": pyramid})
        self.channels = pyramid.channels
        self.size_divisibility = pyramid.strides[-1]  # detectron2 pads images to a multiple of it
        self.strides = {f"p{int(math.log2(stride))}": stride for stride in (*pyramid.strides, 2 * pyramid.strides[-1])}
        self.mean, self.std = mean_and_std(backbone)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        """Return the maps of normalised images by their names, high resolution first."""
        return dict(zip(self.strides, self.attached(images)["pyramid"].values(), strict=True))

    def output_shape(self) -> dict[str, Any]:
        """Return the channels and stride of each map, as a `ShapeSpec`."""
        kind = _shape_spec()
        return {name: kind(channels=self.channels, stride=stride) for name, stride in self.strides.items()}

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The padding that detectron2 must apply to images. A `square_size` of 0 means no square."""
        return {"size_divisibility": self.size_divisibility, "square_size": 0}

    @property
    def detector_kwargs(self) -> dict[str, Any]:
        """Keywords by which detectron2's models read and normalise images: RGB in [0, 255]."""
        mean, std = ([255 * value for value in values] for values in (self.mean, self.std))
        return {"pixel_mean": mean, "pixel_std": std, "input_format": "RGB"}


def _shape_spec() -> type[Any]:
    try:
        from detectron2.layers import ShapeSpec as Theirs
    except ImportError:
        return ShapeSpec
    return Theirs


def as_detectron2(backbone: BackboneModule, pyramid: Pyramid | None = None) -> Detectron2Backbone:
    """Wrap a backbone for a model of detectron2.

    It has `forward`, `output_shape()`, `size_divisibility` and `padding_constraints`. The default of `pyramid` is
    `feature_pyramid(backbone.spec)`, with 256 channels at `"p2"` to `"p6"`.

    Raises `ValueError` if the backbone's preprocessing has no mean and std, and if the pyramid was made for another
    backbone.
    """
    return Detectron2Backbone(backbone, pyramid_of("as_detectron2", backbone, pyramid))
