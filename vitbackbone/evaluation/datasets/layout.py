"""The layout of a dataset as it is distributed: how to read it in place, and its official counts."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vitbackbone.evaluation.settings import digest


class LayoutError(ValueError):
    """A folder does not have the layout that a dataset is distributed in."""


@dataclass(frozen=True)
class Layout:
    """A dataset and its official layout.

    `read` opens a folder and returns the record of the dataset's kind; it raises `LayoutError` with a sentence if a
    file or folder is missing. `counts` returns the counts of a record, by name. `official` has the counts of the whole
    dataset, by the same names.
    """

    name: str
    kind: str  # such as "classification"
    title: str  # such as "ImageNet-1k"
    tree: str  # the layout, for `describe` and the documentation
    read: Callable[[Path], Any]
    counts: Callable[[Any], Mapping[str, int]]
    official: Mapping[str, int] = field(default_factory=dict)
    source: str = ""

    def load(self, root: Path) -> Any:
        """Read a folder. Raises `LayoutError`, whatever is wrong with its files."""
        if not root.exists():
            raise LayoutError(f"{root}: there is no such folder; want {self.title}, {self.tree}")
        try:
            return self.read(root)
        except LayoutError:
            raise
        except Exception as error:  # a damaged file of a dataset raises anything
            raise LayoutError(
                f"{root} cannot be read as {self.title}: {type(error).__name__}: {error}; compare its files with the "
                f"official layout, {self.tree}"
            ) from error

    def check(self, root: Path) -> "Check":
        """Compare a folder with the official counts. Raises `LayoutError` if it cannot be read at all."""
        return Check(self, root, dict(self.counts(self.load(root))))


@dataclass(frozen=True)
class Check:
    """The counts of a folder beside the official ones."""

    layout: Layout
    root: Path
    counts: Mapping[str, int]

    @property
    def differing(self) -> dict[str, tuple[int, int]]:
        """(here, official) of each count that differs."""
        official = self.layout.official
        return {
            name: (self.counts.get(name, 0), count)
            for name, count in official.items()
            if self.counts.get(name, 0) != count
        }


@dataclass(frozen=True, eq=False)
class Images:
    """Images in order, each with the index of its class, -1 if unknown. If an image may have several classes, `labels`
    has a column for each class: 1 present, 0 absent, -1 not counted.

    `pixels`: the images themselves, if the dataset is distributed as arrays; `names` are then for humans only.
    `listed`: whether the names are from a list of the dataset, so that files may be missing.
    """

    root: Path
    names: Sequence[str]  # paths relative to `root`
    labels: Int[np.ndarray, "N ..."]
    classes: Sequence[str]
    pixels: UInt8[np.ndarray, "N H W 3"] | None = None
    listed: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Int[np.ndarray, " n"]) -> "Images":
        """Return some of the images, in the given order."""
        names = [self.names[i] for i in rows.tolist()]
        pixels = None if self.pixels is None else self.pixels[rows]
        return replace(self, names=names, labels=self.labels[rows], pixels=pixels)

    def limited(self, limit: int | None) -> "Images":
        """Return at most `limit` images, a random choice with a fixed seed, in their order."""
        if limit is None or len(self) <= limit:
            return self
        return self.take(np.sort(np.random.RandomState(0).permutation(len(self))[:limit]))

    def digest(self) -> str:
        """Return a SHA-256 of the labels and of the images, as they are now."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digest(self.labels.tolist(), self.content or stamp(self.root, self.names))

    @cached_property
    def present(self) -> int:
        """The number of images that exist."""
        if not self.listed:
            return len(self)
        top = str(self.root)
        # A Path for each of a million names would take several times as long.
        return sum(os.path.exists(os.path.join(top, name)) for name in self.names)  # noqa: PTH110, PTH118

    @cached_property
    def content(self) -> str:
        """SHA-256 of the images if they are arrays, else empty."""
        return "" if self.pixels is None else hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()


@dataclass(frozen=True, eq=False)
class Labelled:
    """A classification dataset: `train` is fitted on, and `test` is reported."""

    train: Images
    test: Images

    def digest(self) -> str:
        """Return a SHA-256 of the images and labels of both splits."""
        return digest(self.train.digest(), self.test.digest())


def stamp(root: Path, names: Sequence[str]) -> str:
    """Return a SHA-256 of the files of a dataset: their place, names, sizes and times. It changes when they do."""
    top = str(root.absolute())
    return digest(top, [[name, *_status(os.path.join(top, name))] for name in names])  # noqa: PTH118  # for a million


