"""Image file to normalised tensor, as one checkpoint wants it, and the way back from its pixels to the photo's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitbackbone.images.decode import Photo
from vitbackbone.images.errors import TooThin as TooThin
from vitbackbone.images.held import ImageSource, naming, open_image
from vitbackbone.images.resize import Interpolation, Resampling, resized_crop
from vitbackbone.images.view import Resolution, View, check_area, sides

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


HALF = (0.5, 0.5, 0.5)


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


CropMode = Literal["center", "squash", "letterbox", "pad"]


Rounding = Literal["even", "down"]


Decoding = Literal["exact", "fast", "draft"]


CHOICES = {"interpolation": Interpolation, "crop_mode": CropMode, "crop_rounding": Rounding, "resampling": Resampling}


@runtime_checkable
class ImageTransform(Protocol):
    """Image file to what a backbone is given, and the way back: `Preprocess`, or that of several backbones as one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass: the manifest of a feature store holds its fields

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) that comes out by default."""
        ...

    def __call__(
        self,
        image: ImageSource,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "C H W"]: ...

    def batch(
        self,
        images: Sequence[ImageSource],
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "B C H W"]: ...

    def pixels(
        self,
        photo: Photo,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        decoding: Decoding = "exact",
    ) -> UInt8[Tensor, "C H W"]:
        """The same in two steps: a quarter of the bytes to send about, and `normalise` where they arrive."""
        ...

    def normalise(self, pixels: UInt8[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch C H W"]: ...

    def view(self, source: tuple[int, int], resolution: Resolution | None = None, keep_aspect: bool = False) -> View:
        """What `__call__` cuts out of a photo of (H, W) pixels, for `Geometry.through`."""
        ...


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform of a checkpoint: upright RGB, resize, crop, scale to [0, 1], normalise.

    With Pillow underneath, the result equals that of timm's `create_transform(is_training=False)` for the same
    settings (timm/data/transforms_factory.py).

    `crop_mode`: the photo is resized to `image_size / crop_pct` and its centre cropped; `"center"` keeps the aspect
    and lets the longer side stand out, `"squash"` ignores it. `"letterbox"` keeps it too, and first puts a border of
    the mean colour around the photo, the same at opposite sides, so that it gets the aspect of the crop: with
    `crop_pct=1` the whole photo is seen, but for what the rounding to whole pixels costs (prismatic-vlms,
    prismatic/models/backbones/vision/base_vision.py, `LetterboxPad`; on squares the two are equal to the bit). `"pad"`
    resizes the longer side to the input and adds the mean colour at the right and bottom, as SAM does; the border is
    that of whole levels, which is at most half a level of 255 from SAM's zeros.

    `resampling`: whose filters resize. `"pillow"` is what timm and most checkpoints' authors run. `"torchvision"` is
    what transformers runs by default since version 5. The two differ by 1 or 2 levels of 255 where a photo shrinks, and
    by up to 20 where it is enlarged bicubically. Change it by
    `dataclasses.replace(backbone.preprocess, resampling="torchvision")`.
    """

    image_size: tuple[int, int] = (224, 224)  # (H, W)
    crop_pct: float = 0.875
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_rounding: Rounding = "even"  # of half a pixel: as timm and torchvision do, or transformers
    resampling: Resampling = "pillow"

    def __post_init__(self) -> None:
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"Preprocess: crop_pct must be in (0, 1], got {self.crop_pct}")
        if self.crop_mode == "pad" and self.crop_pct != 1:
            raise ValueError(f"Preprocess: crop_mode='pad' crops nothing; want crop_pct=1, got {self.crop_pct}")
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                wanted = ", ".join(get_args(kind))
                raise ValueError(f"Preprocess: unknown {name}: {getattr(self, name)!r}; want one of {wanted}")

    def __call__(
        self,
        image: ImageSource,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "3 H W"]:
        """Turn an image into a float32 tensor (3, H, W).

        `image`: a path, the bytes of a file, a binary file object, a PIL image, a uint8 array (H, W, 3) or (H, W), or a
        uint8 tensor (3, H, W). All give the same result.
        `resolution`: replaces the checkpoint's own input size, in pixels.
        `keep_aspect`: the whole photo stays, nothing is cropped and no border put around it: its shorter side becomes
        the resolution, or with (H, W) it is made just large enough to cover that.
        `max_pixels`: the most pixels that a photo may have; `PIL.Image.MAX_IMAGE_PIXELS` by default.

        Raises `OSError` on a file that cannot be opened, and `ImageError`, a `ValueError`, on one that is no image.
        """
        return self.normalise(self.pixels(open_image(image, max_pixels), resolution, keep_aspect))

    def batch(
        self,
        images: Sequence[ImageSource],
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Turn several images into one float32 tensor (B, 3, H, W). Arguments as for one image.

        Raises `ImageError`, naming the image that cannot be read, and `ValueError` if the results differ in size.
        """
        return stack_images(self, images, resolution, keep_aspect, max_pixels)

    def pixels(
        self,
        photo: Photo,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        decoding: Decoding = "exact",
    ) -> UInt8[Tensor, "3 H W"]:
        """Return what `__call__` makes of the same photo before it is normalised.

        `decoding`: "exact" is that to the bit; "fast" is within 1 of 255 (seldom 2), which moves features by some 1e-4;
        with "draft" moreover a JPEG is decoded at the lowest of its scales that is still twice what it is resized to,
        which differs visibly.
        Raises `ImageError` on what cannot be read, and on a photo that is too long and thin.
        """
        view = self.view(photo.size, resolution, keep_aspect)
        check_area(view, photo.max_pixels)
        return self.cut(photo.decode(enough(view) if decoding == "draft" else None), view, decoding == "exact")

    def cut(self, rgb: UInt8[Tensor, "3 h w"], view: View, exact: bool) -> UInt8[Tensor, "3 H W"]:
        """The part of a decoded photo that `view` is of. A photo decoded at a lower scale is resized by less."""
        if view.pad != (0, 0):
            rgb = _expand(rgb, view, self.border)
        kept = view.size
        if self.crop_mode == "pad":
            kept = min(view.size[0], view.resized[0]), min(view.size[1], view.resized[1])
        picture = resized_crop(rgb, view.resized, view.offset, kept, self.interpolation, exact, self.resampling)
        return picture if kept == view.size else self._padded(picture, view.size)

    def _padded(self, picture: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
        """With the mean colour at the right and bottom, in whole levels."""
        colour = [min(max(round(255 * value), 0), 255) for value in self.mean]
        padded = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, *size)
        padded[:, : picture.shape[1], : picture.shape[2]] = picture
        return padded

    def normalise(self, pixels: UInt8[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch 3 H W"]:
        """`pixels` as `__call__` gives them out, in float32, on their device."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pixels.float() / 255).sub_(mean).div_(std)

    @property
    def border(self) -> tuple[int, int, int]:
        """The mean colour in 0 to 255, which the border of a letterbox has."""
        red, green, blue = (int(255 * value) for value in self.mean)
        return red, green, blue

    def view(self, source: tuple[int, int], resolution: Resolution | None = None, keep_aspect: bool = False) -> View:
        """Return what `__call__` cuts out of a photo of (H, W) pixels, for `Geometry.through`."""
        size = self.image_size if resolution is None else sides(resolution)
        if min(size) < 1:
            raise ValueError(f"resolution must be at least 1 pixel, got {resolution}")
        if keep_aspect:
            resized = _cover(source, size)
            return View(source, resized, (0, 0), resized)
        if self.crop_mode == "pad":
            return View(source, _inside(source, size), (0, 0), size)
        pad = _border(source, size) if self.crop_mode == "letterbox" else (0, 0)
        padded = source[0] + 2 * pad[0], source[1] + 2 * pad[1]
        resized = self.scaled(size) if self.crop_mode == "squash" else _cover(padded, self.scaled(size))
        top, left = (resized[0] - size[0]) / 2, (resized[1] - size[1]) / 2
        down = self.crop_rounding == "down"
        offset = (math.floor(top), math.floor(left)) if down else (round(top), round(left))
        return View(source, resized, offset, size, pad)

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """What (H, W) is cropped from: that divided by `crop_pct`, whose own rounding must not cost a pixel."""
        return math.floor(size[0] / self.crop_pct + 1e-6), math.floor(size[1] / self.crop_pct + 1e-6)


def enough(view: View) -> tuple[int, int]:
    """(h, w) that a photo is decoded to at least, if it need not be whole: twice what it is resized to."""
    height, width = (
        math.ceil(2 * resized * source / padded)
        for resized, source, padded in zip(view.resized, view.source, view.padded, strict=True)
    )
    return height, width


def stack_images(
    preprocess: ImageTransform,
    images: Sequence[ImageSource],
    resolution: Resolution | None,
    keep_aspect: bool,
    max_pixels: int | None,
    first: int = 0,
) -> Float[Tensor, "B C H W"]:
    """Stack what `preprocess` makes of each image. See `Preprocess.batch`. `first`: the number of the first image."""
    if isinstance(images, str | bytes) or not hasattr(images, "__len__"):
        raise ValueError(f"images is a {type(images).__name__}; want a list of images")
    if not len(images):
        raise ValueError("images is empty; want at least one")
    made = []
    for index, image in enumerate(images, first):
        with naming(index, image):
            made.append(preprocess(image, resolution, keep_aspect, max_pixels))
    sizes = {tuple(image.shape[1:]) for image in made}
    if len(sizes) > 1:
        raise ValueError(
            f"the images have {len(sizes)} sizes after preprocessing, such as {min(sizes)} and {max(sizes)}; want one "
            "for a batch. Leave keep_aspect out, or give the backbone a list of single images"
        )
    return torch.stack(made)


def _expand(rgb: UInt8[Tensor, "3 h w"], view: View, colour: tuple[int, int, int]) -> UInt8[Tensor, "3 H W"]:
    """With a border around it, which is thinner by as much as the photo was decoded at a lower scale."""
    vertical, horizontal = (
        round(pad * size / source) for pad, size, source in zip(view.pad, rgb.shape[1:], view.source, strict=True)
    )
    height, width = rgb.shape[1:]
    padded = torch.tensor(colour, dtype=torch.uint8).expand(height + 2 * vertical, width + 2 * horizontal, 3)
    padded = padded.contiguous().permute(2, 0, 1)  # the colours of a pixel side by side, as decoders have them
    padded[:, vertical : vertical + height, horizontal : horizontal + width] = rgb
    return padded


def _cover(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The size with the aspect of `source` that just covers `target`, rounded as torchvision's Resize (a square
    target) and timm's ResizeKeepRatio (another) do."""
    if target[0] == target[1]:
        short, long = min(source), max(source)
        scaled = int(target[0] * long / short)
        return (target[0], scaled) if source[0] <= source[1] else (scaled, target[0])
    ratio = min(source[0] / target[0], source[1] / target[1])
    return round(source[0] / ratio), round(source[1] / ratio)


def _inside(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The largest size with the aspect of `source` that lies inside of `target`, rounded as SAM does."""
    scale = min(target[0] / source[0], target[1] / source[1])
    height, width = (max(int(side * scale + 0.5), 1) for side in source)
    return min(height, target[0]), min(width, target[1])


def _border(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Rows to add above and below a photo each, and columns left and right each, for the aspect of `target`. An odd
    difference leaves the photo a pixel short of it, as in prismatic-vlms."""
    height = max(source[0], source[1] * target[0] // target[1])
    width = max(source[1], source[0] * target[1] // target[0])
    return (height - source[0]) // 2, (width - source[1]) // 2
