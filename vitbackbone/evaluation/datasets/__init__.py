"""The datasets in their official layouts, one file a layout."""

from importlib import import_module

from vitbackbone.evaluation.datasets.layout import Check, Images, Labelled, Layout, LayoutError
from vitbackbone.files import did_you_mean

# The module of each dataset. It has a dict `LAYOUTS` of `Layout` records by the names of their datasets.
FILES = {
    "imagenet": "imagenet",
    "imagenet-1percent": "imagenet",
    "imagenet-10percent": "imagenet",
    "imagenet-v2": "imagenet_variants",
    "imagenet-real": "imagenet_variants",
    "imagenet-a": "imagenet_variants",
    "imagenet-r": "imagenet_variants",
    "imagenet-sketch": "imagenet_variants",
    "imagenet-c": "imagenet_variants",
    "folder": "folder",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "food101": "fine",
    "sun397": "fine",
    "cars": "fine",
    "aircraft": "fine",
    "voc2007": "fine",
    "dtd": "fine",
    "pets": "fine",
    "caltech101": "fine",
    "flowers102": "fine",
    "cub200": "fine",
    "inaturalist-2018": "inaturalist",
    "inaturalist-2021": "inaturalist",
    "ade20k": "segmentation",
    "voc12": "segmentation",
    "cityscapes": "segmentation",
    "segmentation-folder": "segmentation",
    "nyu": "depth",
    "kitti": "depth",
    "roxford5k": "revisited",
    "rparis6k": "revisited",
    "spair": "spair",
    "davis": "davis",
    "mvtec": "mvtec",
    "copydays": "copydays",
    "copydays-whitening": "copydays",
    "copydays-distractors": "copydays",
    "voc07-boxes": "boxes",
    "voc12-boxes": "boxes",
    "coco20k": "boxes",
}


def find_layout(name: str) -> Layout:
    """Return the layout of a dataset. Raises `ValueError` on an unknown name."""
    if name not in FILES:
        raise ValueError(f"unknown dataset {name!r}{did_you_mean(name, FILES) or '.'} Want one of {', '.join(FILES)}")
    return import_module(f"{__name__}.{FILES[name]}").LAYOUTS[name]


__all__ = ["FILES", "Check", "Images", "Labelled", "Layout", "LayoutError", "find_layout"]
