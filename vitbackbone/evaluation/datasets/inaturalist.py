"""iNaturalist 2018 and 2021, by the JSON files of their competitions."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vitbackbone.evaluation.datasets.layout import Images, Labelled, Layout, LayoutError, count_labelled, need_file
from vitbackbone.evaluation.datasets.places import safe_name


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise LayoutError(f"{file} is not a complete JSON file ({error})") from error


def _split(root: Path, name: str, tree: str) -> Images:
    file = need_file(root, name, tree=tree)
    found = _read_json(file)
    try:
        files = {each["id"]: each["file_name"] for each in found["images"]}
        labels = {each["image_id"]: each["category_id"] for each in found["annotations"]}
        names = [each.get("name", str(each["id"])) for each in sorted(found["categories"], key=lambda each: each["id"])]
    except (KeyError, TypeError) as error:
        raise LayoutError(f"{file} lacks {error}; want images, annotations and categories, as in COCO") from error
    kept = [key for key in files if key in labels]
    if not kept or not all(0 <= labels[key] < len(names) for key in kept):
        raise LayoutError(f"{file} has {len(kept)} labelled images and {len(names)} categories, which do not fit")
    inside = [safe_name(files[key], name) for key in kept]
    return Images(root, inside, np.array([labels[key] for key in kept], dtype=np.int64), names, listed=True)


def _layout(year: str, train: str, test: str, folder: str, counts: tuple[int, int, int]) -> Layout:
    tree = f"{folder}, {train}, {test}"

    def read(root: Path) -> Labelled:
        return Labelled(_split(root, train, tree), _split(root, test, tree))

    official = dict(zip(("training images", "test images", "classes"), counts, strict=True))
    name = f"inaturalist-{year}"
    return Layout(name, "classification", f"iNaturalist {year}", tree, read, count_labelled, official)


LAYOUTS = {
    "inaturalist-2018": _layout(
        "2018", "train2018.json", "val2018.json", "train_val2018/SUPER/ID/*.jpg", (437_513, 24_426, 8142)
    ),
    "inaturalist-2021": _layout(
        "2021", "train.json", "val.json", "{train,val}/CATEGORY/*.jpg", (2_686_843, 100_000, 10_000)
    ),
}