def _status(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116  # a Path for each of a million is slow
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def count_labelled(data: Labelled) -> dict[str, int]:
    """Count the images of both splits that are there, and the classes that have images to fit on."""
    labels = data.train.labels
    fitted = labels.shape[1] if labels.ndim == 2 else len(np.unique(labels))
    return {"training images": data.train.present, "test images": data.test.present, "classes": fitted}


ARCHIVES = (".tar", ".zip", ".gz", ".tgz")
LOOKED_AT = 100  # entries of a folder, for a hint
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")


def image_names(folder: Path) -> list[str]:
    """Return the names of the images in a folder, sorted. Hidden files are not images."""
    with os.scandir(folder) as entries:
        found = [each.name for each in entries if each.name[0] != "." and each.name.lower().endswith(SUFFIXES)]
    return _sorted(folder, found)


def folder_names(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted."""
    with os.scandir(folder) as entries:
        found = [each.name for each in entries if each.name[0] != "." and each.is_dir()]
    return _sorted(folder, found)


def _sorted(folder: Path, names: Sequence[str]) -> list[str]:
    """Return names sorted. Raises `LayoutError` if one is not UTF-8, which no table holds."""
    wrong = [name for name in names if name.encode("utf-8", "ignore").decode() != name]
    if wrong:
        raise LayoutError(f"{folder} has the name {os.fsencode(wrong[0])!r}, which is not UTF-8; rename it")
    return sorted(names)


def class_folders(root: Path, split: str, classes: Sequence[str] | None, tree: str) -> Images:
    """Read `SPLIT/CLASS/*`. `classes`: the classes in the order of their indices; by default the folders, sorted.

    Raises `LayoutError` if the split or every class is missing, or a folder is not a class.
    """
    top = need_folder(root, *filter(None, [split]), tree=tree)
    found = folder_names(top)
    if not found:
        raise LayoutError(f"{top} has no class folders{_instead(top)}; the official layout is {tree}")
    known = list(found if classes is None else classes)
    index = {name: i for i, name in enumerate(known)}
    unknown = [name for name in found if name not in index]
    if unknown:
        raise LayoutError(f"{top} has {len(unknown)} folders that are not classes, such as {unknown[0]}; want {tree}")
    names, labels = [], []
    for name in found:
        images = image_names(top / name)
        names += ["/".join([*filter(None, [split]), name, image]) for image in images]
        labels += [index[name]] * len(images)
    if not names:
        raise LayoutError(f"{top} has {len(found)} class folders and no image; the official layout is {tree}")
    return Images(root, names, np.array(labels, dtype=np.int64), known)


def _instead(folder: Path) -> str:
    """Return what to do with what a folder has in place of class folders, or nothing."""
    if loose := len(image_names(folder)):
        return (
            f"; its {loose} images are outside of class folders: sort them by their list of labels, one folder a class"
        )
    packed = sum(each.suffix.lower() in ARCHIVES for each in folder.iterdir())
    return f"; unpack its {packed} archives, each into a folder of its name" if packed else ""


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file that are not empty. Raises `LayoutError` if it is not text."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise LayoutError(f"{file} is not a text file ({error})") from error


def need_folder(root: Path, *parts: str, tree: str) -> Path:
    """Return a folder of a dataset. Raises `LayoutError` if it is missing."""
    folder = root.joinpath(*parts)
    if not folder.is_dir():
        hint = _meant(root, parts)
        raise LayoutError(f"{root} has no folder {'/'.join(parts) or '.'}{hint}; the official layout is {tree}")
    return folder


def _meant(root: Path, parts: Sequence[str]) -> str:
    """Return a hint at the folder above or below that is meant, or nothing."""
    below = sorted(root.iterdir())[:LOOKED_AT] if root.is_dir() else []
    found = next((each for each in (root.absolute().parent, *below) if parts and each.joinpath(*parts).is_dir()), None)
    return f"; did you mean {found}?" if found else ""


def need_file(root: Path, *parts: str, tree: str) -> Path:
    """Return a file of a dataset. Raises `LayoutError` if it is missing."""
    file = root.joinpath(*parts)
    if not file.is_file():
        raise LayoutError(f"{root} has no file {'/'.join(parts)}; the official layout is {tree}")
    return file
