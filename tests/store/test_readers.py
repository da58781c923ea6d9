"""The processes that read images for the one that computes."""

import errno
import os
from collections.abc import Sequence

import pytest

from vitbackbone.files import ServiceDown
from vitbackbone.store.sources.locate import Locator
from vitbackbone.store.workers import reader
from vitbackbone.store.workers.reader import Asked, ImageReader, Outcome, read_batches


class Telling(ImageReader):
    """Tells what the environment of its process has, in place of the reason for which an image cannot be read."""

    def __init__(self) -> None: ...

    def __getitems__(self, asked: Sequence[Asked]) -> list[tuple[Outcome, None]]:
        return [(Outcome("damaged", os.environ.get("PLACE_OF_THE_BUCKET"), None, None, None), None) for _ in asked]


class Down(ImageReader):
    """Meets a service that does not answer."""

    def __init__(self) -> None: ...

    def __getitem__(self, asked: Asked) -> tuple[Outcome, None]:
        raise ServiceDown(errno.EIO, "does not answer", "s3://photos")


@pytest.mark.parametrize("processes", [0, 1])
def test_their_errors_are_raised_as_they_are(processes: int) -> None:
    asked: Asked = (Locator("a.jpg"), None)
    with pytest.raises(ServiceDown) as raised:
        list(read_batches(Down(), [[[asked]]], processes, "cpu"))
    assert str(raised.value) == str(ServiceDown(errno.EIO, "does not answer", "s3://photos"))


@pytest.mark.slow
def test_they_have_the_environment_of_now_and_not_that_of_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "has_clients", lambda: True)
    for place in ("here", "there", None):
        if place:
            monkeypatch.setenv("PLACE_OF_THE_BUCKET", place)
        else:
            monkeypatch.delenv("PLACE_OF_THE_BUCKET")
        asked: Asked = (Locator("a.jpg"), None)
        (batch,) = read_batches(Telling(), [[[asked]]], 1, "cpu")
        assert [outcome.error for outcome in batch.outcomes] == [place]
