"""The test sets that share ImageNet's classes: V2, ReaL, A, R, Sketch and C."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitbackbone.evaluation.datasets.layout import (
    Images,
    Layout,
    LayoutError,
    class_folders,
    folder_names,
    image_names,
    need_folder,
)
from vitbackbone.evaluation.datasets.places import settle
from vitbackbone.evaluation.settings import digest

V2_TREE = "imagenetv2-matched-frequency-format-val/0..999/*.jpeg"
REAL_TREE = "real.json: a list of class indices for each of the 50,000 validation images"
FOLDERS_TREE = "WNID/*"
C_TREE = "CORRUPTION/1..5/WNID/*.JPEG"
SEVERITIES = ("1", "2", "3", "4", "5")


@dataclass(frozen=True, eq=False)
class ByWnid:
    """Images in folders of WordNet ids. ImageNet's own folders tell the index of an id."""

    images: Images  # labels are indices into `images.classes`

    def labelled(self, classes: Sequence[str]) -> tuple[Images, np.ndarray]:
        """Return the images with ImageNet's class indices, and the sorted indices of the classes that occur.

        Raises `LayoutError` if a folder is not a class of ImageNet.
        """
        index = {name: i for i, name in enumerate(classes)}
        unknown = [name for name in self.images.classes if name not in index]
        if unknown:
            raise LayoutError(
                f"{self.images.root} has the folder {unknown[0]}, which is not a class of the ImageNet given"
            )
        own = np.array([index[name] for name in self.images.classes], dtype=np.int64)
        labels = own[self.images.labels]
        images = Images(self.images.root, self.images.names, labels, classes)
        return images, np.sort(own)

    def digest(self) -> str:
        return self.images.digest()


@dataclass(frozen=True, eq=False)
class Corrupted:
    """ImageNet-C: the images of each corruption and severity."""

    parts: Mapping[tuple[str, str], ByWnid]

    def digest(self) -> str:
        return digest([[*key, part.digest()] for key, part in sorted(self.parts.items())])


def read_v2(root: Path) -> Images:
    """Read ImageNet V2. A folder's name is the class index: 0, 1, 2, ..., not the order of sorted names.

    Raises `LayoutError` on another layout.
    """
    inner = root / "imagenetv2-matched-frequency-format-val"
    top = inner if inner.is_dir() else need_folder(root, tree=V2_TREE)
    folders = folder_names(top)
    wrong = [name for name in folders if not name.isdecimal() or int(name) > 999]
    if wrong or not folders:
        raise LayoutError(f"{top} has the folder {wrong[0] if wrong else 'of no class'}; want {V2_TREE}")
    names, labels = [], []
    for folder in sorted(folders, key=int):
        images = image_names(top / folder)
        names += [f"{folder}/{name}" for name in images]
        labels += [int(folder)] * len(images)
    return Images(top, names, np.array(labels, dtype=np.int64), [str(i) for i in range(1000)])


def read_real(root: Path) -> dict[str, list[int]]:
    """Return the classes of each validation image by its name, such as ILSVRC2012_val_00000001.

    Raises `LayoutError` if the file is missing or no list of lists of class indices.
    """
    file = root if root.is_file() else root / "real.json"
    if not file.is_file():
        raise LayoutError(f"{root} has no real.json; want {REAL_TREE}")
    try:
        lists = json.loads(file.read_text())
    except ValueError as error:
        raise LayoutError(f"{file} is not a complete JSON file ({error})") from error
    if not isinstance(lists, list) or not all(
        isinstance(each, list) and all(isinstance(label, int) for label in each) for each in lists
    ):
        raise LayoutError(f"{file} is not a list of lists of class indices; want {REAL_TREE}")
    return {f"ILSVRC2012_val_{i + 1:08d}": each for i, each in enumerate(lists)}


def read_wnids(root: Path) -> ByWnid:
    """Read folders of WordNet ids, or the folder of an archive that has them. Raises `LayoutError`."""
    return ByWnid(class_folders(settle(root, "imagenet-a", "imagenet-r", "sketch"), "", None, FOLDERS_TREE))


def read_c(root: Path) -> Corrupted:
    """Read ImageNet-C. Corruptions may be in the folders of its archives, such as `blur/`.

    Raises `LayoutError` if there is no corruption, or if one lacks a severity.
    """
    found: dict[str, Path] = {}
    for folder in folder_names(need_folder(root, tree=C_TREE)):
        inside = folder_names(root / folder)
        if "1" in inside:
            found[folder] = root / folder
        else:
            found |= {name: root / folder / name for name in inside if (root / folder / name / "1").is_dir()}
    if not found:
        raise LayoutError(f"{root} has no corruption; want {C_TREE}")
    parts = {}
    for name, top in sorted(found.items()):
        for severity in SEVERITIES:
            if not (top / severity).is_dir():
                raise LayoutError(f"{top} has no severity {severity}; want {C_TREE}")
            parts[name, severity] = ByWnid(class_folders(top, severity, None, C_TREE))
    return Corrupted(parts)


def _count(images: Images) -> dict[str, int]:
    return {"test images": len(images), "classes": len(np.unique(images.labels))}


def _count_c(data: Corrupted) -> dict[str, int]:
    return {
        "corruptions": len({name for name, _ in data.parts}),
        "test images": sum(len(part.images) for part in data.parts.values()),
    }


def _folders(name: str, title: str, images: int, classes: int, source: str) -> Layout:
    return Layout(
        name,
        "imagenet-test",
        title,
        FOLDERS_TREE,
        read_wnids,
        lambda data: _count(data.images),
        {"test images": images, "classes": classes},
        source,
    )


LAYOUTS = {
    "imagenet-v2": Layout(
        "imagenet-v2",
        "imagenet-test",
        "ImageNet V2, matched frequency",
        V2_TREE,
        read_v2,
        _count,
        {"test images": 10_000, "classes": 1000},
        "modestyachts/ImageNetV2",
    ),
    "imagenet-real": Layout(
        "imagenet-real",
        "imagenet-test",
        "ImageNet ReaL: reassessed labels of the validation images",
        REAL_TREE,
        read_real,
        lambda lists: {"lists": len(lists), "images with a label": sum(map(bool, lists.values()))},
        {"lists": 50_000, "images with a label": 46_837},
        "google-research/reassessed-imagenet",
    ),
    "imagenet-a": _folders("imagenet-a", "ImageNet-A", 7500, 200, "hendrycks/natural-adv-examples"),
    "imagenet-r": _folders("imagenet-r", "ImageNet-R", 30_000, 200, "hendrycks/imagenet-r"),
    "imagenet-sketch": _folders("imagenet-sketch", "ImageNet-Sketch", 50_889, 1000, "HaohanWang/ImageNet-Sketch"),
    "imagenet-c": Layout(
        "imagenet-c",
        "imagenet-test",
        "ImageNet-C",
        C_TREE,
        read_c,
        _count_c,
        {"corruptions": 19, "test images": 4_750_000},
        "hendrycks/robustness",
    ),
}
