"""The photos of the tests of the store."""

from pathlib import Path

import pytest

from tests.store.small import SIZES, save


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of different sizes, in two classes."""
    for i, size in enumerate(SIZES):
        save(tmp_path / "photos" / ("cat" if i < 4 else "dog") / f"{i}.{'png' if i % 2 else 'jpg'}", i, size)
    return tmp_path / "photos"
