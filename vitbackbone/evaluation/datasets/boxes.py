"""Photos with boxes around their objects, for CorLoc: Pascal VOC 2007 and 2012 trainval, and COCO 20k."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float

from vitbackbone.evaluation.datasets.layout import Layout, LayoutError, need_file, stamp
from vitbackbone.evaluation.datasets.places import read_lines, safe_name, settle
from vitbackbone.files import read_bytes

VOC_TREE = "VOCdevkit/VOC{year}/{{JPEGImages,Annotations,ImageSets/Main/trainval.txt}}"
COCO_TREE = "train2014/, annotations/instances_train2014.json and coco_20k_filenames.txt (valeoai/LOST, datasets/)"
XML_BYTES, COCO_BYTES = 1 << 20, 1 << 30


@dataclass(frozen=True, eq=False)
class Boxed:
    """Photos, as paths relative to `root`, and the boxes (left, top, right, bottom) of each in pixels."""

    root: Path
    photos: Sequence[str]
    boxes: Sequence[Float[np.ndarray, "_ 4"]]

    def digest(self) -> str:
        """Return a SHA-256 of the photos. Boxes are compared at the end, with what was found."""
        return stamp(self.root, self.photos)


def _voc_boxes(file: Path) -> Float[np.ndarray, "_ 4"]:
    """Return the boxes of an annotation, difficult ones too. The first pixel has the coordinate 1, so 1 is taken off
    the left and the top."""
    try:
        text = read_bytes(file, XML_BYTES)
        if b"<!" in text:  # entities could expand without end
            raise ValueError("it has a document type; want plain elements")
        found = [
            [float(each.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
            for each in ElementTree.fromstring(text).iter("object")
        ]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise LayoutError(f"{file} is not an annotation of Pascal VOC: {error}") from error
    boxes = np.asarray(found, dtype=np.float64).reshape(-1, 4)
    return np.trunc(boxes) - np.array([1.0, 1.0, 0.0, 0.0])


def _read_voc(year: str, root: Path) -> Boxed:
    tree = VOC_TREE.format(year=year)
    root = settle(root, f"VOCdevkit/VOC{year}", f"VOC{year}")
    lines = read_lines(root, "ImageSets", "Main", "trainval.txt", tree=tree)
    names = [safe_name(line.split()[0], "trainval.txt") for line in lines]
    photos = [f"JPEGImages/{name}.jpg" for name in names]
    missing = [each for each in photos if not (root / each).is_file()]
    if missing or not photos:
        raise LayoutError(f"{root} lacks {len(missing)} of {len(photos)} photos; the official layout is {tree}")
    return Boxed(root, photos, [_voc_boxes(root / "Annotations" / f"{name}.xml") for name in names])


def read_voc07(root: Path) -> Boxed:
    """Read VOC 2007 trainval."""
    return _read_voc("2007", root)


def read_voc12(root: Path) -> Boxed:
    """Read VOC 2012 trainval."""
    return _read_voc("2012", root)


def read_coco20k(root: Path) -> Boxed:
    """Read the photos of LOST's list. Crowds are dropped, and boxes are rounded to pixels."""
    names = [Path(safe_name(line, "list")).name for line in read_lines(root, "coco_20k_filenames.txt", tree=COCO_TREE)]
    file = need_file(root, "annotations", "instances_train2014.json", tree=COCO_TREE)
    try:
        content = json.loads(read_bytes(file, COCO_BYTES))
        ids = {each["file_name"]: each["id"] for each in content["images"]}
        boxes: dict[int, list[list[float]]] = {}
        for each in content["annotations"]:
            if not each["iscrowd"]:
                x, y, width, height = each["bbox"]
                boxes.setdefault(each["image_id"], []).append([x, y, x + width, y + height])
        found = [np.round(np.asarray(boxes.get(ids[name], []), dtype=np.float64).reshape(-1, 4)) for name in names]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise LayoutError(f"{file} does not describe the photos of coco_20k_filenames.txt: {error!r}") from error
    folder = next((each for each in ("train2014", "images/train2014") if (root / each).is_dir()), "train2014")
    photos = [f"{folder}/{name}" for name in names]
    missing = [each for each in photos if not (root / each).is_file()]
    if missing or not photos:
        raise LayoutError(f"{root} lacks {len(missing)} of {len(photos)} photos; the official layout is {COCO_TREE}")
    return Boxed(root, photos, found)


def _counts(data: Boxed) -> Mapping[str, int]:
    return {"photos": len(data.photos)}


LAYOUTS = {
    name: Layout(name, "boxes", title, tree, read, _counts, {"photos": photos}, source)
    for name, title, tree, read, photos, source in (
        (
            "voc07-boxes",
            "Pascal VOC 2007 trainval",
            VOC_TREE.format(year="2007"),
            read_voc07,
            5_011,
            "Everingham et al. 2010",
        ),
        (
            "voc12-boxes",
            "Pascal VOC 2012 trainval",
            VOC_TREE.format(year="2012"),
            read_voc12,
            11_540,
            "Everingham et al. 2010",
        ),
        ("coco20k", "COCO 20k", COCO_TREE, read_coco20k, 19_817, "Vo et al. 2020, the list of LOST"),
    )
}
