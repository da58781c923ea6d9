"""Images to batches of pixels, in worker processes. One that cannot be read is a record with its reason."""

import hashlib
import math
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitbackbone.contract import Images
from vitbackbone.images import Decoding, ImageError, ImageTransform, Photo, Resolution
from vitbackbone.store.locate import Locator, Reason, Unreadable, read_bytes

MAX_FRAMES = 2**31 - 1  # that the index can hold
Asked = tuple[Locator, bytes | None]  # an input, and the SHA-256 that the plan has of it


@dataclass(frozen=True)
class Record:
    """What became of one input. `reason` is None if it was read; the rest is None where it is not known."""

    reason: Reason | None = None
    error: str | None = None
    width: int | None = None  # pixels of the upright photo
    height: int | None = None
    frames: int | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of one forward. The pixels lie in one flat tensor, as every tensor that crosses from a worker process
    takes a file descriptor."""

    records: tuple[Record, ...]  # of every input
    shapes: tuple[tuple[int, int, int], ...]  # (C, H, W) of those that were read, as the backbone wants them
    pixels: UInt8[Tensor, " n"]

    def pin_memory(self) -> "Batch":
        """In memory that a GPU reads while the CPU goes on; a thread of torch's loader asks for it."""
        return replace(self, pixels=self.pixels.pin_memory())

    def images(self, preprocess: ImageTransform, device: torch.device | str) -> Images:
        """The images that were read, normalised: (B, C, H, W) if they have one size, else a list of (C, Hi, Wi)."""
        pixels = self.pixels.to(device, non_blocking=True)
        if len(set(self.shapes)) == 1:
            return preprocess.normalise(pixels.view(-1, *self.shapes[0]))
        parts = pixels.split([math.prod(shape) for shape in self.shapes])
        return [preprocess.normalise(part.view(shape)) for part, shape in zip(parts, self.shapes, strict=True)]


class ImageReader(Dataset[tuple[Record, Tensor | None]]):
    """Reads one input. Indexed by what was asked, so that workers hold no list of it, and free of the weights.

    Returns the record, and the pixels (C, H, W) or None. Never raises on a bad file. Arguments as for
    `Preprocess.pixels`, and `max_pixels` as for `Photo`.
    """

    def __init__(
        self,
        preprocess: ImageTransform,
        resolution: Resolution | None,
        keep_aspect: bool,
        decoding: Decoding,
        max_pixels: int | None = None,
    ) -> None:
        self.preprocess = preprocess
        self.resolution = resolution
        self.keep_aspect = keep_aspect
        self.decoding = decoding
        self.max_pixels = max_pixels

    def __getitem__(self, asked: Asked) -> tuple[Record, UInt8[Tensor, "C H W"] | None]:
        at, sha256 = asked
        size: tuple[int, int] | tuple[None, None] = (None, None)
        frames: int | None = None
        try:
            data = read_bytes(at)
            if hashlib.sha256(data).digest() != sha256:
                text = "is another file than when the run began; run the same extraction again"
                raise Unreadable("changed", text)
            photo = self._open(data)
            size, frames = photo.size, _count_frames(photo)
            return Record(None, None, size[1], size[0], frames), self._pixels(photo)
        except Unreadable as unreadable:
            return Record(unreadable.reason, str(unreadable), size[1], size[0], frames), None

    def _open(self, data: bytes) -> Photo:
        try:
            return Photo(data, self.max_pixels)
        except ImageError as error:
            raise Unreadable(error.reason, str(error)) from error

    def _pixels(self, photo: Photo) -> UInt8[Tensor, "C H W"]:
        try:
            return self.preprocess.pixels(photo, self.resolution, self.keep_aspect, self.decoding)
        except ImageError as error:
            raise Unreadable(error.reason, str(error)) from error
        except (OSError, ValueError) as error:  # of a preprocessing by others
            raise Unreadable("damaged", str(error) or type(error).__name__) from error


def _count_frames(photo: Photo) -> int | None:
    try:
        frames = photo.frames()
        return frames if frames <= MAX_FRAMES else None  # no more than a damaged header's claim
    except ImageError:  # one behind the first, which is the one that counts, is damaged
        return None


def read_batches(
    reader: ImageReader, batches: Iterable[list[Asked]], workers: int, device: torch.device | str
) -> Iterator[Batch]:
    """The batches for a device, read in order by `workers` processes, or in this one if that is 0. So many batches wait
    at a time for whoever takes them: two a worker.

    Raises `ChildProcessError` if a process was killed.
    """
    loader = DataLoader(
        reader,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupts,
        pin_memory=torch.device(device).type == "cuda",
    )
    try:
        yield from loader
    except RuntimeError as error:
        killed = re.match(r"DataLoader worker \(pid.*", str(error))
        if not killed:
            raise
        raise ChildProcessError(
            f"a process that reads images was killed ({killed[0]}). Most often memory ran out: try fewer --workers or "
            "a smaller --batch-size, and run the same extraction again; what is done is kept"
        ) from error


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; the parent is the one that stops them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: Sequence[tuple[Record, Tensor | None]]) -> Batch:
    read = [pixels for _, pixels in items if pixels is not None]
    shapes = tuple((pixels.shape[0], pixels.shape[1], pixels.shape[2]) for pixels in read)
    flat = torch.cat([pixels.flatten() for pixels in read]) if read else torch.empty(0, dtype=torch.uint8)
    return Batch(tuple(record for record, _ in items), shapes, flat)
