"""Items that are computed one by one: threads read the next ones, and several devices share them."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")


def ahead(read: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `read(item)` for each item, in order. `workers` threads read the next ones meanwhile.

    Two items for each thread are held in memory. Without threads, an item is read when it is asked for. An exception of
    `read` is raised in place of its item.
    """
    if not workers:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        reading: deque[Future[R]] = deque()
        try:
            for item in items:
                reading.append(pool.submit(read, item))
                if len(reading) > 2 * workers:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()
        finally:
            for each in reading:
                each.cancel()


def deal(read: Callable[[T], R], items: Sequence[T], computes: Sequence[Callable[[R], A]], workers: int = 0) -> list[A]:
    """Return `compute(read(item))` of each item, in order.

    `computes`: one function for each device. The items are dealt to them like cards, and each computes in a thread of
    its own, with `workers` threads that read for it.
    """
    count, stopped = len(computes), threading.Event()

    def hand(number: int) -> list[A]:
        found = []
        for each in ahead(read, items[number::count], workers):
            found.append(computes[number](each))
            if stopped.is_set():
                break
        return found

    if count == 1:
        return hand(0)
    with ThreadPoolExecutor(count) as pool:
        hands = [pool.submit(hand, number) for number in range(count)]
        try:
            wait(hands, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()  # one failed, or this thread is interrupted: the others end after their item
        found = [each.result() for each in hands]
    return [found[i % count][i // count] for i in range(len(items))]
