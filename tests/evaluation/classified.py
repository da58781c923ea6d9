"""Tiny datasets in the official layouts of the classification protocols."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vitbackbone.evaluation.metrics.corruption import ALEXNET

WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
SMALL = {"view.short": 36, "view.crop": 32}  # for the tiny ViT of 32 pixels
FAST = {**SMALL, "fit.ks": "3"}  # of the protocol `knn`


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


def make_v2(root: Path) -> Path:
    for label in range(4):
        for i in range(2):
            save(root / "imagenetv2-matched-frequency-format-val" / str(label) / f"{i}.jpeg", label, 300 + i)
    return root


def make_real(root: Path) -> Path:
    """Lists of labels for 12 images. Every fourth list is empty, and one has two labels."""
    lists = [[i // 3] if i % 4 else [] for i in range(12)]
    lists[1] = [3, 0]
    root.mkdir(parents=True, exist_ok=True)
    (root / "real.json").write_text(json.dumps(lists))
    return root / "real.json"


def make_corrupted(root: Path) -> Path:
    """An image for each corruption and severity, of the class of the severity."""
    for kind in ALEXNET:
        for severity in range(1, 6):
            save(root / kind / str(severity) / WNIDS[severity % 4] / "0.JPEG", severity % 4, severity)
    return root


def make_list(root: Path) -> Path:
    """SimCLR's list of two images of each class of `make_imagenet`."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "list.txt"
    file.write_text("\n".join(f"{wnid}_{i}.JPEG" for wnid in WNIDS for i in (1, 3)))
    return file


OTHERS = {
    "imagenet-v2": make_v2,
    "imagenet-real": make_real,
    "imagenet-a": make_wnids,
    "imagenet-r": partial(make_wnids, wnids=WNIDS[:2]),
    "imagenet-sketch": partial(make_wnids, wnids=WNIDS),
    "imagenet-c": make_corrupted,
}
