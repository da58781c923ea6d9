"""Photos with a class for every pixel, in the layout that examples/segment.py reads.

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

from vitbackbone import ImageError, load_image
from vitbackbone.images import ImageTransform

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
GREY = [124, 116, 104]
Pair = tuple[Path, Path]  # a photo and its label


@dataclass(frozen=True)
class Classes:
    names: tuple[str, ...]
    ignore: int  # label of the pixels that are left out

    @classmethod
    def of(cls, data: Path, ignore: int | None) -> "Classes":
        """Read the names in `data/classes.txt`, one on each line in the order of their indices.

        If there is no such file, the classes are CamVid's. By default the index after the last class is ignored.
        """
        file = data / "classes.txt"
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else CAMVID
        names = [name for name in names if name]
        if not names:
            raise ValueError(f"{file} is empty; want the name of a class on each line")
        return cls(tuple(names), len(names) if ignore is None else ignore)


def find_pairs(split: Path) -> list[Pair]:
    """Find each photo of a split and its label, in the order of their names.

    Raises `ValueError` if a folder, a photo or a label is missing.
    """
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
    """Read an RGB photo and its label, uint8 (H, W).

    Raises `ValueError` if the photo cannot be read, the sizes differ, or the label is not a map of these classes.
    """
    try:
        photo = load_image(pair[0])
    except ImageError as error:
        raise ValueError(f"{pair[0]}: {error}") from error
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
            "is ignored. DATA/classes.txt names the classes, and --ignore N sets the label to leave out"
        )
    return photo, label


def check_pairs(pairs: list[Pair], classes: Classes) -> None:
    """Read all pairs, before hours are spent on them.

    Raises `ValueError` as `read_pair` does, and if no pixel shows a class.
    """
    seen = torch.zeros(256, dtype=torch.bool)
    for pair in tqdm(pairs, desc="checking", unit="photo", leave=False):
        seen[read_pair(pair, classes)[1].unique().long()] = True
    unseen = [name for i, name in enumerate(classes.names) if i != classes.ignore and not seen[i]]
    if unseen:
        raise ValueError(
            f"no pixel of {pairs[0][1].parent} is {' or '.join(unseen)}; want every class of DATA/classes.txt"
        )


def windows(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Return the (top, left) of windows that cover a photo evenly and overlap by at least a quarter."""
    return [(top, left) for top in _starts(height, side) for left in _starts(width, side)]


def _starts(length: int, side: int) -> list[int]:
    steps = max(0, -(-4 * (length - side) // (3 * side)))
    return [round(i * (length - side) / steps) for i in range(steps + 1)] if steps else [0]


def augmentation(colours: bool) -> v2.Transform:
    """Make a random flip of a PIL photo and its `tv_tensors.Mask` (1, H, W), with colour jitter if `colours`."""
    return v2.Compose([v2.RandomHorizontalFlip(), *([v2.ColorJitter(0.2, 0.2, 0.2)] if colours else [])])


def draw_batch(
    pairs: list[Pair], size: int, side: int, augment: v2.Transform, classes: Classes, preprocess: ImageTransform
) -> tuple[Tensor, Tensor]:
    """Draw augmented windows of random photos: (B, 3, side, side), normalised, and labels (B, side, side).

    All randomness comes from torch's generator. The windows are the same that a photo is later cut into, because their
    places tell a token where in the photo it is. A smaller photo is padded in grey, and the padding is ignored.
    """
    images, labels = [], []
    for i in torch.randperm(len(pairs))[:size].tolist():
        photo, label = read_pair(pairs[i], classes)
        photo, mask = augment(photo, tv_tensors.Mask(label[None]))
        corners = windows(photo.height, photo.width, side)
        top, left = corners[int(torch.randint(len(corners), ()))]
        missing = [0, 0, max(0, side - photo.width), max(0, side - photo.height)]
        photo = v2.functional.crop(v2.functional.pad(photo, missing, fill=GREY), top, left, side, side)
        mask = v2.functional.crop(v2.functional.pad(mask, missing, fill=classes.ignore), top, left, side, side)
        images.append(preprocess(photo, side, keep_aspect=True))
        labels.append(mask[0].long())
    return torch.stack(images), torch.stack(labels)
