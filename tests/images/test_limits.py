"""The limit of pixels, by the options of the commands."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heads import LinearProbe, save_probe
from tests.helpers import photo, tiny_vit
from vitbackbone import ViTConfig
from vitbackbone.cli import main
from vitbackbone.model import ViT
from vitbackbone.store import FeatureStore

WIDTH, HEIGHT = 60, 40
PIXELS = WIDTH * HEIGHT
OVER = f"{WIDTH} x {HEIGHT} pixels are more than the limit of {PIXELS - 1}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one photo, a probe and a checkpoint with a classifier."""
    (tmp_path / "photos").mkdir()
    photo(HEIGHT, WIDTH).save(tmp_path / "photos" / "a.png")
    return tmp_path
