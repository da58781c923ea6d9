"""The bytes of an image file to an upright RGB picture, with Pillow's pixels.

Every command, `extract` and the Python API read images through `Photo`. The decoders of `fast` serve where they give
the same pixels.

Axes: `H W` pixels of the photo, `h w` of a picture that may be decoded at a lower scale.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from io import BytesIO
from numbers import Integral
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageFile
from torch import Tensor

from vitbackbone.images.colours import to_rgb
from vitbackbone.images.errors import DamagedImage, ImageError, MissingDecoder, TooManyPixels
from vitbackbone.images.fast import decode_fast
from vitbackbone.images.gpu import decode_on_gpu
from vitbackbone.images.jxl_header import jxl_size
from vitbackbone.images.metadata import read_orientation, without_metadata
from vitbackbone.images.signature import FORMATS as FORMATS
from vitbackbone.images.signature import image_format
from vitbackbone.images.tiff import decode_bands, decode_tiff
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

SEVERAL = ("GIF", "WEBP", "PNG", "MPO", "AVIF", "HEIF")  # formats whose files may hold several pictures
LEAST_FRAME = 8  # least bytes of a frame, in any format

# EXIF orientation: whether rows and columns are swapped, and the axes of (3, H, W) that are reversed afterwards
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
    """An image file whose header has been read. Its size is known; its pixels are decoded on demand.

    `data`: the bytes of the file. Its content, not its name, tells the format, one of `signature.FORMATS`. If the file
    has several frames, the first one is the photo.
    `max_pixels`: the most pixels that are decoded; `PIL.Image.MAX_IMAGE_PIXELS` by default.

    Damaged metadata is ignored. Raises `ImageError`, a `ValueError`, on a file that cannot be read, and `ValueError` on
    a limit below 1. The warnings of the decoders are silenced.
    """

    size: tuple[int, int]  # (H, W) in pixels, upright
    _orientation = 1  # EXIF's

    def __init__(self, data: bytes, max_pixels: int | None = None) -> None:
        self.max_pixels = limit_of(max_pixels)
        self._data, self._kind = data, image_format(data)
        with as_image_errors():
            if self._kind == "TIFF":
                self._layout = read_layout(data)
                stored = self._layout.height, self._layout.width
            else:
                self._image = self._open()
                stored = self._image.size[::-1]
            self._check_size(*stored)  # first, because Pillow decodes a whole PNG to look for an orientation
            self._orientation = self._layout.orientation if self._kind == "TIFF" else self._read_orientation()
        self.size = stored[::-1] if self._sideways else stored

    def decode(self, at_least: tuple[int, int] | None = None, on_gpu: bool = False) -> UInt8[Tensor, "3 h w"]:
        """Return the upright picture (3, h, w), equal to the result of `load_image` to the bit. Call it once.

        `at_least`: a size (h, w) that is large enough. A JPEG is then decoded at the lowest of its scales 1, 1/2, 1/4
        and 1/8 that is not smaller. This is faster, and visibly different. Other formats are decoded at full size.
        `on_gpu`: a GPU decodes a JPEG, which gives other pixels: see `gpu.py`.
        Raises `ImageError` on a damaged file, such as a truncated one.
        """
        with as_image_errors(), self._pillows_limit():
            picture = self._decode_tiff() if self._kind == "TIFF" else self._decode(at_least, on_gpu)
        return _upright(picture, self._orientation)

    def bands(self, count: int) -> Shaped[Tensor, "C h w"]:
        """Return the upright picture with `count` channels as they are stored, as bytes or float32. Only TIFF has them.

        Raises `ImageError` if the file has another number, or values that float32 does not hold, and as `decode` does.
        """
        if self._kind != "TIFF" or len(self._layout.bits) != count:
            found = f"{len(self._layout.bits)} bands" if self._kind == "TIFF" else f"the colours of a {self._kind}"
            raise ImageError(f"the image has {found}; want {count}: a TIFF file, an array (H, W, {count}) or a tensor")
        with as_image_errors():
            stored = stored_bands(torch.from_numpy(np.moveaxis(decode_bands(self._data, self._layout), 2, 0).copy()))
        return _upright(stored, self._orientation)

    def frames(self) -> int:
        """Count the pictures of the file. A GIF or a TIFF is searched to its end.

        Raises `ImageError` on a damaged file.
        """
        with as_image_errors():
            if self._kind == "TIFF":
                return count_pages(self._data)
            if self._image.format not in SEVERAL:
                return 1
            # A loaded picture may have closed its file, so open it again.
            count = int(getattr(self._open_whole(self._data), "n_frames", 1))
        if count > max(1, len(self._data) // LEAST_FRAME):
            raise DamagedImage(f"the file says that it has {count} frames, more than its bytes can hold")
        return count

    def as_stored(self) -> "Photo":
        """Return this photo without its EXIF orientation. Decode either of the two."""
        stored = copy(self)
        stored._orientation, stored.size = 1, self.size[::-1] if self._sideways else self.size
        return stored

    @property
    def _sideways(self) -> bool:
        return ORIENTATIONS[self._orientation][0]

    def _check_size(self, height: int, width: int) -> None:
        if not height or not width:
            raise DamagedImage(f"{width} x {height} pixels; want at least one")
        if self.max_pixels is not None and height * width > self.max_pixels:
            raise TooManyPixels(
                f"{width} x {height} pixels are more than the limit of {self.max_pixels}, which guards against "
                "decompression bombs; for a photo that you trust, raise max_pixels (--max-pixels)"
            )

    def _open(self) -> ImageFile.ImageFile:
        """Open the file. If that fails, open it without its metadata."""
        if self._kind == "JXL":  # its decoder decodes the pixels at once
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
        """Read the EXIF orientation. It is 1 for HEIF and JPEG XL, whose decoders turn the picture themselves."""
        turned = self._kind == "HEIF" or (self._kind == "JXL" and not getattr(self._image, "jpeg", False))
        return 1 if turned else read_orientation(self._image, self._data)

    def _decode(self, at_least: tuple[int, int] | None, on_gpu: bool) -> UInt8[Tensor, "3 h w"]:
        """Decode the picture as it is stored."""
        scaled = at_least is not None and self._draft(at_least)
        assert self._image.format is not None  # it was opened from a file
        kind, size = (self._image.format, self._image.mode), self._image.size[::-1]
        decoders = (decode_on_gpu, decode_fast) if on_gpu else (decode_fast,)
        for decode in () if scaled else decoders:
            picture = decode(self._data, kind, size)
            if picture is not None:
                return picture
        return self._by_pillow()

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
        """Ask Pillow for a lower scale, and tell whether it will decode at one."""
        whole, (height, width) = self._image.size, at_least
        self._image.draft(None, (height, width) if self._sideways else (width, height))
        return self._image.size != whole

    @contextmanager
    def _pillows_limit(self) -> Iterator[None]:
        """Lift Pillow's own limit if `max_pixels` is above it. It is global, so one thread lifts it at a time."""
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


