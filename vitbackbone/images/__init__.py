"""Images: files, bytes and arrays to normalised tensors, and back to the pixels of the photo."""

from vitbackbone.images.decode import Photo
from vitbackbone.images.errors import ImageError
from vitbackbone.images.fits import LONG
from vitbackbone.images.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    CropMode,
    Decoding,
    ImageTransform,
    Preprocess,
    enough,
    prepare_images,
    stack_images,
)
from vitbackbone.images.resize import FILTERS, Interpolation, ResizeLibrary
from vitbackbone.images.signature import HEAD, image_format
from vitbackbone.images.sources import ImageSource, load_image, open_image
from vitbackbone.images.view import Resolution, View, check_area, sides

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "FILTERS",
    "HALF",
    "HEAD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LONG",
    "CropMode",
    "Decoding",
    "ImageError",
    "ImageSource",
    "ImageTransform",
    "Interpolation",
    "Photo",
    "Preprocess",
    "ResizeLibrary",
    "Resolution",
    "View",
    "check_area",
    "enough",
    "image_format",
    "load_image",
    "open_image",
    "prepare_images",
    "sides",
    "stack_images",
]
