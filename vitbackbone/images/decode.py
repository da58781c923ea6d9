"""The bytes of an image file to an upright RGB picture: what Pillow makes of them, by torchvision where that is faster.

This is the one gate for images: every command, `extract` and the Python API read through `Photo`. A format is found by
the content of a file and is one of `signature.FORMATS`.

Axes: `H W` pixels of the photo, `h w` of a picture that may be decoded at a lower scale.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from threading import Lock

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile
from torch import Tensor

from vitbackbone.images.colours import to_rgb
from vitbackbone.images.errors import DamagedImage, ImageError, MissingDecoder, TooManyPixels
from vitbackbone.images.jxl_header import jxl_size
from vitbackbone.images.metadata import read_orientation, without_metadata
from vitbackbone.images.signature import FORMATS as FORMATS
from vitbackbone.images.signature import image_format
from vitbackbone.images.tiff import decode_tiff
from vitbackbone.images.tiff_directory import count_pages, read_layout

# The module that registers each decoder with Pillow, and the extra that installs it
DECODERS: dict[str, tuple[str, str]] = {
    "JPEG": ("PIL.JpegImagePlugin", ""),
    "PNG": ("PIL.PngImagePlugin", ""),
    "WEBP": ("PIL.WebPImagePlugin", ""),
    "BMP": ("PIL.BmpImagePlugin", ""),
    "GIF": ("PIL.GifImagePlugin", ""),
    "PPM": ("PIL.PpmImagePlugin", ""),
    "AVIF": ("PIL.AvifImagePlugin", ""),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", ""),
    "HEIF": ("pillow_heif.as_plugin", "heif"),
    "JXL": ("pillow_jxl", "jxl"),
}

# (format, mode) that torchvision decodes to the same bits as Pillow. MPO is a JPEG with more pictures behind it. CMYK
# is left to Pillow, and so are PNG and WebP, whose alpha and 16 bits torchvision reads in another way.
TORCHVISION = {("JPEG", "RGB"), ("JPEG", "L"), ("MPO", "RGB"), ("MPO", "L")}

SEVERAL = ("GIF", "WEBP", "PNG", "MPO", "AVIF", "HEIF")  # formats of files that may hold more than one picture
LEAST_FRAME = 8  # bytes that a frame takes at least, in any format

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

_raised = Lock()


class Photo:
    """An image file whose header has been read: its size is known, its pixels are decoded when they are asked for.

    `data`: the bytes of the file, of one of `signature.FORMATS`. The first of several frames counts.
    `max_pixels`: the most pixels that are decoded; `PIL.Image.MAX_IMAGE_PIXELS` by default.

    Damaged metadata is dropped and costs no pixels. Raises `ImageError`, a `ValueError`, on what cannot be read: see
    `errors`. Warns of nothing.
    """

    size: tuple[int, int]  # (H, W) in pixels, upright

    def __init__(self, data: bytes, max_pixels: int | None = None) -> None:
        if max_pixels is not None and max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1, got {max_pixels}")
        self.max_pixels = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
        self._data, self._kind = data, image_format(data)
        self._orientation = 1
        with as_image_errors():
            if self._kind == "TIFF":
                self._layout = read_layout(data)
                self._orientation = self._layout.orientation
                stored = self._layout.height, self._layout.width
            else:
                self._image = self._open()
                self._orientation = self._read_orientation()
                stored = self._image.size[::-1]
            self._check_size(*stored)
        self.size = stored[::-1] if self._sideways else stored

    def decode(self, at_least: tuple[int, int] | None = None) -> UInt8[Tensor, "3 h w"]:
        """The picture that `load_image` makes of the same file, to the bit. To be called once.

        `at_least`: (h, w) that are enough. A JPEG is then decoded at the lowest of its scales 1, 1/2, 1/4 and 1/8 that
        gives as much: faster, and visibly different. Other formats come out whole.
        Raises `ImageError` on a damaged file, such as a truncated one.
        """
        with as_image_errors(), self._pillows_limit():
            picture = self._decode_tiff() if self._kind == "TIFF" else self._decode(at_least)
        sideways, reverse = ORIENTATIONS[self._orientation]
        return (picture.transpose(1, 2) if sideways else picture).flip(reverse)

    def frames(self) -> int:
        """How many pictures the file holds. Those of a GIF or a TIFF are sought through.

        Raises `ImageError` on a damaged file.
        """
        with as_image_errors():
            if self._kind == "TIFF":
                return count_pages(self._data)
            if self._image.format not in SEVERAL:
                return 1
            # Opened anew, as a picture that was loaded may have let go of its file.
            count = int(getattr(self._open_whole(self._data), "n_frames", 1))
        if count > max(1, len(self._data) // LEAST_FRAME):
            raise DamagedImage(f"the file says that it has {count} frames, more than its bytes can hold")
        return count

    @property
    def _sideways(self) -> bool:
        return ORIENTATIONS[self._orientation][0]

    def _check_size(self, height: int, width: int) -> None:
        if self.max_pixels is not None and height * width > self.max_pixels:
            raise TooManyPixels(
                f"{width} x {height} pixels are more than the limit of {self.max_pixels}, which keeps decompression "
                "bombs out; for a photo that you trust, raise max_pixels (--max-pixels)"
            )

    def _open(self) -> ImageFile.ImageFile:
        """Open the file, without its metadata if that is in the way."""
        if self._kind == "JXL":  # its decoder does not wait
            self._check_size(*jxl_size(self._data))
        try:
            return self._open_whole(self._data)
        except ImageError:
            raise
        except Exception:
            stripped = without_metadata(self._data, self._kind)
            if stripped is None:
                raise
            return self._open_whole(stripped)

    def _open_whole(self, data: bytes) -> ImageFile.ImageFile:
        with self._pillows_limit():
            return _factory(self._kind)(BytesIO(data), "")

    def _read_orientation(self) -> int:
        """1 where the decoder turns the picture itself. The EXIF of HEIF and JPEG XL is not to be followed."""
        turned = self._kind == "HEIF" or (self._kind == "JXL" and not getattr(self._image, "jpeg", False))
        return 1 if turned else read_orientation(self._image, self._data)

    def _decode(self, at_least: tuple[int, int] | None) -> UInt8[Tensor, "3 h w"]:
        """The picture as it is stored."""
        scaled = at_least is not None and self._draft(at_least)
        picture = None if scaled else self._by_torchvision()
        return self._by_pillow() if picture is None else picture

    def _by_pillow(self) -> UInt8[Tensor, "3 h w"]:
        try:
            return _tensor(to_rgb(self._image))
        except ImageError:
            raise
        except Exception:
            stripped = without_metadata(self._data, self._kind)
            if stripped is None:
                raise
            return _tensor(to_rgb(self._open_whole(stripped)))

    def _decode_tiff(self) -> UInt8[Tensor, "3 h w"]:
        return _tensor(decode_tiff(self._data, self._layout))

    def _draft(self, at_least: tuple[int, int]) -> bool:
        """Whether Pillow will decode at a lower scale."""
        whole, (height, width) = self._image.size, at_least
        self._image.draft(None, (height, width) if self._sideways else (width, height))
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

    @contextmanager
    def _pillows_limit(self) -> Iterator[None]:
        """Lift Pillow's own limit where `max_pixels` is above it. One at a time, as it is the process's."""
        limit = Image.MAX_IMAGE_PIXELS
        if limit is None or (self.max_pixels is not None and self.max_pixels <= limit):
            yield
            return
        with _raised:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                yield
            finally:
                Image.MAX_IMAGE_PIXELS = before


def _factory(kind: str) -> Callable[[BytesIO, str], ImageFile.ImageFile]:
    """What opens files of a format. Pillow's `open` would try others too."""
    module, extra = DECODERS[kind]
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingDecoder(
            f"images of the format {kind} are read by {name}, which is not installed; run pip install "
            f"'vitbackbone[{extra}]'"
        ) from error
    if kind == "HEIF":
        return plugin.HeifImageFile
    if kind in ("AVIF", "WEBP") and not plugin.SUPPORTED:
        raise MissingDecoder(f"this build of Pillow has no decoder for {kind}; install Pillow 11.3 or later from PyPI")
    factory, _ = Image.OPEN[kind]
    return factory


def _tensor(rgb: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


@contextmanager
def as_image_errors() -> Iterator[None]:
    """Whatever the decoders raise comes out as an `ImageError`: they have no error type in common, and 78,000 damaged
    files raised eleven. Warnings of odd metadata, photo after photo, would drown a progress bar."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except MemoryError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooManyPixels(str(error)) from error
        except Exception as error:
            raise DamagedImage(str(error) or type(error).__name__) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of decoders written in Rust; it is no `Exception`
                raise
            raise DamagedImage(str(error)) from error
