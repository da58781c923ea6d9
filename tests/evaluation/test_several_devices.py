"""Items that threads read ahead, and that several devices share."""

import threading
import time

import pytest

from vitbackbone.evaluation.several_devices import ahead, deal


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_order_and_few_are_held(workers) -> None:
    started = []

    def read(item: int) -> int:
        started.append(item)
        time.sleep(0.002 * (item % 3))
        return 2 * item

    found = []
    for each in ahead(read, range(20), workers):
        found.append(each)
        assert len(started) <= len(found) + 2 * workers
    assert found == [2 * i for i in range(20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_where_its_item_would(workers) -> None:
    items = ahead(lambda item: item if item != 3 else int("no number"), range(9), workers)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no number"):
        next(items)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_several_functions_share_the_items(count, workers) -> None:
    seen: list[set[str]] = [set() for _ in range(count)]

    def computing(number: int):
        def compute(item: int) -> tuple[int, int]:
            seen[number].add(threading.current_thread().name)
            return item, number

        return compute

    found = deal(lambda item: item, range(7), [computing(number) for number in range(count)], workers)
    assert found == [(i, i % count) for i in range(7)]
    assert all(len(each) == 1 for each in seen)
    assert deal(lambda item: item, [], [computing(0)] * count, workers) == []


def test_one_that_fails_stops_the_others() -> None:
    computed = []

    def slow(item: int) -> int:
        time.sleep(0.01)
        computed.append(item)
        return item

    def failing(item: int) -> int:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        deal(lambda item: item, range(1000), [slow, failing])
    assert len(computed) < 400
