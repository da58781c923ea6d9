"""Give each reading process consecutive portions of a video, and put what they read back in order.

torch's loader gives portion i to process i % k. Each process would then decode the frames between its portions too,
which are all frames. So portions are requested in an order that gives each process a run of consecutive ones.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

RUN = 32  # consecutive portions that a process reads; as many of each other process may wait in memory

T = TypeVar("T")
R = TypeVar("R")


class Lanes:
    """The order in which portions are asked of a number of processes."""

    def __init__(self, processes: int) -> None:
        self.processes = max(1, processes)
        self._orders: deque[list[int]] = deque()  # for each requested block, the order of its portions

    def ask(self, groups: Iterable[tuple[Sequence[T], bool]]) -> Iterator[T]:
        """Yield the portions of each group in the order in which they are asked. The flag says whether they are frames
        of a video; the portions of others keep their order."""
        for portions, are_frames in groups:
            length = self.processes * RUN if are_frames and self.processes > 1 else 1
            for start in range(0, len(portions), length):
                block = portions[start : start + length]
                order = _order(len(block), self.processes)
                self._orders.append(order)
                yield from (block[place] for place in order)

    def in_order(self, results: Iterator[R]) -> Iterator[R]:
        """Yield the results of all portions in the order of the portions."""
        held: dict[int, R] = {}
        order: deque[int] = deque()
        following = 0
        for result in results:
            if not order:
                order, following = deque(self._orders.popleft()), 0
            held[order.popleft()] = result
            while following in held:
                yield held.pop(following)
                following += 1


def _order(count: int, processes: int) -> list[int]:
    """Return the places of portions in the order in which they are asked."""
    runs = [len(range(first, count, processes)) for first in range(processes)]
    starts = [0, *accumulate(runs)]
    return [starts[i % processes] + i // processes for i in range(count)]
