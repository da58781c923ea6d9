"""Image sources: a path, bytes, a file object, a PIL image, an array or a tensor. Each is opened as a `Photo`.

Axes: `C` colours, `H W` pixels of the photo.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor

from vitbackbone.images.colours import to_rgb
from vitbackbone.images.decode import ORIENTATIONS, Photo, as_image_errors, limit_of, stored_bands
from vitbackbone.images.errors import DamagedImage, ImageError, TooManyPixels
from vitbackbone.images.metadata import read_orientation

Bytes = bytes | bytearray | memoryview


@runtime_checkable
class Readable(Protocol):
    """A binary file object."""

    def read(self, size: int = -1, /) -> bytes: ...


ImageSource = str | PathLike[str] | Bytes | Readable | Image.Image | NDArray[Any] | Tensor

WANTED = (
    "want a path, the bytes of a file, a binary file object, a PIL image, a uint8 array (H, W, 3) or (H, W), or a "
    "uint8 tensor (3, H, W), (1, H, W) or (H, W)"
)
MAX_FILE_BYTES = 2**30
STARTS_PROGRAMS = ("EPS", "WMF")  # formats of Pillow that another program or the system renders


def open_image(image: ImageSource, max_pixels: int | None = None, channels: int = 3) -> Photo:
    """Open an image source. The photo's size is known; its pixels are decoded on demand.

    `image`, `max_pixels`: as for `load_image`. `channels`: a number other than 1 and 3 also allows an array (H, W, C)
    or a tensor (C, H, W) of that many bands. They need not be bytes; `Photo.bands` reads them.
    Raises `OSError` on a file that cannot be opened, and `ImageError`, a `ValueError`, on one that is no image.
    """
    if isinstance(image, str | PathLike):
        return Photo(_read_file(Path(image)), max_pixels)
    if isinstance(image, bytes | bytearray | memoryview):
        return Photo(bytes(image), max_pixels)
    if isinstance(image, Image.Image):
        return _from_pil(image, max_pixels)
    if channels not in (1, 3) and isinstance(image, Tensor | np.ndarray):
        return HeldPhoto(_check_bands(image, channels), max_pixels)
    if isinstance(image, Tensor):
        return HeldPhoto(_check_tensor(image), max_pixels)
    if isinstance(image, np.ndarray):
        return HeldPhoto(torch.from_numpy(_check_array(image)).permute(2, 0, 1), max_pixels)
    if callable(getattr(image, "read", None)):
        return Photo(_read_all(image), max_pixels)
    raise ImageError(f"image is a {type(image).__name__}; {WANTED}")


def load_image(image: ImageSource, max_pixels: int | None = None) -> Image.Image:
    """Return the first frame as an upright RGB image.

    `image`: a path, the bytes of a file, a binary file object, a PIL image, a uint8 array (H, W, 3) or (H, W), or a
    uint8 tensor (3, H, W), (1, H, W) or (H, W).
    `max_pixels`: the most pixels that are decoded; `PIL.Image.MAX_IMAGE_PIXELS` by default.

    The EXIF orientation is applied if it can be read. Other metadata is ignored, also colour profiles.
    Grey and palette images are expanded to RGB. Alpha (LA, PA, RGBA, transparent palettes) is dropped and the stored
    colour kept, as timm, torchvision and transformers do. Premultiplied colours are divided by alpha first.
    CMYK is converted without a colour profile, and Lab to sRGB. Integers of more than 8 bits are scaled by their number
    of bits, not clipped. Float images, negative values and signed 32-bit values beyond 16 bits are refused, because
    their range is unknown.

    Raises `OSError` on a file that cannot be opened, and `ImageError`, a `ValueError`, on one that is no image.
    """
    pixels = open_image(image, max_pixels).decode()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


class HeldPhoto(Photo):
    """A photo whose pixels are already in memory, upright and in RGB, or in bands."""

    def __init__(self, pixels: Shaped[Tensor, "C H W"], max_pixels: int | None = None) -> None:
        self.max_pixels = limit_of(max_pixels)
        self.size = pixels.shape[1], pixels.shape[2]
        self._check_size(*self.size)
        self._pixels = pixels

    def decode(self, at_least: tuple[int, int] | None = None, on_gpu: bool = False) -> UInt8[Tensor, "3 H W"]:
        return self._pixels

    def bands(self, count: int) -> Shaped[Tensor, "C H W"]:
        if self._pixels.shape[0] != count:
            raise ImageError(f"the image has {self._pixels.shape[0]} channels; want {count}")
        return self._pixels

    def frames(self) -> int:
        return 1


def _read_file(path: Path) -> bytes:
    """Read a regular file. Raises `OSError` on any other: a pipe would block for ever, and a device may never end."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{path} is a directory; want an image file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is not a regular file; want an image file")
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError(f"{path} has {status.st_size} bytes; want an image of at most {MAX_FILE_BYTES}")
    return path.read_bytes()


