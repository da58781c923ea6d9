"""Read images into batches of pixels, in worker processes. An image that cannot be read yields a reason.

All processes read each batch together, a portion each. One process a batch would leave most of them idle at the end:
with 16 processes, 4,000 images and batches of 256, one process would read 500 images, and the mean is 250.
"""

import math
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from multiprocessing.context import BaseContext

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitbackbone.contract import Images
from vitbackbone.files import has_clients
from vitbackbone.images import Decoding, ImageError, ImageTransform, Photo, Resolution
from vitbackbone.store.sources.identity import REQUESTS
from vitbackbone.store.sources.locate import Locator, Reason, Unreadable, is_frame, read_photo
from vitbackbone.store.sources.remote import is_remote
from vitbackbone.store.workers.killed_readers import Notes
from vitbackbone.store.workers.lanes import Lanes

CHANGED = "has changed since the run began; run the same extraction again"
MAX_FRAMES = 2**31 - 1  # the most that the index can hold
PORTION = 8  # images that a process reads for a batch; sending them takes a fraction of a millisecond
AHEAD = 4  # batches that are read before they are needed
Asked = tuple[Locator, bytes | None]  # an input, and its SHA-256 in the plan


@dataclass(frozen=True)
class Outcome:
    """The outcome of reading one input. `reason` is None if it was read. The other fields are None if unknown."""

    reason: Reason | None = None
    error: str | None = None
    width: int | None = None  # pixels of the upright photo
    height: int | None = None
    frames: int | None = None


@dataclass(frozen=True, eq=False)
class PixelBatch:
    """The inputs of one forward, or a portion of them. All pixels are in one flat tensor, because each tensor that a
    worker process sends takes a file descriptor."""

    outcomes: tuple[Outcome, ...]  # of every input
    shapes: tuple[tuple[int, int, int], ...]  # (C, H, W) of each image that was read, preprocessed
    pixels: UInt8[Tensor, " n"]

    def pin_memory(self) -> "PixelBatch":
        """Return the batch in pinned memory. torch's loader calls this before a GPU copies the batch."""
        return replace(self, pixels=self.pixels.pin_memory())

    @classmethod
    def joined(cls, portions: Sequence["PixelBatch"], device: torch.device | str) -> "PixelBatch":
        """Return the batch of all portions, with its pixels on the device."""
        outcomes = tuple(chain.from_iterable(portion.outcomes for portion in portions))
        shapes = tuple(chain.from_iterable(portion.shapes for portion in portions))
        return cls(outcomes, shapes, torch.cat([one.pixels.to(device, non_blocking=True) for one in portions]))

    def images(self, preprocess: ImageTransform) -> Images:
        """Return the images, normalised: (B, C, H, W) if all have one size, else a list of (C, Hi, Wi)."""
        if len(set(self.shapes)) == 1:
            return preprocess.normalise(self.pixels.view(-1, *self.shapes[0]))
        flat = self.pixels.split([math.prod(shape) for shape in self.shapes])
        return [preprocess.normalise(one.view(shape)) for one, shape in zip(flat, self.shapes, strict=True)]


Read = list[tuple[Outcome, UInt8[Tensor, "_ _ _"] | None]]  # the inputs of a batch


class ImageReader(Dataset[tuple[Outcome, Tensor | None]]):
    """Reads one input. The index is the input itself, so that workers hold neither a list of inputs nor the weights.

    Returns the outcome, and the pixels (C, H, W) or None. Never raises on a bad file. Arguments as for
    `Preprocess.pixels`, and `max_pixels` as for `Photo`. `notes`: where each process writes what it reads.
    """

    def __init__(
        self,
        preprocess: ImageTransform,
        resolution: Resolution | None,
        keep_aspect: bool,
        decoding: Decoding,
        max_pixels: int | None = None,
        notes: Notes | None = None,
    ) -> None:
        self.preprocess = preprocess
        self.resolution = resolution
        self.keep_aspect = keep_aspect
        self.decoding = decoding
        self.max_pixels = max_pixels
        self.notes = notes or Notes(0)

    def __getitems__(self, asked: Sequence[Asked]) -> Read | OSError | MemoryError:
        """Read the inputs of a batch, in order. Returns the error if a service or the memory fails for all of them:
        torch would replace it by the text of its traceback."""
        try:
            with self.notes.reading([at for at, _ in asked]):
                return self._read(asked)
        except (OSError, MemoryError) as error:
            return error

    def _read(self, asked: Sequence[Asked]) -> Read:
        """Read the inputs of a batch, in order.

        Remote files are requested together, because each answer takes long. Files of this machine are read
        in as many threads as torch has. That is one thread in a reading process, and all threads in the computing
        process, which waits for the batch. The frames of a video are decoded one after the other.
        """
        count = sum(is_remote(at.file) and not at.member for at, _ in asked)
        if not count and not any(is_frame(at) or is_remote(at.file) for at, _ in asked):
            count = torch.get_num_threads()
        if min(count, len(asked)) < 2:
            return [self[one] for one in asked]
        with warnings.catch_warnings(), ThreadPoolExecutor(min(count, REQUESTS)) as threads:
            warnings.simplefilter("ignore")  # once for all threads, because the filters are global
            return list(threads.map(self.__getitem__, asked))

    def __getitem__(self, asked: Asked) -> tuple[Outcome, UInt8[Tensor, "C H W"] | None]:
        at, sha256 = asked
        size: tuple[int, int] | tuple[None, None] = (None, None)
        frames: int | None = None
        try:
            photo, found = read_photo(at, self.max_pixels)
            if found != sha256:
                raise Unreadable("changed", CHANGED)
            size, frames = photo.size, _count_frames(photo)
            return Outcome(None, None, size[1], size[0], frames), self._pixels(photo)
        except Unreadable as unreadable:
            return Outcome(unreadable.reason, str(unreadable), size[1], size[0], frames), None

    def _pixels(self, photo: Photo) -> UInt8[Tensor, "C H W"]:
        try:
            return self.preprocess.pixels(photo, self.resolution, self.keep_aspect, self.decoding)
        except ImageError as error:
            raise Unreadable(error.reason, str(error)) from error
        except (OSError, ValueError) as error:  # raised by a preprocessing from outside this package
            raise Unreadable("damaged", str(error) or type(error).__name__) from error


