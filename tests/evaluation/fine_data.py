"""Tiny copies of the small classification datasets, in the layouts that they are distributed in."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.evaluation.classified import save
from vitbackbone.evaluation.datasets.fine import VOC_CLASSES

# Each maker writes images 0-3 to fit on, of the classes 0, 0, 1, 1, and images 4-5 to test on, of the classes 0, 1.
TRAIN, TEST = [(0, 0), (1, 0), (2, 1), (3, 1)], [(4, 0), (5, 1)]
FITTED, TESTED = [0, 0, 1, 1], [0, 1]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def food(root: Path) -> None:
    top = root / "food-101"
    for name, rows in (("train", TRAIN), ("test", TEST)):
        lists = {label: [f"{label}/{i}" for i, c in rows if "ab"[c] == label] for label in "ab"}
        write(top / "meta" / f"{name}.json", json.dumps(lists))
        for i, c in rows:
            save(top / "images" / "ab"[c] / f"{i}.jpg", c, i)


def sun(root: Path) -> None:
    top = root / "SUN397"
    write(top / "ClassName.txt", "/a/abbey\n/b/bar/indoor\n")
    names = ["/a/abbey", "/b/bar/indoor"]
    for name, rows in (("Training_01.txt", TRAIN), ("Testing_01.txt", TEST)):
        write(top / name, "\n".join(f"{names[c]}/sun_{i}.jpg" for i, c in rows))
        for i, c in rows:
            save(top / names[c][1:] / f"sun_{i}.jpg", c, i)


def cars(root: Path) -> None:
    top = root / "stanford_cars"
    (top / "devkit").mkdir(parents=True)
    savemat(top / "devkit" / "cars_meta.mat", {"class_names": np.array(["A", "B"], dtype=object)})
    for name, rows, file in (("train", TRAIN, "cars_train_annos"), ("test", TEST, "cars_test_annos_withlabels")):
        kind = [("fname", "O"), ("class", "u1")]
        table = np.array([(f"{i:05}.jpg", c + 1) for i, c in rows], dtype=kind)
        place = top / f"{file}.mat" if name == "test" else top / "devkit" / f"{file}.mat"
        savemat(place, {"annotations": table})
        for i, c in rows:
            save(top / f"cars_{name}" / f"{i:05}.jpg", c, i)


def aircraft(root: Path) -> None:
    top = root / "fgvc-aircraft-2013b" / "data"
    write(top / "variants.txt", "707-320\nA 300B4\n")
    for name, rows in (("trainval", TRAIN), ("test", TEST)):
        lines = [f"{i:07} {['707-320', 'A 300B4'][c]}" for i, c in rows]
        write(top / f"images_variant_{name}.txt", "\n".join(lines))
        for i, c in rows:
            save(top / "images" / f"{i:07}.jpg", c, i)


def dtd(root: Path) -> None:
    top = root / "dtd"
    parts = {"train1": TRAIN[:2], "val1": TRAIN[2:], "test1": TEST}
    for name, rows in parts.items():
        write(top / "labels" / f"{name}.txt", "\n".join(f"{'ab'[c]}/{i}.jpg" for i, c in rows))
        for i, c in rows:
            save(top / "images" / "ab"[c] / f"{i}.jpg", c, i)


def pets(root: Path) -> None:
    top = root / "oxford-iiit-pet"
    for name, rows in (("trainval", TRAIN), ("test", TEST)):
        breeds = ["great_dane", "Bengal"]
        lines = [f"{breeds[c]}_{i} {c + 1} 1 1" for i, c in rows]
        write(top / "annotations" / f"{name}.txt", "\n".join(lines))
        for i, c in rows:
            save(top / "images" / f"{breeds[c]}_{i}.jpg", c, i)


def caltech(root: Path) -> None:
    top = root / "101_ObjectCategories"
    for name, rows in (("train", TRAIN), ("test", TEST)):
        write(top / f"{name}.txt", "\n".join(f"{'ab'[c]}/{i}.jpg" for i, c in rows))
        for i, c in rows:
            save(top / "ab"[c] / f"{i}.jpg", c, i)


def flowers(root: Path) -> None:
    top = root / "flowers-102"
    top.mkdir(parents=True)
    labels = [c + 1 for _, c in (*TRAIN, *TEST)]
    savemat(top / "imagelabels.mat", {"labels": labels})
    savemat(top / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})
    for i, c in (*TRAIN, *TEST):
        save(top / "jpg" / f"image_{i + 1:05}.jpg", c, i)


def cub(root: Path) -> None:
    top, rows = root / "CUB_200_2011", [*TRAIN, *TEST]
    write(top / "images.txt", "\n".join(f"{i + 1} {'ab'[c]}/{i}.jpg" for i, c in rows))
    write(top / "image_class_labels.txt", "\n".join(f"{i + 1} {c + 1}" for i, c in rows))
    write(top / "train_test_split.txt", "\n".join(f"{i + 1} {int(i < 4)}" for i, _ in rows))
    for i, c in rows:
        save(top / "images" / "ab"[c] / f"{i}.jpg", c, i)


def inaturalist(root: Path) -> None:
    for name, rows in (("train2018", TRAIN), ("val2018", TEST)):
        content = {
            "images": [{"id": i, "file_name": f"train_val2018/Aves/{c}/{i}.jpg"} for i, c in rows],
            "annotations": [{"image_id": i, "category_id": c} for i, c in reversed(rows)],
            "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        }
        write(root / f"{name}.json", json.dumps(content))
        for i, c in rows:
            save(root / "train_val2018" / "Aves" / str(c) / f"{i}.jpg", c, i)


def voc(root: Path) -> None:
    top = root / "VOCdevkit" / "VOC2007"
    for column, label in enumerate(VOC_CLASSES):
        for name, rows in (("trainval", TRAIN), ("test", TEST)):
            marks = [1 if c == column else 0 if column == 2 else -1 for _, c in rows]
            lines = [f"{i:06} {mark:2d}" for (i, _), mark in zip(rows, marks, strict=True)]
            write(top / "ImageSets" / "Main" / f"{label}_{name}.txt", "\n".join(lines))
    for i, c in (*TRAIN, *TEST):
        save(top / "JPEGImages" / f"{i:06}.jpg", c, i)


MAKERS: dict[str, Callable[[Path], None]] = {
    "food101": food,
    "sun397": sun,
    "cars": cars,
    "aircraft": aircraft,
    "dtd": dtd,
    "pets": pets,
    "caltech101": caltech,
    "flowers102": flowers,
    "cub200": cub,
    "inaturalist-2018": inaturalist,
    "voc2007": voc,
}
