"""The choice among routes times each of them once."""

import pytest

from vitbackbone.runtime import choice


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "ROUNDS", 1)  # of each path, and no more
    monkeypatch.setattr(choice, "SECONDS", 0.0)