def _count_frames(photo: Photo) -> int | None:
    try:
        frames = photo.frames()
        return frames if frames <= MAX_FRAMES else None  # more is the claim of a damaged header
    except ImageError:  # a later frame is damaged; only the first is embedded
        return None


def read_batches(
    reader: ImageReader,
    shards: Iterable[list[list[Asked]]],
    workers: int,
    device: torch.device | str,
    batch_size: int,
) -> Iterator[PixelBatch]:
    """Read the batches of shards, in order, with their pixels on the device. A batch has at most `batch_size` inputs.

    `workers` processes read them together; with 0 this process does. About `AHEAD` batches wait, and more of a video:
    see `lanes`.
    """
    lanes = Lanes(workers)
    lengths: deque[int] = deque()  # of the batches that are being read
    ahead = max(2, -(-AHEAD * batch_size // (PORTION * workers))) if workers else None
    loader = DataLoader(
        reader,
        batch_sampler=lanes.ask((_portions(all_of, workers, lengths), is_frame(all_of[0][0][0])) for all_of in shards),
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_collate,
        multiprocessing_context=_afresh() if workers and has_clients() else None,
        worker_init_fn=partial(_begin, dict(os.environ)),
        pin_memory=torch.device(device).type == "cuda",
    )
    portions = list[PixelBatch]()
    for portion in lanes.in_order(reader.notes.naming_the_lost(iter(loader))):
        if not isinstance(portion, PixelBatch):
            raise portion
        portions.append(portion)
        if sum(len(one.outcomes) for one in portions) == lengths[0]:
            lengths.popleft()
            yield PixelBatch.joined(portions, device)
            portions.clear()


def _portions(batches: Sequence[list[Asked]], workers: int, lengths: deque[int]) -> list[list[Asked]]:
    """Return what one process reads at a time, and add the length of each batch.

    Remote files wait for answers, so that many are requested at once. Without workers, this process reads whole
    batches.
    """
    found = list[list[Asked]]()
    for batch in batches:
        lengths.append(len(batch))
        size = (REQUESTS if is_remote(batch[0][0].file) else PORTION) if workers else len(batch)
        found += [batch[start : start + size] for start in range(0, len(batch), size)]
    return found


def _afresh() -> BaseContext:
    """Return a way to start processes that have no client of a bucket, because a client does not survive a fork.

    They are forked from a process that has imported this module and opened nothing, so that each starts at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin(environment: dict[str, str], _: int) -> None:
    """Begin a reading process as the parent is now.

    The process that forks it may have been started long ago, so that it has the environment of then: another address of
    a bucket, or other credentials. Ctrl-C reaches every process of the terminal; it is ignored here, because the parent
    stops its workers.
    """
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: Read | OSError | MemoryError) -> PixelBatch | OSError | MemoryError:
    if not isinstance(items, list):
        return items
    read = [pixels for _, pixels in items if pixels is not None]
    shapes = tuple((pixels.shape[0], pixels.shape[1], pixels.shape[2]) for pixels in read)
    flat = torch.cat([pixels.flatten() for pixels in read]) if read else torch.empty(0, dtype=torch.uint8)
    return PixelBatch(tuple(outcome for outcome, _ in items), shapes, flat)
