"""CIFAR-10 and CIFAR-100 as Python pickles, read by the unpickler of `safe_pickle`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitbackbone.evaluation.datasets.layout import Images, Labelled, Layout, LayoutError, count_labelled, need_file
from vitbackbone.evaluation.safe_pickle import read_pickle

TREE10 = "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"
TREE100 = "cifar-100-python/{train,test,meta}"


def _field(file: Path, value: Any, *names: str) -> Any:
    if not isinstance(value, dict) or not any(name in value for name in names):
        raise LayoutError(f"{file} has no {names[0]}; it is not a file of CIFAR")
    return next(value[name] for name in names if name in value)


def _split(root: Path, folder: str, files: Sequence[str], names: Sequence[str], tree: str) -> Images:
    pixels, labels, shown = [], [], []
    for name in files:
        file = need_file(root, folder, name, tree=tree)
        batch = read_pickle(file)
        data = _field(file, batch, "data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise LayoutError(f"{file} holds no images of 3 x 32 x 32 bytes")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += list(_field(file, batch, "fine_labels", "labels"))
        shown += [f"{name}/{row}" for row in range(len(data))]
    array = np.ascontiguousarray(np.concatenate(pixels))
    if len(labels) != len(array) or not all(0 <= label < len(names) for label in labels):
        raise LayoutError(f"{root / folder}: {len(labels)} labels of {len(names)} classes for {len(array)} images")
    return Images(root, shown, np.array(labels, dtype=np.int64), names, array)


def _read(root: Path, folder: str, train: Sequence[str], test: Sequence[str], meta: str, tree: str) -> Labelled:
    file = need_file(root, folder, meta, tree=tree)
    names = list(_field(file, read_pickle(file), "fine_label_names", "label_names"))
    return Labelled(_split(root, folder, train, names, tree), _split(root, folder, test, names, tree))


def read_cifar10(root: Path) -> Labelled:
    """Read CIFAR-10. Raises `LayoutError` on another layout, `ValueError` on a file that is no such pickle."""
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    return _read(root, "cifar-10-batches-py", batches, ["test_batch"], "batches.meta", TREE10)


def read_cifar100(root: Path) -> Labelled:
    """Read CIFAR-100 with its 100 fine classes. Raises as `read_cifar10` does."""
    return _read(root, "cifar-100-python", ["train"], ["test"], "meta", TREE100)


LAYOUTS = {
    "cifar10": Layout(
        "cifar10",
        "classification",
        "CIFAR-10",
        TREE10,
        read_cifar10,
        count_labelled,
        {"training images": 50_000, "test images": 10_000, "classes": 10},
    ),
    "cifar100": Layout(
        "cifar100",
        "classification",
        "CIFAR-100",
        TREE100,
        read_cifar100,
        count_labelled,
        {"training images": 50_000, "test images": 10_000, "classes": 100},
    ),
}
