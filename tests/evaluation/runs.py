"""A small whole run of every protocol, on a dataset that is made for it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.evaluation import dense_data
from tests.evaluation.classified import OTHERS, make_imagenet, make_list
from tests.evaluation.fine_data import MAKERS as FINE
from vitbackbone import BackboneModule, evaluate
from vitbackbone.evaluation import Results


class Small(NamedTuple):
    """A run: a protocol and a variant, the makers of its datasets, and the settings that make it small."""

    protocol: str
    variant: str
    makers: Mapping[str, Callable[[Path], Path]]
    settings: Mapping[str, Any]


SEGMENTATION = {
    "view.short": 32,
    "view.window": 32,
    "view.stride": 21,
    "view.per_patch": False,
    "fit.steps": 4,
    "fit.batch_size": 2,
    "fit.short": 32,
    "fit.crop": 32,
    "fit.warmup": 1,
}
DEPTH = {"fit.steps": 4, "fit.warmup": 2, "fit.batch_size": 4, "fit.crop": "32,40", "fit.bins": 8, "fit.first_steps": 2}
SMALL = {"view.per_patch": False, "view.short": 48}
DENSE = {
    "segmentation ade20k": ("segmentation", "v2", {"ade20k": dense_data.ade20k}, SEGMENTATION),
    "segmentation voc12": ("segmentation", "v3", {"voc12": dense_data.voc12}, SEGMENTATION | {"fit.validate_every": 2}),
    "segmentation cityscapes": (
        "segmentation",
        "v2-ms",
        {"cityscapes": dense_data.cityscapes},
        SEGMENTATION | {"view.scales": "1,1.5"},
    ),
    "segmentation folder": (
        "segmentation",
        "v3-paper",
        {"segmentation-folder": dense_data.own_photos},
        SEGMENTATION | {"fit.rates": "0.001,0.003", "fit.weight_decays": "0.0001", "fit.validate_every": 0},
    ),
    "depth nyu": ("depth-nyu", "v2", {"nyu": dense_data.nyu}, DEPTH),
    "depth nyu v3": ("depth-nyu", "v3", {"nyu": dense_data.nyu}, DEPTH),
    "depth kitti": ("depth-kitti", "v2-lin4", {"kitti": dense_data.kitti}, DEPTH | {"view.crop": "32,64"}),
    "retrieval": ("retrieval", "v3", {"roxford5k": dense_data.roxford5k}, {"view.size": 32}),
    "retrieval v1": ("retrieval", "v1-paris", {"roxford5k": dense_data.roxford5k}, {"view.size": 40}),
    "spair official": ("correspondence", "official", {"spair": dense_data.spair}, {}),
    "spair insid3": ("correspondence", "insid3", {"spair": dense_data.spair}, {"view.size": 50}),
    "spair geoaware": ("correspondence", "geoaware", {"spair": dense_data.spair}, {"view.patches": 6}),
    "spair probe3d": ("correspondence", "probe3d", {"spair": dense_data.spair}, {"view.size": 48}),
    "spair v3": ("correspondence", "v3", {"spair": dense_data.spair}, {"view.patches": 6}),
    "davis": ("tracking", "v3", {"davis": dense_data.davis}, SMALL),
    "davis v1": ("tracking", "v1", {"davis": dense_data.davis}, SMALL | {"view.multiple": 16}),
    "mvtec": ("anomaly", "agnostic", {"mvtec": dense_data.mvtec}, {"view.short": 32, "fit.seeds": "0,1"}),
    "copydays": (
        "copies",
        "v1",
        {
            "copydays": dense_data.copydays,
            "copydays-whitening": dense_data.photo_folder,
            "copydays-distractors": dense_data.photo_folder,
        },
        {"view.size": 32},
    ),
    "corloc": ("discovery", "tokencut", {"voc07-boxes": dense_data.voc07_boxes}, {}),
    "corloc lost": ("discovery", "lost", {"coco20k": dense_data.coco20k}, {"fit.k": 10}),
    "corloc v3": ("discovery", "v3", {"voc07-boxes": dense_data.voc07_boxes}, {}),
}
CROP = {"view.short": 36, "view.crop": 32}
SQUARE = {"view.short": 32, "view.crop": 32}
LINEAR = {**CROP, "fit.size": 32, "fit.steps": 6, "fit.batch": 8, "features.blocks": "1,2"}
IMAGENET = {"imagenet": make_imagenet}


def _fine(name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        FINE[name](root)
        return root

    return make


CLASSIFIED = {
    "knn": ("knn", "v2", IMAGENET, {**CROP, "fit.ks": "3,5"}),
    "knn-few-shot": ("knn-few-shot", "v3", IMAGENET, {**CROP, "fit.ks": "1", "fit.shots": 2, "fit.tries": 3}),
    "linear": ("linear", "v2", IMAGENET, LINEAR),
    "linear v1": ("linear", "v1", IMAGENET, LINEAR | {"features.blocks": 2}),
    "linear v3": ("linear", "v3", IMAGENET, LINEAR | {"features.blocks": 1}),
    "linear v3-paper": (
        "linear",
        "v3-paper",
        IMAGENET,
        {"view.tokens": 64, "fit.steps": 4, "fit.batch": 8, "features.blocks": 1},
    ),
    "linear mae": ("linear", "mae", IMAGENET, {**CROP, "fit.size": 32, "fit.epochs": 2}),
    "linear inaturalist": ("linear", "v2", {"inaturalist-2018": _fine("inaturalist-2018")}, LINEAR),
    "attentive": ("attentive", "vjepa", IMAGENET, {**CROP, "fit.size": 32, "fit.epochs": 2, "fit.batch": 8}),
    "attentive aim": ("attentive", "aim", IMAGENET, {**CROP, "fit.size": 32, "fit.epochs": 2, "fit.batch": 8}),
    "logistic": ("logistic", "v3", IMAGENET, {**SQUARE, "fit.powers": "-1,1,3"}),
    "logistic mieb": ("logistic", "mieb", IMAGENET, {**SQUARE, "fit.shots": 3, "fit.tries": 2}),
    "fine-s": (
        "fine-s",
        "v3",
        {name: _fine(name) for name in ("dtd", "pets", "voc2007")},
        {**SQUARE, "fit.fixed": 1.0},
    ),
    "low-shot": ("low-shot", "v3", IMAGENET, {**SQUARE, "fit.powers": "-1,1,2", "fit.held_out": 0.2, "fit.shots": 2}),
    **{
        f"low-shot {part}": (
            "low-shot",
            part,
            IMAGENET | {f"imagenet-{part}": make_list},
            {**SQUARE, "fit.powers": "-1,1,2"},
        )
        for part in ("1percent", "10percent")
    },
    "clustering": ("clustering", "mieb", IMAGENET, SQUARE),
    **{
        name: (name, "v2", IMAGENET | {name: make}, LINEAR | ({"metric.short": 36} if name == "imagenet-c" else {}))
        for name, make in OTHERS.items()
    },
}
RUNS = {name: Small(*each) for name, each in (CLASSIFIED | DENSE).items()}


def start(name: str, backbone: BackboneModule, folder: Path, out: str, **options: Any) -> Results:
    """Make the datasets of a run, unless `folder` has them, and run it."""
    small = RUNS[name]
    data = {}
    for dataset, make in small.makers.items():
        place = folder / "data" / dataset
        made = folder / "data" / f"{dataset}.made"  # where the dataset is
        if not made.exists():
            place.parent.mkdir(exist_ok=True)
            made.write_text(str(make(place)))
        data[dataset] = Path(made.read_text())
    given: dict[str, Any] = {"variant": small.variant, "settings": small.settings, "progress": False}
    return evaluate(small.protocol, backbone, data, folder / out, **given, **options)


def written(folder: Path) -> dict[str, Any]:
    """Return what `results.json` has, but for times."""
    results = json.loads((folder / "results.json").read_text())
    for each in results["results"]:
        del each["seconds"]
    return results
