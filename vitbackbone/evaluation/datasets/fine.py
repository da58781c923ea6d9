"""The fine-grained and small datasets of Fine-S, in the layouts that torchvision's readers take."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitbackbone.evaluation.datasets.layout import (
    Images,
    Labelled,
    Layout,
    LayoutError,
    count_labelled,
    folder_names,
    image_names,
    need_file,
    need_folder,
    read_lines,
)
from vitbackbone.evaluation.datasets.places import safe_name

FOOD = "food-101/{images/CLASS/*.jpg,meta/{train,test}.json}"
SUN = "SUN397/{a..z/...,ClassName.txt,Training_01.txt,Testing_01.txt}"
CARS = "stanford_cars/{cars_train,cars_test,devkit/cars_{train,test}_annos*.mat}"
AIRCRAFT = "fgvc-aircraft-2013b/data/{images,variants.txt,images_variant_{trainval,test}.txt}"
VOC = "VOCdevkit/VOC2007/{JPEGImages,ImageSets/Main/CLASS_{trainval,test}.txt}"
DTD = "dtd/{images,labels/{train1,val1,test1}.txt}"
PETS = "oxford-iiit-pet/{images,annotations/{trainval,test}.txt}"
CALTECH = "101_ObjectCategories/CLASS/*.jpg, and optionally train.txt and test.txt with CLASS/NAME.jpg a line"
FLOWERS = "flowers-102/{jpg,imagelabels.mat,setid.mat}"
CUB = "CUB_200_2011/{images,images.txt,image_class_labels.txt,train_test_split.txt}"
CALTECH_TRAINING = 30  # images of a class, if there are no list files

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]


def _images(root: Path, names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> Images:
    if not names:
        raise LayoutError(f"{root} lists no image")
    wrong = [(name, label) for name, label in zip(names, labels, strict=True) if not 0 <= label < len(classes)]
    if wrong:
        raise LayoutError(f"{root} gives {wrong[0][0]} the class {wrong[0][1] + 1}, and has {len(classes)} classes")
    inside = [safe_name(name, str(root)) for name in names]
    return Images(root, inside, np.array(labels, dtype=np.int64), list(classes), listed=True)


def _named(root: Path, pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> Images:
    """Return images with the names of their classes."""
    index = {name: i for i, name in enumerate(classes)}
    unknown = [name for _, name in pairs if name not in index]
    if unknown:
        raise LayoutError(f"{root}: {unknown[0]!r} is not a class of the list")
    return _images(root, [path for path, _ in pairs], [index[name] for _, name in pairs], classes)


def _row(file: Path, line: str, count: int, between: str | None = None) -> list[str]:
    """Return the fields of a line. Raises `LayoutError` if there are fewer than `count`."""
    fields = line.split(between, count - 1 if between else -1)
    if len(fields) < count:
        raise LayoutError(f"{file} has the line {line[:80]!r}; want {count} fields")
    return fields


def _below(root: Path, folder: str, tree: str) -> Path:
    """Return the folder of a dataset, which is given itself or holds it."""
    return root / folder if (root / folder).is_dir() else need_folder(root, tree=tree)


def read_food(root: Path) -> Labelled:
    """Read Food-101. Raises `LayoutError` on another layout."""
    top = _below(root, "food-101", FOOD)

    def split(name: str) -> list[tuple[str, str]]:
        file = need_file(top, "meta", f"{name}.json", tree=FOOD)
        try:
            found = json.loads(file.read_bytes())
        except ValueError as error:
            raise LayoutError(f"{file} is not a complete JSON file ({error})") from error
        return [(f"images/{path}.jpg", label) for label in sorted(found) for path in found[label]]

    classes = sorted({label for _, label in split("train")})
    return Labelled(_named(top, split("train"), classes), _named(top, split("test"), classes))


def read_sun(root: Path) -> Labelled:
    """Read SUN397 by its first official split. Raises `LayoutError` on another layout."""
    top = _below(root, "SUN397", SUN)
    classes = read_lines(need_file(top, "ClassName.txt", tree=SUN))

    def split(name: str) -> list[tuple[str, str]]:
        lines = read_lines(need_file(top, name, tree=SUN))
        return [(line.lstrip("/"), line.rpartition("/")[0]) for line in lines]

    return Labelled(_named(top, split("Training_01.txt"), classes), _named(top, split("Testing_01.txt"), classes))


def _mat(file: Path) -> Any:
    from scipy.io import loadmat

    try:
        return loadmat(file, squeeze_me=True)
    except Exception as error:  # a damaged file raises anything
        raise LayoutError(f"{file} is not a MATLAB file ({error})") from error


def read_cars(root: Path) -> Labelled:
    """Read Stanford Cars. Raises `LayoutError` on another layout."""
    top = _below(root, "stanford_cars", CARS)
    names = [
        str(name) for name in np.atleast_1d(_mat(need_file(top, "devkit", "cars_meta.mat", tree=CARS))["class_names"])
    ]

    def split(name: str, *files: str) -> Images:
        found = next((top.joinpath(*file.split("/")) for file in files if (top / file).is_file()), None)
        if found is None:
            raise LayoutError(f"{top} has no {files[0]}; the official layout is {CARS}")
        rows = np.atleast_1d(_mat(found)["annotations"])
        pairs = [(f"cars_{name}/{row['fname']}", int(row["class"]) - 1) for row in rows]
        return _images(top, [path for path, _ in pairs], [label for _, label in pairs], names)

    test = "cars_test_annos_withlabels.mat"
    return Labelled(split("train", "devkit/cars_train_annos.mat"), split("test", test, f"devkit/{test}"))


def read_aircraft(root: Path) -> Labelled:
    """Read FGVC-Aircraft with its 100 variants. Raises `LayoutError` on another layout."""
    top = _below(root, "fgvc-aircraft-2013b", AIRCRAFT) / "data"
    classes = read_lines(need_file(top, "variants.txt", tree=AIRCRAFT))

    def split(name: str) -> Images:
        lines = read_lines(need_file(top, f"images_variant_{name}.txt", tree=AIRCRAFT))
        pairs = [_row(top / f"images_variant_{name}.txt", line, 2, " ") for line in lines]
        return _named(top, [(f"images/{number}.jpg", label) for number, label, *_ in pairs], classes)

    return Labelled(split("trainval"), split("test"))


def read_voc2007(root: Path) -> Labelled:
    """Read the 20 binary labels of VOC 2007. Difficult objects are not counted. Raises `LayoutError`."""
    top = need_folder(root, *(["VOCdevkit"] if (root / "VOCdevkit").is_dir() else []), "VOC2007", tree=VOC)

    def split(name: str) -> Images:
        columns, numbers = [], list[str]()
        for label in VOC_CLASSES:
            file = need_file(top, "ImageSets", "Main", f"{label}_{name}.txt", tree=VOC)
            rows = [_row(file, line, 2) for line in read_lines(file)]
            if numbers and numbers != [row[0] for row in rows]:
                raise LayoutError(f"{file} lists other images than {VOC_CLASSES[0]}_{name}.txt, or in another order")
            numbers = [row[0] for row in rows]
            columns.append([{"1": 1, "-1": 0, "0": -1}[row[1]] for row in rows])
        labels, names = np.array(columns, dtype=np.int64).T, [safe_name(f"JPEGImages/{n}.jpg", name) for n in numbers]
        return Images(top, names, labels, VOC_CLASSES, listed=True)

    return Labelled(split("trainval"), split("test"))


def read_dtd(root: Path) -> Labelled:
    """Read DTD by its first split. Raises `LayoutError` on another layout."""
    top = _below(root, "dtd", DTD)

    def split(*names: str) -> list[tuple[str, str]]:
        lines = [line for name in names for line in read_lines(need_file(top, "labels", name, tree=DTD))]
        return [(f"images/{line}", line.partition("/")[0]) for line in lines]

    train = split("train1.txt", "val1.txt")
    classes = sorted({label for _, label in train})
    return Labelled(_named(top, train, classes), _named(top, split("test1.txt"), classes))


def read_pets(root: Path) -> Labelled:
    """Read the 37 breeds of Oxford-IIIT Pet. Raises `LayoutError` on another layout."""
    top = _below(root, "oxford-iiit-pet", PETS)

    def split(name: str) -> list[tuple[str, int]]:
        lines = read_lines(need_file(top, "annotations", f"{name}.txt", tree=PETS))
        rows = [_row(top / f"annotations/{name}.txt", line, 2) for line in lines if not line.startswith("#")]
        return [(row[0], int(row[1]) - 1) for row in rows]

    breeds = dict(sorted({(label, name.rpartition("_")[0]) for name, label in split("trainval")}))

    def images(name: str) -> Images:
        rows = split(name)
        return _images(
            top, [f"images/{each}.jpg" for each, _ in rows], [label for _, label in rows], [*breeds.values()]
        )

    return Labelled(images("trainval"), images("test"))


def read_caltech(root: Path) -> Labelled:
    """Read Caltech-101. Without list files, 30 images of a class are drawn to fit on. Raises `LayoutError`."""
    top = _below(root, "101_ObjectCategories", CALTECH)
    classes = folder_names(top)
    if not classes:
        raise LayoutError(f"{top} has no class folders; the official layout is {CALTECH}")
    if (top / "train.txt").is_file() and (top / "test.txt").is_file():
        pairs = {
            name: [(line, line.partition("/")[0]) for line in read_lines(top / f"{name}.txt")]
            for name in ("train", "test")
        }
    else:
        pairs = {"train": [], "test": []}
        random = np.random.RandomState(0)
        for label in classes:
            files = [(f"{label}/{name}", label) for name in image_names(top / label)]
            order = random.permutation(len(files)).tolist()
            pairs["train"] += [files[i] for i in sorted(order[:CALTECH_TRAINING])]
            pairs["test"] += [files[i] for i in sorted(order[CALTECH_TRAINING:])]
    return Labelled(_named(top, pairs["train"], classes), _named(top, pairs["test"], classes))


def read_flowers(root: Path) -> Labelled:
    """Read Flowers-102; train and val are fitted on. Raises `LayoutError` on another layout."""
    top = _below(root, "flowers-102", FLOWERS)
    labels = np.atleast_1d(_mat(need_file(top, "imagelabels.mat", tree=FLOWERS))["labels"]).astype(int) - 1
    sets = _mat(need_file(top, "setid.mat", tree=FLOWERS))
    classes = [str(i + 1) for i in range(int(labels.max()) + 1)]

    def split(*names: str) -> Images:
        ids = [int(i) for name in names for i in np.atleast_1d(sets[name])]
        return _images(top, [f"jpg/image_{i:05d}.jpg" for i in ids], [int(labels[i - 1]) for i in ids], classes)

    return Labelled(split("trnid", "valid"), split("tstid"))


def read_cub(root: Path) -> Labelled:
    """Read CUB-200-2011. Raises `LayoutError` on another layout."""
    top = _below(root, "CUB_200_2011", CUB)
    files = [need_file(top, f"{name}.txt", tree=CUB) for name in ("images", "image_class_labels", "train_test_split")]
    names, labels, fitted = (dict(_row(file, line, 2, " ")[:2] for line in read_lines(file)) for file in files)
    if not names.keys() == labels.keys() == fitted.keys():
        raise LayoutError(f"{top}: {', '.join(file.name for file in files)} do not list the same images")
    classes = [str(i + 1) for i in range(max(map(int, labels.values())))]

    def split(flag: str) -> Images:
        keys = [key for key in names if fitted[key] == flag]
        return _images(top, [f"images/{names[key]}" for key in keys], [int(labels[key]) - 1 for key in keys], classes)

    return Labelled(split("1"), split("0"))


Reader = Callable[[Path], Labelled]
TABLE: dict[str, tuple[str, str, Reader, tuple[int, int, int]]] = {
    "food101": ("Food-101", FOOD, read_food, (75_750, 25_250, 101)),
    "sun397": ("SUN397", SUN, read_sun, (19_850, 19_850, 397)),
    "cars": ("Stanford Cars", CARS, read_cars, (8144, 8041, 196)),
    "aircraft": ("FGVC-Aircraft", AIRCRAFT, read_aircraft, (6667, 3333, 100)),
    "voc2007": ("Pascal VOC 2007 classification", VOC, read_voc2007, (5011, 4952, 20)),
    "dtd": ("Describable Textures", DTD, read_dtd, (3760, 1880, 47)),
    "pets": ("Oxford-IIIT Pet", PETS, read_pets, (3680, 3669, 37)),
    "caltech101": ("Caltech-101", CALTECH, read_caltech, (3060, 6084, 102)),
    "flowers102": ("Oxford Flowers-102", FLOWERS, read_flowers, (2040, 6149, 102)),
    "cub200": ("CUB-200-2011", CUB, read_cub, (5994, 5794, 200)),
}
COUNTS = ("training images", "test images", "classes")
LAYOUTS = {
    name: Layout(
        name,
        "classification",
        title,
        tree,
        read,
        count_labelled,
        dict(zip(COUNTS, official, strict=True)),
        "torchvision",
    )
    for name, (title, tree, read, official) in TABLE.items()
}
