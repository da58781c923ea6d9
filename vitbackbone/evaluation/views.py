"""Views of a photo: the size and crop are the protocol's, the normalisation is the checkpoint's."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from vitbackbone.contract import BackboneModule
from vitbackbone.evaluation.settings import setting
from vitbackbone.images import Decoding, Interpolation, Photo, Preprocess, Resolution

DATASET = "torchvision, datasets/folder.py; dinov2/data/datasets/decoders.py"
TORCHVISION = "torchvision: Resize(256, bicubic), CenterCrop(224); dinov2/data/transforms.py"


@dataclass(frozen=True)
class CropView:
    """Resize the short side, and crop the centre. Mean and std are the checkpoint's own."""

    short: int = setting(256, "short side after resizing, in pixels", TORCHVISION)
    crop: int = setting(224, "side of the square that is cropped from the centre, in pixels", TORCHVISION)
    interpolation: Interpolation = setting("bicubic", "filter of the resize, antialiased", TORCHVISION)
    tokens: int = setting(0, "patch tokens of the view: if not 0, short and crop are what gives so many", "")
    upright: bool = setting(
        False, "turn photos by their EXIF orientation, which torchvision's datasets do not", DATASET
    )

    def size(self, stride: int) -> tuple[int, int]:
        """Return (short, crop) for a backbone of that stride. Raises `ValueError` if `tokens` is not a square."""
        if not self.tokens:
            return self.short, self.crop
        side = math.isqrt(self.tokens)
        if side * side != self.tokens:
            raise ValueError(f"view.tokens={self.tokens}; want a square, such as 1024")
        return side * stride, side * stride

    def preprocess(self, backbone: BackboneModule) -> Preprocess:
        """Return the transform of this view for a backbone. Raises `ValueError` if the view crops what is not there."""
        own = backbone.preprocess
        if not isinstance(own, Preprocess):
            raise ValueError(
                f"{backbone.spec.name} reads several pictures of a photo, which the protocols do not define; evaluate "
                "its members one by one"
            )
        short, crop = self.size(backbone.spec.stride)
        if not 0 < crop <= short:
            raise ValueError(f"view.short={short} and view.crop={crop}; want a crop of at most the short side")
        return (Preprocess if self.upright else AsStored)(
            (crop, crop), crop / short, "center", self.interpolation, mean=own.mean, std=own.std, scale=own.scale
        )


class AsStored(Preprocess):
    """A transform of photos as they are stored: their EXIF orientation is ignored."""

    def pixels(
        self,
        photo: Photo,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        decoding: Decoding = "exact",
    ) -> Shaped[Tensor, "C H W"]:
        return super().pixels(photo.as_stored(), resolution, keep_aspect, decoding)


@contextmanager
def viewing(backbone: BackboneModule, preprocess: Preprocess) -> Iterator[BackboneModule]:
    """Give the backbone another transform while the body runs."""
    own = backbone.preprocess
    try:
        backbone.preprocess = preprocess
        yield backbone
    finally:
        backbone.preprocess = own
