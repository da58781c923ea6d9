"""Images: files, bytes and arrays to normalised tensors, and back to the pixels of the photo."""

from vitbackbone.images.decode import Photo
from vitbackbone.images.errors import DamagedImage, ImageError
from vitbackbone.images.fitted_sizes import LONG
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
from vitbackbone.images.sources import HeldPhoto, ImageSource, load_image, open_image
from vitbackbone.images.video import Video, VideoStream, list_frames
from vitbackbone.images.video_files import VIDEO_EXTENSIONS, video_format
from vitbackbone.images.video_frames import FrameReader
from vitbackbone.images.video_sampling import Sampling
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
    "VIDEO_EXTENSIONS",
    "CropMode",
    "DamagedImage",
    "Decoding",
    "FrameReader",
    "HeldPhoto",
    "ImageError",
    "ImageSource",
    "ImageTransform",
    "Interpolation",
    "Photo",
    "Preprocess",
    "ResizeLibrary",
    "Resolution",
    "Sampling",
    "Video",
    "VideoStream",
    "View",
    "check_area",
    "enough",
    "image_format",
    "list_frames",
    "load_image",
    "open_image",
    "prepare_images",
    "sides",
    "stack_images",
    "video_format",
]
