"""Photos of datasets as the authors' code reads them."""

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vitbackbone.evaluation.datasets.layout import LayoutError
from vitbackbone.files import read_bytes

PHOTO_BYTES = 1 << 30


def open_photo(file: Path) -> Image.Image:
    """Return a photo in RGB as it is stored.

    Its EXIF orientation is not applied: no author's code applies it, and labels are drawn on the stored pixels.
    Raises `LayoutError` if it cannot be read.
    """
    return open_stored(file).convert("RGB")


def open_stored(file: Path) -> Image.Image:
    """Return a photo, a mask or a depth map in its own mode. Raises `LayoutError` if it cannot be read."""
    try:
        with Image.open(io.BytesIO(read_bytes(file, PHOTO_BYTES))) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is not an image of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise LayoutError(
            f"{file} cannot be read: {reason}. Put the file of the distribution in its place and run the command "
            "again; finished work is kept"
        ) from error
