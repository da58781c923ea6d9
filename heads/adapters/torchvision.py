"""A backbone for torchvision's detectors.

    body = as_torchvision(load_backbone("nano"))
    detector = FasterRCNN(body, num_classes=3, **body.detector_kwargs)

Axes: `B` batch, `H W` pixels.
"""

import math
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from heads.adapters.pixels import mean_and_std
from heads.attached import attach
from heads.detection import Levels, Pyramid, pyramid_of
from vitbackbone import BackboneModule

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width
SLACK = 0.5  # how far sharpening and colour augmentation may leave the range [0, 1]


class TorchvisionBackbone(nn.Module):
    """A backbone and its pyramid, for torchvision's `FasterRCNN`, `MaskRCNN`, `RetinaNet` and `FCOS`.

    The backbone learns with the detector, unless `heads.freeze` is called on it, before or after.
    """

    def __init__(self, backbone: BackboneModule, pyramid: Pyramid) -> None:
        super().__init__()
        self.attached = attach(backbone, {"pyramid": pyramid})
        self.out_channels = pyramid.channels
        self.strides = pyramid.strides
        self.mean, self.std = mean_and_std(backbone)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Levels:
        """Return the levels of images that the detector normalised: `"0"` to `"3"` and `"pool"`.

        Raises `ValueError` on values that no normalised image can have. The detector was then given images in [0, 255],
        or images that were normalised already.
        """
        self._check_range(images)
        return self.attached(images)["pyramid"]

    @property
    def detector_kwargs(self) -> dict[str, Any]:
        """Keywords for the four detectors. Each access makes new modules.

        The detector takes images in [0, 1] and normalises them itself, by this `image_mean` and `image_std`. It pads
        them so that every level has exactly its stride, because torchvision computes an anchor's position from a ratio
        of sizes that it rounds down. For the same reason the ROI pools get their scales here. torchvision would guess
        them from the first image without its padding.

        `RetinaNet` and `FCOS` pool no regions and name their anchors differently, so they ignore these keywords. Their
        own anchors have five sizes and fit the five levels. They are made for strides from 8 to 128, the strides of
        `feature_pyramid(backbone.spec, strides=(8, 16, 32, 64))`, which costs a quarter.
        """
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        levels = [*self.strides, 2 * self.strides[-1]]
        anchors = AnchorGenerator(tuple((8 * stride,) for stride in levels), (ASPECT_RATIOS,) * len(levels))
        return {
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "size_divisible": levels[-1],
            "rpn_anchor_generator": anchors,
            "box_roi_pool": self._roi_pool(7),
            "mask_roi_pool": self._roi_pool(14),
        }

    def _roi_pool(self, output_size: int) -> nn.Module:
        from torchvision.ops import MultiScaleRoIAlign

        pool = MultiScaleRoIAlign([str(i) for i in range(len(self.strides))], output_size, sampling_ratio=2)
        pool.scales = [1 / stride for stride in self.strides]
        pool.map_levels = _level_mapper()(int(math.log2(self.strides[0])), int(math.log2(self.strides[-1])))
        return pool

    def _check_range(self, images: Float[Tensor, "B 3 H W"]) -> None:
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        low, high = (extreme.item() for extreme in (images.detach() * std + mean).aminmax())
        if not (low >= -SLACK and high <= 1 + SLACK):  # true for NaN, too
            raise ValueError(
                f"the detector was given images with values from {low:.3g} to {high:.3g}; want [0, 1], because it "
                "normalises images itself"
            )


def as_torchvision(backbone: BackboneModule, pyramid: Pyramid | None = None) -> TorchvisionBackbone:
    """Wrap a backbone for a detector of torchvision, with `out_channels` and `detector_kwargs`.

    The default of `pyramid` is `feature_pyramid(backbone.spec)`, with 256 channels at strides 4, 8, 16, 32 and 64.
    Images may have any size. torchvision resizes their shorter side to `min_size`, by default 800.

    Raises `ValueError` if the backbone's preprocessing has no mean and std, and if the pyramid was made for another
    backbone.
    """
    return TorchvisionBackbone(backbone, pyramid_of("as_torchvision", backbone, pyramid))


def _level_mapper() -> Callable[[int, int], Any]:
    """Return a function of torchvision that is not public. It makes the mapper of boxes to the levels of a pyramid."""
    import torchvision

    try:
        return torchvision.ops.poolers.initLevelMapper
    except AttributeError as error:
        raise RuntimeError(
            f"torchvision {torchvision.__version__} has no ops.poolers.initLevelMapper, which this package reads; "
            "install another torchvision"
        ) from error
