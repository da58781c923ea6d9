"""The bytes of an image file to an upright RGB picture: what Pillow makes of them, by torchvision where that is faster.

Axes: `H W` pixels of the photo, `h w` of a picture that may be decoded at a lower scale.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

ImageSource = str | PathLike[str] | Image.Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow's decoders that a file may choose from

# (format, mode) that torchvision decodes to the same bits as Pillow. MPO is a JPEG with more pictures behind it. CMYK
# is left to Pillow, and so are PNG and WebP, whose alpha and 16 bits torchvision reads in another way.
TORCHVISION = {("JPEG", "RGB"), ("JPEG", "L"), ("MPO", "RGB"), ("MPO", "L")}

SEVERAL = ("GIF", "TIFF", "WEBP", "PNG", "MPO")  # formats of files that may hold more than one picture

# EXIF orientation: whether rows and columns change places, and the axes of (3, H, W) that are reversed after that
ORIENTATIONS: dict[int, tuple[bool, tuple[int, ...]]] = {
    1: (False, ()),
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}

# What Pillow raises on damaged files: it has no one error type. 78,000 damaged files raised all of the first five.
DECODE_ERRORS = (
    OSError,  # truncated data; UnidentifiedImageError is one
    ValueError,
    SyntaxError,
    TypeError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    EOFError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
)


class UnsupportedPixels(ValueError):
    """An image that is whole, with values that have no agreed meaning as 8-bit colours."""


class Photo:
    """An image file whose header has been read: its size is known, its pixels are decoded when they are asked for.

    `data`: the bytes of the file, of one of `FORMATS`. Of several frames the first counts.
    Raises `OSError` (a `PIL.UnidentifiedImageError` among them) or `ValueError` on what cannot be read, and on a photo
    of more than `PIL.Image.MAX_IMAGE_PIXELS`, before anything is decoded. Warns of nothing.
    """

    size: tuple[int, int]  # (H, W) in pixels, upright

    def __init__(self, data: bytes) -> None:
        self._data = data
        with _readable():
            self._image = Image.open(BytesIO(data), formats=FORMATS)  # reads the header, and refuses bombs by it
            self._orientation = self._read_orientation()
        sideways, _ = ORIENTATIONS[self._orientation]
        width, height = self._image.size
        self.size = (width, height) if sideways else (height, width)

    def decode(self, at_least: tuple[int, int] | None = None) -> UInt8[Tensor, "3 h w"]:
        """The picture that `load_image` makes of the same file, to the bit. To be called once.

        `at_least`: (h, w) that are enough. A JPEG is then decoded at the lowest of its scales 1, 1/2, 1/4 and 1/8 that
        gives as much: faster, and visibly different. Other formats come out whole.
        Raises `OSError` or `ValueError` on a damaged file, a truncated one among them.
        """
        with _readable():
            scaled = at_least is not None and self._draft(at_least)
            picture = None if scaled else self._by_torchvision()
            if picture is None:
                # Pillow's transpositions would be as good; but formats such as TIFF turn themselves while they load.
                rgb = _to_rgb(ImageOps.exif_transpose(self._image))
                return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
        sideways, reverse = ORIENTATIONS[self._orientation]
        return (picture.transpose(1, 2) if sideways else picture).flip(reverse)

    def frames(self) -> int:
        """How many pictures the file holds. Those of a GIF or a TIFF are sought through.

        Raises `OSError` or `ValueError` on a damaged file.
        """
        if self._image.format not in SEVERAL:
            return 1
        with _readable():  # opened anew, as a picture that was loaded may have let go of its file
            return int(getattr(Image.open(BytesIO(self._data), formats=FORMATS), "n_frames", 1))

    def _read_orientation(self) -> int:
        found = self._image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in ORIENTATIONS else 1

    def _draft(self, at_least: tuple[int, int]) -> bool:
        """Whether Pillow will decode at a lower scale."""
        sideways, _ = ORIENTATIONS[self._orientation]
        whole, (height, width) = self._image.size, at_least
        self._image.draft(None, (height, width) if sideways else (width, height))
        return self._image.size != whole

    def _by_torchvision(self) -> UInt8[Tensor, "3 h w"] | None:
        """As it is stored, or None if Pillow has to do it, or to say what is wrong."""
        if (self._image.format, self._image.mode) not in TORCHVISION:
            return None
        try:
            from torchvision.io import ImageReadMode, decode_jpeg
        except ImportError:  # deprecated since torchvision 0.29, to be removed
            return None
        try:
            return decode_jpeg(torch.frombuffer(bytearray(self._data), dtype=torch.uint8), ImageReadMode.RGB)
        except RuntimeError:
            return None


def load_image(image: ImageSource) -> Image.Image:
    """An upright RGB image of the first frame.

    The EXIF orientation is applied. By mode: grey and palette images are expanded; alpha (LA, PA, RGBA, transparent
    palettes) is dropped and the stored colour kept, as timm, torchvision and transformers do; CMYK is converted
    without a colour profile; 16-bit grey (I;16, I) is scaled to 8 bits, not clipped. Float images (F) and 32-bit ones
    beyond 16 bits have no agreed range and raise `ValueError`.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(_upright(image))
    if not isinstance(image, str | PathLike):
        raise ValueError(f"image is a {type(image).__name__}; want a path or a PIL image")
    with _open(Path(image)) as opened:
        return _to_rgb(_upright(opened))


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError:
        raise
    except DECODE_ERRORS as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Decoded, with the EXIF orientation applied. Pillow's errors come out as `OSError` or `ValueError`."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, ValueError):
        raise
    except DECODE_ERRORS as error:
        raise ValueError(f"the image is damaged: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnsupportedPixels("a float image (mode F) has no agreed range; scale it to 8 or 16 bits first")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            span = f"{values.min()} to {values.max()}"
            raise UnsupportedPixels(f"a 32-bit image with values from {span}; scale it to 16 bits")
        image = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


@contextmanager
def _readable() -> Iterator[None]:
    """Pillow's errors come out as `OSError` or `ValueError`. Warnings of odd metadata, photo after photo, would
    drown a progress bar; Pillow's of a bomb is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchvision")  # of its decoders
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (OSError, ValueError):
            raise
        except DECODE_ERRORS as error:
            raise ValueError(str(error) or type(error).__name__) from error
