"""The processes that read images for the one that computes."""

import os
from collections.abc import Sequence

import pytest

from vitbackbone.store.sources.locate import Locator
from vitbackbone.store.workers import reader
from vitbackbone.store.workers.reader import Asked, ImageReader, Outcome, read_batches


class Telling(ImageReader):
    """Tells what the environment of its process has, in place of the reason for which an image cannot be read."""

    def __init__(self) -> None: ...

    def __getitems__(self, asked: Sequence[Asked]) -> list[tuple[Outcome, None]]:
        return [(Outcome("damaged", os.environ.get("PLACE_OF_THE_BUCKET"), None, None, None), None) for _ in asked]


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
