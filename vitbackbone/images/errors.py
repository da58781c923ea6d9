"""Why an image cannot be read: one family of errors, for every reader."""

from typing import ClassVar, Literal

from PIL import UnidentifiedImageError

ImageReason = Literal["unknown format", "bomb", "damaged", "unsupported", "too thin"]


class ImageError(ValueError):
    """An image that cannot be read. `reason` is one word of the feature store's index."""

    reason: ClassVar[ImageReason] = "damaged"


class DamagedImage(ImageError, OSError):
    """A file of a known format whose pixels cannot be decoded, such as a truncated one."""


class UnknownFormat(ImageError, UnidentifiedImageError):
    """Bytes of no format that is read here."""

    reason = "unknown format"


class TooManyPixels(ImageError):
    """An image with more pixels than the limit, by its header. Nothing was decoded."""

    reason = "bomb"


class UnsupportedPixels(ImageError):
    """A whole image with values that have no agreed meaning as 8-bit colours."""

    reason = "unsupported"


class MissingDecoder(ImageError):
    """An image of a format whose decoder is not installed. The text names the extra to install."""

    reason = "unsupported"


class TooThin(ImageError):
    """A photo that is so long and thin that its resized version would be huge."""

    reason = "too thin"
