"""The processes that read images for the one that computes."""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import torch

from vitbackbone.files import ServiceDown
from vitbackbone.store.sources.locate import Locator
from vitbackbone.store.workers import killed_readers, reader
from vitbackbone.store.workers.killed_readers import Notes
from vitbackbone.store.workers.reader import Asked, ImageReader, Outcome, Read, read_batches


class Telling(ImageReader):
    """Tells what the environment of its process has, in place of the reason for which an image cannot be read."""

    def __init__(self) -> None:
        self.notes = Notes(4)

    def __getitems__(self, asked: Sequence[Asked]) -> Read:
        return [(Outcome("damaged", os.environ.get("PLACE_OF_THE_BUCKET"), None, None, None), None) for _ in asked]


class Naming(ImageReader):
    """Tells which process reads each image."""

    def __init__(self) -> None:
        self.notes = Notes(4)

    def __getitems__(self, asked: Sequence[Asked]) -> Read:
        return [(Outcome(error=f"{at.file} {os.getpid()}"), torch.zeros(3, 1, 1, dtype=torch.uint8)) for at, _ in asked]


class Down(ImageReader):
    """Meets a service that does not answer."""

    def __init__(self) -> None:
        self.notes = Notes(4)

    def __getitem__(self, asked: Asked) -> tuple[Outcome, None]:
        raise ServiceDown(errno.EIO, "does not answer", "s3://photos")


@pytest.mark.parametrize("processes", [0, 1])
def test_their_errors_are_raised_as_they_are(processes: int) -> None:
    asked: Asked = (Locator("a.jpg"), None)
    with pytest.raises(ServiceDown) as raised:
        list(read_batches(Down(), [[[asked]]], processes, "cpu", 1))
    assert str(raised.value) == str(ServiceDown(errno.EIO, "does not answer", "s3://photos"))


@pytest.mark.parametrize("processes", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))])
def test_they_share_each_batch_alike(processes: int) -> None:
    shards: list[list[list[Asked]]] = [
        [[(Locator(f"{shard}-{batch}-{i}.jpg"), None) for i in range(size)] for batch, size in enumerate(sizes)]
        for shard, sizes in enumerate([(4, 8, 16, 32, 64, 64, 12), (4, 8, 16, 32, 64, 64, 1)])
    ]
    batches = list(read_batches(Naming(), shards, processes, "cpu", 64))
    found = [[str(outcome.error).split() for outcome in batch.outcomes] for batch in batches]
    assert [[name for name, _ in batch] for batch in found] == [
        [at.file for at, _ in batch] for shard in shards for batch in shard
    ]
    assert all(len(batch.shapes) == len(batch.outcomes) == len(batch.pixels) / 3 for batch in batches)
    read = Counter(process for batch in found for _, process in batch)
    assert len(read) == processes
    assert max(read.values()) - min(read.values()) <= 3 * reader.PORTION


@pytest.mark.parametrize("processes", [0, 1])
def test_a_lost_connection_of_the_storage_is_no_killed_process(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killed_readers, "SOON", 0.5)

    def shards() -> Iterator[list[list[Asked]]]:
        yield from ([[(Locator(f"{i}.jpg"), None)]] for i in range(9))
        raise ConnectionResetError("a lease was not written")

    with pytest.raises(ConnectionResetError, match="a lease was not written"):
        list(read_batches(Naming(), shards(), processes, "cpu", 1))


@pytest.mark.slow
def test_they_have_the_environment_of_now_and_not_that_of_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "has_clients", lambda: True)
    for place in ("here", "there", None):
        if place:
            monkeypatch.setenv("PLACE_OF_THE_BUCKET", place)
        else:
            monkeypatch.delenv("PLACE_OF_THE_BUCKET")
        asked: Asked = (Locator("a.jpg"), None)
        (batch,) = read_batches(Telling(), [[[asked]]], 1, "cpu", 1)
        assert [outcome.error for outcome in batch.outcomes] == [place]