def _read_all(file: Any) -> bytes:
    """Read a whole file object from its start, wherever it stands, as Pillow does."""
    if callable(getattr(file, "seek", None)) and getattr(file, "seekable", lambda: True)():
        file.seek(0, os.SEEK_SET)
    data = file.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(f"image is a file object that gives {type(data).__name__}; open it in binary mode ('rb')")
    return bytes(data)


# ---- PIL ----------------------------------------------------------------------------------------------------------


def _from_pil(image: Image.Image, max_pixels: int | None) -> Photo:
    """Open a PIL image. A TIFF that is not loaded yet is read from its file, as by its path."""
    if isinstance(image, ImageFile.ImageFile) and image.tile and getattr(image, "fp", None) is not None:
        if image.format in STARTS_PROGRAMS:
            raise ImageError(f"a {image.format} image may start another program when it is loaded; convert it first")
        if image.format == "TIFF" and image.tell() == 0:
            return Photo(_read_all(image.fp), max_pixels)
    limit = limit_of(max_pixels)
    if limit is not None and image.width * image.height > limit:
        raise TooManyPixels(f"{image.width} x {image.height} pixels are more than the limit of {limit}")
    if not image.width or not image.height:
        raise DamagedImage(f"{image.width} x {image.height} pixels; want at least one")
    with as_image_errors():
        orientation = read_orientation(image, b"")
        pixels = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
    sideways, reverse = ORIENTATIONS[orientation]
    return HeldPhoto((pixels.transpose(1, 2) if sideways else pixels).flip(reverse), max_pixels)


# ---- arrays and tensors -------------------------------------------------------------------------------------------


def _check_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a uint8 array as a new array (H, W, 3). Raises `ImageError` on another dtype or shape."""
    _check_dtype(str(array.dtype), array.dtype == np.uint8, array.dtype.kind == "f", "array")
    grey = array.ndim == 2
    if 0 in array.shape or not (grey or (array.ndim == 3 and array.shape[2] in (1, 3))):
        raise ImageError(f"the array's shape is {array.shape}; want (H, W, 3) or (H, W); a tensor may be (3, H, W)")
    pixels = np.ascontiguousarray(array[..., None] if grey else array)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels.copy()


def _check_tensor(tensor: Tensor) -> UInt8[Tensor, "3 H W"]:
    """Return a uint8 tensor as (3, H, W). Raises `ImageError` on another dtype or shape."""
    _check_dtype(str(tensor.dtype), tensor.dtype == torch.uint8, tensor.is_floating_point(), "tensor")
    pixels = tensor[None] if tensor.ndim == 2 else tensor
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[0] not in (1, 3):
        raise ImageError(f"the tensor's shape is {tuple(tensor.shape)}; want (3, H, W), (1, H, W) or (H, W)")
    if pixels.layout != torch.strided or pixels.is_meta:
        kind = "meta" if pixels.is_meta else str(pixels.layout)
        raise ImageError(f"the tensor is {kind}; want one that holds its pixels densely, as tensor.to_dense() gives")
    return pixels.detach().cpu().expand(3, -1, -1)


def _check_bands(pixels: Tensor | NDArray[Any], channels: int) -> Shaped[Tensor, "C H W"]:
    """Return an array (H, W, C) or a tensor (C, H, W) of bands. Raises `ImageError` on another shape or type."""
    if isinstance(pixels, np.ndarray):
        wanted, axis, what = f"(H, W, {channels})", 2, "array"
    else:
        wanted, axis, what = f"({channels}, H, W)", 0, "tensor"
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[axis] != channels:
        raise ImageError(f"the {what}'s shape is {tuple(pixels.shape)}; want {wanted}")
    if isinstance(pixels, Tensor):
        return stored_bands(pixels.detach().cpu())
    if pixels.dtype.kind not in "iuf":
        raise ImageError(f"the array's dtype is {pixels.dtype}; want integers or floats")
    native = np.array(np.moveaxis(pixels, 2, 0), dtype=pixels.dtype.newbyteorder("="))
    return stored_bands(torch.from_numpy(native))


def _check_dtype(dtype: str, right: bool, floats: bool, kind: str) -> None:
    if right:
        return
    hint = ". Convert floats of 0 to 255 to uint8 first; the backbone itself takes a tensor that is normalised"
    text = f"the {kind}'s dtype is {dtype}; want uint8 from 0 to 255, because the range of other dtypes is unknown"
    raise ImageError(text + (hint if floats else ""))


@contextmanager
def naming(index: int, image: object) -> Iterator[None]:
    """Add to an error which image of a list it is about."""
    try:
        yield
    except (OSError, ValueError) as error:
        name = f" ({image})" if isinstance(image, str | PathLike) else ""
        raise ImageError(f"image {index}{name} cannot be read: {error}") from error
