"""Errors of images that cannot be read. Every reader raises these."""

from typing import ClassVar, Literal

from PIL import UnidentifiedImageError

ImageReason = Literal["unknown format", "bomb", "damaged", "unsupported", "too thin"]


class ImageError(ValueError):
    """An image that cannot be read. `reason` is the word that the index of a feature store holds for it."""

    reason: ClassVar[ImageReason] = "damaged"


class DamagedImage(ImageError, OSError):
    """A file of a known format whose pixels cannot be decoded, such as a truncated one."""


class UnknownFormat(ImageError, UnidentifiedImageError):
    """Bytes of a format that is not supported, or of no image at all."""

    reason = "unknown format"


class TooManyPixels(ImageError):
    """An image whose header says that it has more pixels than the limit. Nothing was decoded."""

    reason = "bomb"


class UnsupportedPixels(ImageError):
    """An undamaged image whose values have no agreed meaning as 8-bit colours."""

    reason = "unsupported"


class MissingDecoder(ImageError):
    """An image whose decoder is not installed. The message names the extra to install."""

    reason = "unsupported"


class TooThin(ImageError):
    """A photo that is so long and thin that it would be huge after resizing."""

    reason = "too thin"
