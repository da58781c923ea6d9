"""Photos with a class for every pixel, on disk: what examples/segment.py reads.

SPLIT/images/NAME.jpg    any format that Pillow reads
SPLIT/labels/NAME.png    as large as the photo; 8-bit class indices, in grey or as a palette's
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from vitbackbone import load_image
from vitbackbone.preprocess import ImageTransform

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
Pair = tuple[Path, Path]  # a photo and its label


@dataclass(frozen=True)
class Classes:
    names: tuple[str, ...]
    ignore: int  # label of the pixels that count for nothing

    @classmethod
    def of(cls, data: Path, ignore: int | None) -> "Classes":
        """Named by `data/classes.txt`, one a line in the order of their indices; CamVid's where there is none. By
        default the index after the last class is ignored."""
        file = data / "classes.txt"
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else CAMVID
        names = [name for name in names if name]
        if not names:
            raise ValueError(f"{file} is empty; want the name of a class on each line")
        return cls(tuple(names), len(names) if ignore is None else ignore)


def find_pairs(split: Path) -> list[Pair]:
    """Each photo of a split with its label, in the order of their names. Raises `ValueError` if a folder, a photo or a
    label is missing."""
    photos, labels = split / "images", split / "labels"
    for folder in (photos, labels):
        if not folder.is_dir():
            raise ValueError(f"{split} has no folder {folder.name}; want images/NAME.jpg and labels/NAME.png")
    pairs = [(p, labels / f"{p.stem}.png") for p in sorted(photos.iterdir()) if not p.name.startswith(".")]
    if not pairs:
        raise ValueError(f"{photos} is empty; want photos")
    missing = [photo.name for photo, label in pairs if not label.is_file()]
    if missing:
        raise ValueError(f"{labels} has no label for {len(missing)} of {len(pairs)} photos: {', '.join(missing[:5])}")
    return pairs


def read_pair(pair: Pair, classes: Classes) -> tuple[Image.Image, Tensor]:
    """An RGB photo and its label, uint8 (H, W). Raises `ValueError` if their sizes differ, or the label is no map of
    these classes."""
    photo = load_image(pair[0])
    with Image.open(pair[1]) as opened:
        if opened.mode not in ("L", "P"):
            raise ValueError(f"{pair[1]} has the mode {opened.mode}; want 8-bit class indices, in grey or a palette")
        label = torch.from_numpy(np.array(opened))
    if label.shape != (photo.height, photo.width):
        raise ValueError(
            f"{pair[0]} has {photo.width} x {photo.height} pixels and {pair[1]} {label.shape[1]} x {label.shape[0]}; "
            "want the same"
        )
    strange = sorted(set(label.unique().tolist()) - {*range(len(classes.names)), classes.ignore})
    if strange:
        raise ValueError(
            f"{pair[1]} has the labels {strange[:5]}; want 0 to {len(classes.names) - 1}, or {classes.ignore}, which "
            "is ignored. DATA/classes.txt names the classes, and --ignore N tells which label counts for nothing"
        )
    return photo, label


def check_pairs(pairs: list[Pair], classes: Classes) -> None:
    """Reads all, before hours are spent on them. Raises `ValueError` as `read_pair` does, and if a class is never
    seen."""
    seen = torch.zeros(256, dtype=torch.bool)
    for pair in tqdm(pairs, desc="checking", unit="photo", leave=False):
        seen[read_pair(pair, classes)[1].unique().long()] = True
    unseen = [name for i, name in enumerate(classes.names) if i != classes.ignore and not seen[i]]
    if unseen:
        raise ValueError(
            f"no pixel of {pairs[0][1].parent} is {' or '.join(unseen)}; DATA/classes.txt names the classes, one a line"
        )


def augmentation(crop: int, classes: Classes) -> v2.Transform:
    """Random flip, zoom, crop and colours, of a PIL photo and a `tv_tensors.Mask` (1, H, W). What lies outside of the
    photo is grey, and ignored. Mild: a linear head on frozen features has nothing to spare for more."""
    fill = {Image.Image: (124, 116, 104), tv_tensors.Mask: classes.ignore}
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(0, scale=(0.8, 1.25), interpolation=v2.InterpolationMode.BILINEAR, fill=fill),
            v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
            v2.ColorJitter(0.1, 0.1, 0.1),
        ]
    )


def draw_batch(
    pairs: list[Pair], size: int, augment: v2.Transform, classes: Classes, preprocess: ImageTransform
) -> tuple[Tensor, Tensor]:
    """Random photos, augmented: (B, 3, H, W) as the backbone wants them, and labels (B, H, W). By torch's generator
    alone."""
    images, labels = [], []
    for i in torch.randperm(len(pairs))[:size].tolist():
        photo, label = read_pair(pairs[i], classes)
        photo, mask = augment(photo, tv_tensors.Mask(label[None]))
        images.append(preprocess(photo, (photo.height, photo.width), keep_aspect=True))
        labels.append(mask[0].long())
    return torch.stack(images), torch.stack(labels)
