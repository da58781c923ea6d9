"""ImageNet-1k as ILSVRC distributes it, with the lists of 1 % and 10 % of its training images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitbackbone.evaluation.datasets.layout import (
    Images,
    Labelled,
    Layout,
    LayoutError,
    class_folders,
    count_labelled,
    read_lines,
)

TREE = "{train,val}/WNID/*.JPEG"


def read_imagenet(root: Path) -> Labelled:
    """Read ImageNet, or any dataset of that layout. Classes are the folders of `train`, sorted.

    Raises `LayoutError` on another layout, and if `val` has a class that `train` lacks or the other way round.
    """
    train = class_folders(root, "train", None, TREE)
    test = class_folders(root, "val", train.classes, TREE)
    for split, images, other in (("val", test, "train"), ("train", train, "val")):
        missing = sorted({*range(len(train.classes))} - {*images.labels.tolist()})
        if missing:
            names = ", ".join(train.classes[i] for i in missing[:3])
            raise LayoutError(
                f"{root}/{split} has no image of {len(missing)} classes that {other} has, such as {names}"
            )
    return Labelled(train, test)


def listed(train: Images, file: Path) -> Images:
    """Return the training images that a SimCLR list names, such as `n04235860_14959.JPEG`, in the list's order.

    Raises `LayoutError` if the list names an image that is missing.
    """
    rows = {name.rpartition("/")[2]: row for row, name in enumerate(train.names)}
    wanted = read_lines(file)
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise LayoutError(f"{file} lists {len(missing)} images that {train.root} lacks, such as {missing[0]}")
    return train.take(np.array([rows[name] for name in wanted], dtype=np.int64))


def read_list(root: Path) -> Path:
    """Return the file of a list of training images. Raises `LayoutError` if it is missing."""
    if root.is_file():
        return root
    raise LayoutError(f"{root} is not a list of training images; give the file, such as 1percent.txt of SimCLR")


def _count_list(file: Path) -> dict[str, int]:
    return {"training images": len(read_lines(file))}


def _list(name: str, share: str, count: int) -> Layout:
    text = f"{share} of ImageNet's training images, as SimCLR lists them"
    tree = "a file with a name such as n04235860_14959.JPEG a line"
    official = {"training images": count}
    source = "google-research/simclr, imagenet_subsets"
    return Layout(name, "list", text, tree, read_list, _count_list, official, source)


def wnids(classes: Sequence[str]) -> dict[str, int]:
    """Return the index of each WordNet id."""
    return {name: i for i, name in enumerate(classes)}


OFFICIAL = {"training images": 1_281_167, "test images": 50_000, "classes": 1000}
LAYOUTS = {
    "imagenet": Layout(
        "imagenet", "classification", "ImageNet-1k (ILSVRC 2012)", TREE, read_imagenet, count_labelled, OFFICIAL
    ),
    "imagenet-1percent": _list("imagenet-1percent", "1 %", 12_811),
    "imagenet-10percent": _list("imagenet-10percent", "10 %", 128_116),
}
