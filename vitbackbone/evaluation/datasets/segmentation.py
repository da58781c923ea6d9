"""Segmentation datasets: ADE20k, Pascal VOC 2012, Cityscapes, and your own photos."""

from collections.abc import Callable, Mapping
from pathlib import Path

from vitbackbone.evaluation.datasets.fine import VOC_CLASSES
from vitbackbone.evaluation.datasets.layout import Layout, LayoutError, need_folder
from vitbackbone.evaluation.datasets.pairs import Segmentation, lookup, paired
from vitbackbone.evaluation.datasets.places import list_folders, list_photos, read_lines, safe_name, settle

ADE_TREE = "ADEChallengeData2016/{images,annotations}/{training,validation}/"
VOC_TREE = "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/{train,val}.txt}"
CITY_TREE = "{leftImg8bit,gtFine}/{train,val}/CITY/"
OWN_TREE = "{train,val}/{images/NAME.jpg,labels/NAME.png} and classes.txt, a name a line"

# The train id of each Cityscapes class by its label id (cityscapesScripts, helpers/labels.py)
CITY_CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}


def read_ade20k(root: Path) -> Segmentation:
    """Read ADE20k's scene parsing challenge: 150 classes. Stored 0 is ignored, and every class is one lower."""
    root = settle(root, "ADEChallengeData2016")
    splits = []
    for split in ("training", "validation"):
        need_folder(root, "images", split, tree=ADE_TREE)
        photos = list_photos(root, f"images/{split}")
        labels = [f"annotations/{split}/{Path(p).stem}.png" for p in photos]
        splits.append(paired(root, photos, labels, f"images/{split}", ADE_TREE))
    return Segmentation(splits[0], splits[1], _ade_names(root), lookup({i + 1: i for i in range(150)}))


def _ade_names(root: Path) -> list[str]:
    """Return the names of `objectInfo150.txt`, which is distributed beside the images, or numbers."""
    if not (root / "objectInfo150.txt").is_file():
        return [str(i) for i in range(150)]
    rows = [line.split("\t") for line in read_lines(root, "objectInfo150.txt", tree=ADE_TREE)[1:]]
    names = [row[-1].split(",")[0].strip() for row in rows]
    return names if len(names) == 150 else [str(i) for i in range(150)]


def read_voc12(root: Path) -> Segmentation:
    """Read VOC 2012 segmentation: 21 classes, 255 void, `train` (not `trainaug`) and `val`."""
    root = settle(root, "VOCdevkit/VOC2012", "VOC2012")
    splits = []
    for split in ("train", "val"):
        file = f"ImageSets/Segmentation/{split}.txt"
        names = [safe_name(name, file) for name in read_lines(root, file, tree=VOC_TREE)]
        photos, labels = (
            [f"{f}/{n}.{e}" for n in names] for f, e in (("JPEGImages", "jpg"), ("SegmentationClass", "png"))
        )
        splits.append(paired(root, photos, labels, file, VOC_TREE))
    return Segmentation(splits[0], splits[1], ["background", *VOC_CLASSES], lookup({i: i for i in range(21)}))


def read_cityscapes(root: Path) -> Segmentation:
    """Read Cityscapes' fine annotations: the 19 classes of its benchmark, from label ids."""
    splits = []
    for split in ("train", "val"):
        need_folder(root, "leftImg8bit", split, tree=CITY_TREE)
        photos = [
            p
            for city in list_folders(root, f"leftImg8bit/{split}")
            for p in list_photos(root, f"leftImg8bit/{split}/{city}")
        ]
        labels = [
            p.replace("leftImg8bit/", "gtFine/", 1).replace("_leftImg8bit.png", "_gtFine_labelIds.png") for p in photos
        ]
        splits.append(paired(root, photos, labels, f"leftImg8bit/{split}", CITY_TREE))
    table = lookup({stored: i for i, stored in enumerate(CITY_CLASSES)})
    return Segmentation(splits[0], splits[1], list(CITY_CLASSES.values()), table)


def read_own(root: Path) -> Segmentation:
    """Read one's own photos. Labels without a name in `classes.txt` are ignored."""
    names = read_lines(root, "classes.txt", tree=OWN_TREE)
    if len(names) > 255:
        raise LayoutError(f"{root / 'classes.txt'} has {len(names)} names; want at most 255, because 255 is ignored")
    splits = []
    for split in ("train", "val"):
        need_folder(root, split, "labels", tree=OWN_TREE)
        photos = list_photos(root, f"{split}/images")
        labels = [f"{split}/labels/{Path(p).stem}.png" for p in photos]
        splits.append(paired(root, photos, labels, f"{split}/images", OWN_TREE))
    return Segmentation(splits[0], splits[1], names, lookup({i: i for i in range(len(names))}))


def _counts(data: Segmentation) -> Mapping[str, int]:
    return {"training photos": len(data.train), "validation photos": len(data.test), "classes": len(data.classes)}


def _layout(
    name: str,
    title: str,
    tree: str,
    read: Callable[[Path], Segmentation],
    official: tuple[int, int, int] | tuple[()] = (),
    source: str = "",
) -> Layout:
    """Return a layout. `official`: its training photos, validation photos and classes."""
    counts = dict(zip(("training photos", "validation photos", "classes"), official, strict=False))
    return Layout(name, "segmentation", title, tree, read, _counts, counts, source)


ZHOU, EVERINGHAM, CORDTS = "Zhou et al. 2017", "Everingham et al. 2010", "Cordts et al. 2016"
LAYOUTS = {
    "ade20k": _layout("ade20k", "ADE20k", ADE_TREE, read_ade20k, (20_210, 2_000, 150), ZHOU),
    "voc12": _layout("voc12", "Pascal VOC 2012", VOC_TREE, read_voc12, (1_464, 1_449, 21), EVERINGHAM),
    "cityscapes": _layout("cityscapes", "Cityscapes", CITY_TREE, read_cityscapes, (2_975, 500, 19), CORDTS),
    "segmentation-folder": _layout("segmentation-folder", "your own photos", OWN_TREE, read_own),
}
