"""Photos and a store of their features, which the tests of several commands share."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import save_photo
from vitbackbone.cli import main


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ordinary photos of two kinds, bright and dark, of many sizes, some grey; and two broken files."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(40):
        kind, low = ("bright", 150) if i % 2 else ("dark", 0)
        shape = (int(rng.integers(68, 200)), int(rng.integers(68, 300)), 3)
        image = Image.fromarray(rng.integers(low, low + 100, shape, dtype=np.uint8))
        (folder / kind).mkdir(exist_ok=True)
        (image.convert("L") if i % 5 == 0 else image).save(folder / kind / f"{i:02}.jpg")
    save_photo(folder / "dark" / "large.jpg", 1600, 2400)
    (folder / "bright" / "broken.jpg").write_bytes((folder / "bright" / "01.jpg").read_bytes()[:700])
    (folder / "dark" / "text.jpg").write_text("not a photo")
    return folder


@pytest.fixture(scope="session")
def store(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "features"
    assert main(["extract", str(photos), "--model", "nano", "--out", str(out), "--tokens", "cls,patches"]) == 0
    return out
