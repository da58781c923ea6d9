"""Images to normalised tensors, as a checkpoint expects them, and the view that maps their pixels to the photo."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from vitbackbone.images.colours import grey
from vitbackbone.images.decode import Photo
from vitbackbone.images.errors import ImageError
from vitbackbone.images.errors import TooThin as TooThin
from vitbackbone.images.fitted_sizes import FITTED
from vitbackbone.images.resize import Interpolation, ResizeLibrary, resized_crop
from vitbackbone.images.sources import ImageSource, naming, open_image
from vitbackbone.images.view import Resolution, View, check_area, sides

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
BYTES = 255.0  # the largest value of a byte
MOST_CROP = 2.0  # largest `crop_pct`; with a larger one, the photo would fill less than a quarter of the input

CropMode = Literal[
    "center", "squash", "border", "letterbox", "pad", "patches", "area", "budget", "square", "canvas", "edges"
]
CropRounding = Literal["even", "down"]
Decoding = Literal["exact", "fast", "draft", "gpu"]

CHOICES = {
    "interpolation": Interpolation,
    "crop_mode": CropMode,
    "crop_rounding": CropRounding,
    "resampling": ResizeLibrary,
}


@runtime_checkable
class ImageTransform(Protocol):
    """An image to the input of a backbone, and the way back: `Preprocess`, or the transform of several backbones."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass, because a store's manifest holds its fields

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the result by default."""
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
    ) -> Shaped[Tensor, "C H W"]:
        """Return the pixels before they are normalised: a quarter of the bytes to send to another process."""
        ...

    def normalise(self, pixels: Shaped[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch C H W"]: ...

    def view(self, source: tuple[int, int], resolution: Resolution | None = None, keep_aspect: bool = False) -> View:
        """Return the view that `__call__` cuts out of a photo of (H, W) pixels, for `Geometry.through`."""
        ...


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform of a checkpoint: upright RGB, resize, crop, scale to [0, 1], normalise.

    With Pillow's resampling, the result equals timm's `create_transform(is_training=False)` for the same settings
    (timm/data/transforms_factory.py).

    `crop_mode`: how the photo is fitted to the input. The first four modes resize it to `image_size / crop_pct` and
    crop the centre. `"center"` keeps the aspect, so that the longer side is cropped more. `"squash"` ignores the
    aspect. `"border"` keeps the aspect and makes the longer side fit; the mean colour fills the rest. `"letterbox"`
    first puts a border of the mean colour around the photo, equal at opposite sides, so that the photo has the aspect
    of the crop. With `crop_pct=1` the whole photo is then seen, but for rounding to whole pixels (prismatic-vlms,
    prismatic/models/backbones/vision/base_vision.py, `LetterboxPad`; for square inputs the two are equal to the bit).
    `"pad"` resizes the longer side to the input and fills the right and bottom with the mean colour, as SAM does. Its
    border has whole levels, so that it differs from SAM's zeros by at most half a level of 255. The other modes show
    the whole photo with nearly its aspect, so that inputs differ in size. Both sides are multiples of `multiple`
    pixels. `"patches"` takes the largest scale at which the sides, rounded up, have at most `most_pixels` together
    (SigLIP 2 NaFlex). `"area"` rounds the photo's own sides to the nearest multiples, and scales it only if that has
    fewer than `least_pixels` or more than `most_pixels` (Qwen2-VL's `smart_resize`). `"budget"` takes the largest scale
    with `most_pixels`, and rounds the sides down (Gemma 4). `"square"` shrinks a photo that does not fit into a square
    of `most_pixels`, and rounds the sides up (Pixtral). `"canvas"` shrinks a photo of more than `most_pixels`, in
    patches of `least_pixels`, and fills the right and bottom with black (Kimi). `"edges"` bounds each side by the sides
    of squares of `least_pixels` and `most_pixels` (Idefics 2). A resolution (H, W) takes the place of `most_pixels`.

    `mean`, `std`, `scale`: one mean and deviation for each channel, of values divided by `scale`. A photo has bytes up
    to 255. Bands of other ranges, such as reflectances of 16 bits, need their own scale. They are resized in float32.

    `crop_pct`: above 1, `"center"` and `"squash"` leave a black border around the photo, as timm does for VOLO.

    `resampling`: the library whose filters resize. `"pillow"` is used by timm and most authors of checkpoints.
    `"torchvision"` is used by transformers by default since version 5. The two differ by 1 or 2 levels of 255 where a
    photo shrinks, and by up to 20 where it is enlarged bicubically. To change it, call
    `dataclasses.replace(backbone.preprocess, resampling="torchvision")`.

    `crop_rounding`: how half a pixel of the crop's offset is rounded: `"even"` as by timm and torchvision, `"down"` as
    by transformers.

    `unseen`: the rows and columns that are cut off at the bottom and right of the crop, because they fill no whole
    patch and upstream's network drops them: SigLIP with patches of 14 sees 378 of 384 pixels. A `resolution` is not
    cut.

    Raises `ValueError` on a setting that is not one of these.
    """

    image_size: tuple[int, int] = (224, 224)  # (H, W)
    crop_pct: float = 0.875
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN  # of each channel
    std: tuple[float, ...] = IMAGENET_STD
    crop_rounding: CropRounding = "even"
    resampling: ResizeLibrary = "pillow"
    multiple: int = 1  # modes that keep the aspect: both sides of an input are multiples of this
    least_pixels: int = 0  # "area", "edges": pixels of the smallest input; "canvas": pixels of a patch
    most_pixels: int = 0  # modes that keep the aspect: pixels of the largest input
    scale: float = BYTES  # the stored value that is 1 before the mean is subtracted
    unseen: tuple[int, int] = (0, 0)  # rows and columns of the crop beyond `image_size`

    def __post_init__(self) -> None:
        if not 0 < self.crop_pct <= MOST_CROP:
            raise ValueError(f"Preprocess: crop_pct must be above 0 and at most {MOST_CROP}, got {self.crop_pct}")
        if self.crop_mode in ("pad", *FITTED) and self.crop_pct != 1:
            raise ValueError(
                f"Preprocess: crop_mode={self.crop_mode!r} crops nothing; want crop_pct=1, got {self.crop_pct}"
            )
        self._check_budget()
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"Preprocess: mean has {len(self.mean)} values and std has {len(self.std)}; want one of each a channel"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or 0 in self.std:
            raise ValueError(f"Preprocess: mean={self.mean}, std={self.std}; want finite numbers, and no 0 in std")
        if min(self.image_size) < 1:
            raise ValueError(f"Preprocess: image_size={self.image_size}; want at least one pixel")
        if min(self.unseen) < 0 or (self.crop_mode in FITTED and any(self.unseen)):
            raise ValueError(f"Preprocess: unseen={self.unseen} with crop_mode={self.crop_mode!r}; want (0, 0)")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"Preprocess: scale must be above 0, got {self.scale}")
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                wanted = ", ".join(get_args(kind))
                raise ValueError(f"Preprocess: unknown {name}: {getattr(self, name)!r}; want one of {wanted}")

    def _check_budget(self) -> None:
        budget = self.multiple, self.least_pixels, self.most_pixels
        if self.crop_mode not in FITTED:
            if budget != (1, 0, 0):
                raise ValueError(
                    f"Preprocess: multiple, least_pixels and most_pixels belong to crop_mode={', '.join(FITTED)}, got "
                    f"{self.crop_mode!r}"
                )
        elif not (self.multiple >= 1 and 0 <= self.least_pixels <= self.most_pixels >= self.multiple**2):
            raise ValueError(
                f"Preprocess: multiple={self.multiple}, least_pixels={self.least_pixels} and most_pixels="
                f"{self.most_pixels}; want at least 1, and room for multiple x multiple pixels"
            )

    def __call__(
        self,
        image: ImageSource,
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "C H W"]:
        """Turn an image into a float32 tensor (C, H, W), with a channel for each value of `mean`.

        `image`: a path, the bytes of a file, a binary file object, a PIL image, a uint8 array (H, W, 3) or (H, W), or a
        uint8 tensor (3, H, W). All give the same result. One channel is the grey of Pillow's `convert("L")`. For any
        other number, want a TIFF file, an array (H, W, C) or a tensor (C, H, W) with these channels; see `scale`.
        `resolution`: the input size in pixels, a side or (H, W); by default the checkpoint's own.
        `keep_aspect`: keep the whole photo, without a crop or a border. Its shorter side becomes the resolution; with
        (H, W), the photo becomes just large enough to cover that.
        `max_pixels`: the most pixels that a photo may have; `PIL.Image.MAX_IMAGE_PIXELS` by default.

        Raises `OSError` on a file that cannot be opened, and `ImageError`, a `ValueError`, on one that is not an image.
        """
        return self.normalise(self.pixels(open_image(image, max_pixels, self.channels), resolution, keep_aspect))

    def batch(
        self,
        images: Sequence[ImageSource],
        resolution: Resolution | None = None,
        keep_aspect: bool = False,
        max_pixels: int | None = None,
    ) -> Float[Tensor, "B C H W"]:
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
    ) -> Shaped[Tensor, "C H W"]:
        """Return the pixels (3, H, W) that `__call__` makes of the photo, before they are normalised.

        `decoding`: "exact" gives them to the bit. "fast" is within 1 of 255 (rarely 2), which moves features by about
        1e-4. "draft" also decodes a JPEG at the lowest of its scales that is at least twice the resized photo, which
        differs visibly. "gpu" lets a GPU decode JPEGs, which differs beside coloured edges: see `gpu.py`.
        Raises `ImageError` on a photo that cannot be read, or that is too long and thin.
        """
        view = self.view(photo.size, resolution, keep_aspect)
        check_area(view, photo.max_pixels)
        return self.cut(self.decoded(photo, view, decoding), view, decoding == "exact")

    def decoded(self, photo: Photo, view: View, decoding: Decoding) -> Shaped[Tensor, "C h w"]:
        """Decode the photo's channels. Raises `ImageError` if bands are not bytes but `scale` is 255."""
        if self.channels in (1, 3):
            rgb = photo.decode(enough(view) if decoding == "draft" else None, decoding == "gpu")
            return rgb if self.channels == 3 else grey(rgb)
        bands = photo.bands(self.channels)
        if bands.dtype != torch.uint8 and self.scale == BYTES:
            raise ImageError(
                "the bands are not bytes, so their range is unknown; set the value that stands for 1, such as "
                "dataclasses.replace(backbone.preprocess, scale=10000.0) for Sentinel-2's reflectances"
            )
        return bands

    def cut(self, rgb: Shaped[Tensor, "C h w"], view: View, exact: bool) -> Shaped[Tensor, "C H W"]:
        """Cut the view out of a decoded photo. A photo that was decoded at a lower scale is resized by less."""
        if view.pad != (0, 0):
            rgb = _expand(rgb, view, self.border)
        top, left = (max(first, 0) for first in view.offset)
        bottom, right = (min(o + n, r) for o, n, r in zip(view.offset, view.size, view.resized, strict=True))
        inside = bottom - top, right - left
        picture = resized_crop(rgb, view.resized, (top, left), inside, self.interpolation, exact, self.resampling)
        return picture if inside == view.size else self._filled(picture, view)

    def _filled(self, picture: Shaped[Tensor, "C h w"], view: View) -> Shaped[Tensor, "C H W"]:
        """Place a picture into a view that is larger. The mean colour in whole levels, or black, fills the rest."""
        colour = [0.0] * self.channels
        if self.crop_mode in ("border", "pad"):
            colour = [max(round(self.scale * value), 0) for value in self.mean]
            colour = [min(value, 255) for value in colour] if picture.dtype == torch.uint8 else colour
        filled = torch.tensor(colour).to(picture.dtype).view(-1, 1, 1).repeat(1, *view.size)
        top, left = (max(-first, 0) for first in view.offset)
        filled[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
        return filled

    def normalise(self, pixels: Shaped[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch C H W"]:
        """Divide pixels by `scale` and normalise them, in float32, on their device."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pixels.float() / self.scale).sub_(mean).div_(std)

    @property
    def channels(self) -> int:
        """The number of channels of the result."""
        return len(self.mean)

    @property
    def border(self) -> tuple[int, ...]:
        """Colour of a letterbox's border, which is the mean in stored values."""
        return tuple(int(self.scale * value) for value in self.mean)

    def view(self, source: tuple[int, int], resolution: Resolution | None = None, keep_aspect: bool = False) -> View:
        """Return the view that `__call__` cuts out of a photo of (H, W) pixels, for `Geometry.through`.

        Raises `ValueError` on a resolution that is not a size.
        """
        size = self.image_size if resolution is None else sides(resolution)
        if keep_aspect:
            resized = _cover(source, size)
            return View(source, resized, (0, 0), resized)
        if self.crop_mode in FITTED:
            most = self.most_pixels if resolution is None else math.prod(size)
            resized = FITTED[self.crop_mode](source, self.multiple, min(self.least_pixels, most), most)
            height, width = (-(-side // self.multiple) * self.multiple for side in resized)
            return View(source, resized, (0, 0), (height, width))
        crop = self.crop if resolution is None else size
        if self.crop_mode == "pad":
            return View(source, _inside(source, crop), (0, 0), size)
        pad = _border(source, crop) if self.crop_mode == "letterbox" else (0, 0)
        padded = source[0] + 2 * pad[0], source[1] + 2 * pad[1]
        scaled = self.scaled(crop)
        if self.crop_mode == "border":
            resized = _longest(source, scaled)
        else:
            resized = scaled if self.crop_mode == "squash" else _cover(padded, scaled)
        return View(source, resized, (self._offset(resized[0], crop[0]), self._offset(resized[1], crop[1])), size, pad)

    @property
    def crop(self) -> tuple[int, int]:
        """(H, W) of the default crop. The network sees its first `image_size` pixels."""
        return self.image_size[0] + self.unseen[0], self.image_size[1] + self.unseen[1]

    def in_patches(self, patch: int) -> "Preprocess":
        """Return the transform whose result is cut to whole patches, as a network sees it that drops the rest."""
        height, width = self.image_size
        unseen = height % patch, width % patch
        if self.crop_mode in FITTED or not any(unseen) or min(height, width) < patch:
            return self
        return replace(self, image_size=(height - unseen[0], width - unseen[1]), unseen=unseen)

    def _offset(self, resized: int, side: int) -> int:
        """Return the first row or column of the centre. It is negative where the photo is smaller than the input."""
        if self.crop_rounding == "down":
            return (resized - side) // 2
        return round((resized - side) / 2) if resized >= side else -((side - resized) // 2)

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (H, W) divided by `crop_pct`. The rounding of `crop_pct` itself must not cost a pixel."""
        height, width = (max(math.floor(side / self.crop_pct + 1e-6), 1) for side in size)
        return height, width


def enough(view: View) -> tuple[int, int]:
    """Return the least size (h, w) of a photo that is decoded at a lower scale: twice its size after resizing."""
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
) -> Float[Tensor, "B C H W"]:
    """Preprocess images and stack them. See `Preprocess.batch`."""
    made = prepare_images(preprocess, images, resolution, keep_aspect, max_pixels)
    sizes = {tuple(image.shape[1:]) for image in made}
    if len(sizes) > 1:
        raise ValueError(
            f"the images have {len(sizes)} sizes after preprocessing, such as {min(sizes)} and {max(sizes)}; want one "
            "size. Leave keep_aspect out, or pass a list of single images to the backbone"
        )
    return torch.stack(made)


def prepare_images(
    preprocess: ImageTransform,
    images: Sequence[ImageSource],
    resolution: Resolution | None,
    keep_aspect: bool,
    max_pixels: int | None,
    first: int = 0,
) -> list[Float[Tensor, "C H W"]]:
    """Preprocess images one by one. `first`: the number of the first image in errors.

    Raises `ImageError`, naming the image that cannot be read, and `ValueError` if there is none.
    """
    if isinstance(images, str | bytes) or not hasattr(images, "__len__"):
        raise ValueError(f"images is a {type(images).__name__}; want a list of images")
    if not len(images):
        raise ValueError("images is empty; want at least one")
    made = []
    for index, image in enumerate(images, first):
        with naming(index, image):
            made.append(preprocess(image, resolution, keep_aspect, max_pixels))
    return made


def _expand(rgb: Shaped[Tensor, "C h w"], view: View, colour: tuple[int, ...]) -> Shaped[Tensor, "C H W"]:
    """Put a border around a photo. It is scaled down with a photo that was decoded at a lower scale."""
    vertical, horizontal = (
        round(pad * size / source) for pad, size, source in zip(view.pad, rgb.shape[1:], view.source, strict=True)
    )
    height, width = rgb.shape[1:]
    padded = torch.tensor(colour).to(rgb.dtype).expand(height + 2 * vertical, width + 2 * horizontal, -1)
    padded = padded.contiguous().permute(2, 0, 1)  # channels last, as the decoders return
    padded[:, vertical : vertical + height, horizontal : horizontal + width] = rgb
    return padded


def _cover(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size with the aspect of `source` that covers `target`.

    It is rounded as by torchvision's Resize for a square target, and as by timm's ResizeKeepRatio for another.
    """
    if target[0] == target[1]:
        short, long = min(source), max(source)
        scaled = int(target[0] * long / short)
        return (target[0], scaled) if source[0] <= source[1] else (scaled, target[0])
    ratio = min(source[0] / target[0], source[1] / target[1])
    return round(source[0] / ratio), round(source[1] / ratio)


def _longest(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size with the aspect of `source` that fits into `target`, rounded as by timm."""
    ratio = max(source[0] / target[0], source[1] / target[1])
    return max(round(source[0] / ratio), 1), max(round(source[1] / ratio), 1)


def _inside(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size with the aspect of `source` that fits into `target`, rounded as by SAM."""
    scale = min(target[0] / source[0], target[1] / source[1])
    height, width = (max(int(side * scale + 0.5), 1) for side in source)
    return min(height, target[0]), min(width, target[1])


def _border(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the rows above and below, and the columns left and right, that give a photo the aspect of `target`.

    An odd difference leaves the photo a pixel short of it, as in prismatic-vlms.
    """
    height = max(source[0], source[1] * target[0] // target[1])
    width = max(source[1], source[0] * target[1] // target[0])
    return (height - source[0]) // 2, (width - source[1]) // 2
