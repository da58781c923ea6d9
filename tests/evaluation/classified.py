"""Tiny datasets in the official layouts of the classification protocols."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
SMALL = {"view.short": 36, "view.crop": 32}  # for the tiny ViT of 32 pixels


def picture(label: int, seed: int, size: tuple[int, int] = (40, 44)) -> Image.Image:
    """A noisy picture whose colour hints at its class."""
    random = np.random.default_rng([label, seed])
    colour = np.array([60 * (label % 4), 200 - 50 * label % 200, 40 + 30 * label % 200])
    return Image.fromarray(np.uint8(np.clip(random.normal(0, 60, (*size, 3)) + colour, 0, 255)))


def save(path: Path, label: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(label, seed).save(path, format="JPEG" if path.suffix.lower() in (".jpeg", ".jpg") else None)


def make_imagenet(root: Path, train: int = 6, val: int = 3, wnids: Sequence[str] = WNIDS) -> Path:
    number = 0
    for label, wnid in enumerate(wnids):
        for i in range(train):
            save(root / "train" / wnid / f"{wnid}_{i}.JPEG", label, i)
        for i in range(val):
            number += 1
            save(root / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", label, 100 + i)
    return root


def make_wnids(root: Path, wnids: Sequence[str] = WNIDS[1:3], count: int = 3) -> Path:
    for wnid in wnids:
        for i in range(count):
            save(root / wnid / f"{i}.jpg", WNIDS.index(wnid), 200 + i)
    return root