def _upright(stored: Shaped[Tensor, "C h w"], orientation: int) -> Shaped[Tensor, "C H W"]:
    """Turn a picture by its EXIF orientation. An upright picture is not copied, because a copy
    would take 4 % of the time of its decoding."""
    sideways, reverse = ORIENTATIONS[orientation]
    turned = stored.transpose(1, 2) if sideways else stored
    return turned.flip(reverse) if reverse else turned


def limit_of(max_pixels: int | None) -> int | None:
    """Return the most pixels that are decoded: Pillow's limit by default, and None if that is lifted.

    Raises `ValueError` on a limit that is not a whole number of at least 1.
    """
    given: Any = max_pixels  # callers without a type checker pass anything
    if given is None:
        return Image.MAX_IMAGE_PIXELS
    if isinstance(given, bool) or not isinstance(given, Integral) or int(given) < 1:
        raise ValueError(f"max_pixels must be at least 1, got {given!r}; want a whole number")
    return int(given)


def _factory(kind: str) -> Callable[[BytesIO, str], ImageFile.ImageFile]:
    """Return the class or function that opens files of a format. Pillow's `open` would try other formats too."""
    module, extra = DECODERS[kind]
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingDecoder(
            f"{kind} images need {name}, which is not installed; run pip install 'vitbackbone[{extra}]'"
        ) from error
    if kind == "HEIF":
        return plugin.HeifImageFile
    if kind in ("AVIF", "WEBP") and not plugin.SUPPORTED:
        raise MissingDecoder(f"this build of Pillow has no decoder for {kind}; install Pillow 11.3 or later from PyPI")
    factory, _ = Image.OPEN[kind]
    return factory


def stored_bands(pixels: Shaped[Tensor, "C h w"]) -> Shaped[Tensor, "C h w"]:
    """Return bands as bytes, or as float32 that holds each value. Raises `ImageError` on any other type."""
    if pixels.dtype == torch.uint8:
        return pixels
    exact = (torch.int8, torch.int16, torch.uint16, torch.float16, torch.float32)
    if pixels.dtype not in exact:
        kind = str(pixels.dtype).removeprefix("torch.")
        raise ImageError(f"the bands are {kind}; want integers of 8 or 16 bits, or floats of 16 or 32")
    wide = pixels.to(torch.float32)
    if not torch.isfinite(wide).all():
        raise ImageError("the bands have values that are not finite numbers; fill the places without data first")
    return wide


def _tensor(rgb: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


@contextmanager
def as_image_errors() -> Iterator[None]:
    """Turn every error of the decoders into an `ImageError`, and silence their warnings.

    The decoders share no error type: 78,000 damaged files raised eleven types. Their warnings about odd metadata would
    drown a progress bar.
    """
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
            if type(error).__name__ != "PanicException":  # raised by decoders in Rust; it is no `Exception`
                raise
            raise DamagedImage(str(error)) from error
