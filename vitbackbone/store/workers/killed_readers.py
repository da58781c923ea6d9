"""Name the images that a reading process had begun when it was killed.

A file that crashes its decoder ends the process without an error. So each process writes what it reads into memory that
it shares with the process that computes.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.connection import wait
from typing import TypeVar

import torch
from torch.utils.data import get_worker_info

from vitbackbone.store.sources.locate import Locator
from vitbackbone.store.sources.names import escaped

LONGEST = 4096  # bytes of a note; a longer one is cut
SOON = 5.0  # seconds in which a process ends whose connection was lost
KILLED = re.compile(r"DataLoader worker \(pid.*")  # torch's words

T = TypeVar("T")


class Notes:
    """The images that each process reads at the moment."""

    def __init__(self, processes: int) -> None:
        self._shared = torch.zeros(processes, LONGEST, dtype=torch.uint8).share_memory_()

    @contextmanager
    def reading(self, places: Sequence[Locator]) -> Iterator[None]:
        """Note that this process reads images from the first place to the last, until the block ends."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        ends = (places[0], places[-1])
        names = dict.fromkeys(f"{at.file}/{at.member}" if at.member else at.file for at in ends)
        self._write(worker.id, " to ".join(map(escaped, names)))
        yield
        self._write(worker.id, "")

    @contextmanager
    def naming_the_killed(self) -> Iterator[None]:
        """Raise `ChildProcessError` if a reading process is killed. torch tells of it wherever the main thread is."""
        try:
            yield
        except RuntimeError as error:
            killed = KILLED.match(str(error))
            if not killed:
                raise
            raise self._error(killed[0].strip()) from error

    def naming_the_lost(self, received: Iterator[T]) -> Iterator[T]:
        """Yield what processes send, and raise `ChildProcessError` if one is lost. Memory that a process shares comes
        from itself, so that its end may be seen as that of a connection first."""
        try:
            yield from received
        except (ConnectionError, EOFError) as error:
            if not self._one_ends():
                raise
            raise self._error(str(error) or type(error).__name__) from error

    def _one_ends(self) -> bool:
        """Tell whether a reading process has ended, or does so within seconds."""
        processes = dict(self._read())
        readers = [child for child in active_children() if child.pid in processes]
        return len(readers) < len(processes) or bool(readers and wait([one.sentinel for one in readers], timeout=SOON))

    def _error(self, told: str) -> ChildProcessError:
        alive = {child.pid for child in active_children()}
        begun = ", ".join(what for process, what in self._read() if what and process not in alive)
        return ChildProcessError(
            f"a process that reads images was killed{f' while it read {begun}' if begun else ''} ({told}). Most often "
            "memory ran out: use fewer workers or a smaller batch size. If it happens again at the same images, one of "
            "them crashes its decoder: move it away. Then run the same extraction again; complete shards are kept"
        )

    def _write(self, worker: int, what: str) -> None:
        note = f"{os.getpid()} {what}".encode(errors="replace")[: LONGEST - 1]
        self._shared[worker].numpy()[: len(note) + 1] = [*note, 0]

    def _read(self) -> Iterator[tuple[int, str]]:
        """Yield each process that has begun, and the images that it reads."""
        for note in self._shared.numpy():
            process, _, what = note.tobytes().partition(b"\0")[0].decode(errors="replace").partition(" ")
            if process:
                yield int(process), what
