"""Image files to batches of pixels, in worker processes. A file that cannot be read is a record with its reason."""

import hashlib
import math
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitbackbone.features import Images
from vitbackbone.preprocess import DECODE_ERRORS, ImageTransform, Resolution

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow's decoders that a file may choose from
MAX_FILE_BYTES = 2**30  # the largest image that passes the pixel limit is half of this


@dataclass(frozen=True)
class Record:
    """What became of one input. `error` is None if it was read; the rest is None where it is not known."""

    error: str | None = None
    width: int | None = None  # pixels of the upright photo
    height: int | None = None
    sha256: str | None = None  # of the file


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of one forward. The pixels lie in one flat tensor, as every tensor that crosses from a worker process
    takes a file descriptor."""

    records: tuple[Record, ...]  # of every input
    shapes: tuple[tuple[int, int, int], ...]  # (C, H, W) of those that were read, as the backbone wants them
    pixels: Float[Tensor, " n"]

    def images(self, device: torch.device | str) -> Images:
        """The images that were read: (B, C, H, W) if they have one size, else a list of (C, Hi, Wi)."""
        pixels = self.pixels.to(device)
        if len(set(self.shapes)) == 1:
            return pixels.view(-1, *self.shapes[0])
        parts = pixels.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class ImageReader(Dataset[tuple[Record, Tensor | None]]):
    """Reads the file at a path. Indexed by paths, so that workers hold no list of them, and free of the weights.

    Returns the record, and the pixels (C, H, W) or None. Never raises on a bad file.
    """

    def __init__(self, preprocess: ImageTransform, resolution: Resolution | None, keep_aspect: bool) -> None:
        self.preprocess = preprocess
        self.resolution = resolution
        self.keep_aspect = keep_aspect

    def __getitem__(self, path: str) -> tuple[Record, Float[Tensor, "C H W"] | None]:
        sha256: str | None = None
        width: int | None = None
        height: int | None = None
        try:
            with _reasons(OSError, ValueError):  # ValueError: a null character in the path
                data = _read(Path(path))
            sha256 = hashlib.sha256(data).hexdigest()
            with _reasons(*DECODE_ERRORS):
                image = _decode(data)
                width, height = _upright_size(image)
            self._check_resized(height, width)
            with _reasons(OSError, ValueError), _quiet():  # as `Preprocess` promises
                return Record(None, width, height, sha256), self.preprocess(image, self.resolution, self.keep_aspect)
        except _Unreadable as unreadable:
            return Record(str(unreadable), width, height, sha256), None

    def _check_resized(self, height: int, width: int) -> None:
        """A photo of few pixels that is very long and thin becomes huge when its shorter side is scaled up, or a border
        makes it square."""
        view = self.preprocess.view((height, width), self.resolution, self.keep_aspect)
        largest = max(view.padded, view.resized, key=math.prod)
        if Image.MAX_IMAGE_PIXELS is not None and math.prod(largest) > Image.MAX_IMAGE_PIXELS:
            raise _Unreadable(
                f"too long and thin: {width} x {height} pixels become {largest[1]} x {largest[0]}, "
                f"more than {Image.MAX_IMAGE_PIXELS} pixels"
            )


def read_batches(reader: ImageReader, batches: Iterable[list[str]], workers: int) -> Iterator[Batch]:
    """The batches of paths, read in order by `workers` processes, or in this one if that is 0."""
    return iter(DataLoader(reader, batch_sampler=batches, num_workers=workers, collate_fn=_collate))


def _collate(items: Sequence[tuple[Record, Tensor | None]]) -> Batch:
    read = [pixels for _, pixels in items if pixels is not None]
    shapes = tuple((pixels.shape[0], pixels.shape[1], pixels.shape[2]) for pixels in read)
    flat = torch.cat([pixels.flatten() for pixels in read]) if read else torch.empty(0)
    return Batch(tuple(record for record, _ in items), shapes, flat)


class _Unreadable(Exception):
    """A file that cannot be read; the text is the reason that users see."""


@contextmanager
def _reasons(*errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise _Unreadable(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The same text on every run: no address in memory, no absolute path."""
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a known format ({', '.join(FORMATS)})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _read(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
        raise ValueError("is a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if not 0 < status.st_size <= MAX_FILE_BYTES:
        raise ValueError(f"the file has {status.st_size} bytes; want 1 to {MAX_FILE_BYTES}")
    return path.read_bytes()


def _decode(data: bytes) -> Image.Image:
    with _quiet():
        image = Image.open(BytesIO(data), formats=FORMATS)  # reads the header, and refuses bombs by it
        image.load()
    return image


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of odd metadata, photo after photo, which would drown the progress bar; a bomb is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) in pixels once the EXIF orientation is applied."""
    sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.height, image.width) if sideways else (image.width, image.height)
