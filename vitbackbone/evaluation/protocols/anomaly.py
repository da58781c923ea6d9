"""Few-shot anomaly detection by nearest patches: MVTec AD (Damm et al. 2025, AnomalyDINO)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import evaluating
from vitbackbone.evaluation.datasets.layout import LayoutError
from vitbackbone.evaluation.datasets.mvtec import Anomalies, Category
from vitbackbone.evaluation.datasets.photos import open_photo
from vitbackbone.evaluation.methods.inputs import (
    features_of,
    normalised,
    resize,
    short_side,
    size_of,
    stand_in,
    whole_patches,
)
from vitbackbone.evaluation.methods.memory_bank import distances, foreground, image_score, rotations, score_map
from vitbackbone.evaluation.metrics.intervals import Interval, bootstrap, none, of_mean
from vitbackbone.evaluation.metrics.regions import pro
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import setting
from vitbackbone.evaluation.several_devices import ahead

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class View:
    """The view of a photo."""

    short: int = setting(448, "shorter side, in pixels; Pillow's bicubic filter")


@dataclass(frozen=True)
class Reads:
    """The features that are compared."""

    norm: bool = setting(True, "whether the final norm is applied, if there is one; without, 6 to 7 points are lost")


@dataclass(frozen=True)
class Bank:
    """The defect-free photos that others are compared with, and the mask of the object."""

    shots: int = setting(1, "defect-free photos of a category; the first by name for seed 0, the next for seed 1")
    seeds: tuple[int, ...] = setting((0, 1, 2), "runs whose figures are averaged")
    rotations: int = setting(8, "turned copies of each, evenly over the circle; 1 for none")
    masked: tuple[str, ...] = setting(
        ("capsule", "hazelnut", "pill", "screw", "toothbrush"), "categories whose background scores 0 in test photos"
    )
    threshold: float = setting(10.0, "least first principal component of a patch that shows the object")
    border: float = setting(0.2, "share of each side that the centre leaves out")
    least: float = setting(0.35, "share of the centre that must be object, or the component's sign is turned")


@dataclass(frozen=True)
class Metric:
    """The way from distances to scores."""

    top: float = setting(0.01, "share of the patches whose mean distance is the photo's score")
    sigma: float = setting(4.0, "of the Gaussian that blurs the map, in pixels of the photo")
    limit: float = setting(0.3, "most false positive rate of PRO")


def image_of(run: Run, photo: Image.Image) -> Float[Tensor, "3 H W"]:
    """Return the input of a photo, cut at the right and bottom to whole patches."""
    shown = resize(photo, short_side(size_of(photo), run.protocol.view.short), "bicubic")
    return normalised(whole_patches(shown, run.backbone.spec.stride), run.backbone)


def patches(run: Run, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "D h w"]:
    """Return the patches of an input."""
    norm = run.protocol.features.norm and run.backbone.spec.has_norm
    return features_of(run.backbone, image[None], [-1], norm)[0].patches[0].float()


def bank(run: Run, category: Category, seed: int) -> Float[Tensor, "R D"]:
    """Return the patches of the defect-free photos that a seed chooses, scaled to length 1."""
    fit = run.protocol.fit
    names = sorted(category.train)[seed * fit.shots : (seed + 1) * fit.shots]
    if len(names) < fit.shots:
        raise ValueError(
            f"{category.name} has {len(category.train)} defect-free photos, too few for {fit.shots} of seed {seed}; "
            "lower fit.shots or fit.seeds"
        )
    found = []
    for name in names:
        for turned in rotations(np.asarray(open_photo(category.root / name)), fit.rotations):
            image = image_of(run, Image.fromarray(turned))
            found.append(F.normalize(patches(run, image).flatten(1).T, dim=1))
    return torch.cat(found)


def measure(run: Run, category: Category, seed: int) -> Arrays:
    """Return the distance of each patch of each test photo, (h, w), 0 where the background is masked."""
    fit, found = run.protocol.fit, {}

    def read(name: str) -> Float[Tensor, "3 H W"]:
        return image_of(run, open_photo(category.root / name))

    with evaluating(run.backbone):
        reference = bank(run, category, seed)
        for index, image in enumerate(ahead(read, category.test, run.machine.workers)):
            seen = patches(run, image)
            grid, tokens = (seen.shape[1], seen.shape[2]), seen.flatten(1).T
            far = distances(F.normalize(tokens, dim=1), reference).double().cpu().numpy()
            if category.name in fit.masked:
                shown = foreground(tokens.cpu().numpy(), grid, fit.threshold, fit.border, fit.least)
                far = np.where(shown, far, 0.0)
            found[str(index)] = far.reshape(grid)
    return found


def figures(run: Run, category: Category, found: Arrays) -> Arrays:
    """Return AUROC of photos, AUROC of pixels, and PRO of a category, with the score of each photo and whether its mask
    has a defective pixel."""
    metric = run.protocol.metric
    rows = [found[str(index)] for index in range(len(category.test))]
    scores = np.array([image_score(each.reshape(-1), metric.top) for each in rows])
    maps: list[Float[np.ndarray, "H W"]] = []
    masks: list[Bool[np.ndarray, "H W"]] = []
    for index, row in enumerate(rows):
        size = size_of(open_photo(category.root / category.test[index]))
        maps.append(score_map(row, size, metric.sigma))
        masks.append(category.mask(index, size))
    defective = np.array([each.any() for each in masks])
    if not defective.any():
        raise LayoutError(f"{category.root / category.name}: no mask in ground_truth/ has a defective pixel")
    pixels, truth = (np.concatenate([each.ravel() for each in part]) for part in (maps, masks))
    both = roc_auc_score(defective, scores), roc_auc_score(truth, pixels)
    return {"figures": np.array([*both, pro(maps, masks, metric.limit)]), "scores": scores, "defective": defective}


NAMES = ("image AUROC", "pixel AUROC", "PRO")
WHOLE = none("a draw would measure the maps of all photos of the category again")


def score(run: Run) -> Sequence[Score]:
    """Fill the bank, compare and measure."""
    data: Anomalies = run.data
    for sentence in stand_in(run.backbone.spec, norm=run.protocol.features.norm, cls=False):
        run.note(sentence)
    protocol, fit = run.protocol, run.protocol.fit
    if run.limit is not None:
        run.note("every category is measured whole; --limit takes the first categories")
    categories = list(data.categories)[: run.limit]
    jobs = list(itertools.product(fit.seeds, categories))
    key = ["anomaly", protocol.view, protocol.features, replace(fit, seeds=())]
    keys = {(seed, category): [*key, seed, category.digest()] for seed, category in jobs}

    def compared(replica: Run, job: tuple[int, Category]) -> Arrays:
        return measure(replica, job[1], job[0])

    found = run.apart("distances", keys, compared)

    def measured(replica: Run, job: tuple[int, Category]) -> Arrays:
        return figures(replica, job[1], found[job])

    kept = run.apart("categories", {job: [*each, protocol.metric] for job, each in keys.items()}, measured)
    table = np.stack([kept[job]["figures"] for job in jobs]).reshape(len(fit.seeds), len(categories), len(NAMES))
    photos = {each.name: of_photos([kept[seed, each] for seed in fit.seeds]) for each in categories}
    return _scores(run, table, categories, photos)


def _scores(
    run: Run,
    table: Float[np.ndarray, "S C 3"],
    categories: Sequence[Category],
    photos: Mapping[str, Interval],
) -> list[Score]:
    """Return the means over categories, and the figures of each. `photos`: the interval of each image AUROC."""
    found = []
    for i, name in enumerate(NAMES):
        runs, interval = table[:, :, i].mean(axis=1), of_mean(table[:, :, i].mean(axis=0), "categories", 100)
        run.note_tries(name, 100 * runs)
        found.append(Score(name, 100 * float(runs.mean()), len(categories), interval, "categories", published=name))
    for j, category in enumerate(categories):
        for i, name in enumerate(NAMES):
            value = 100 * float(table[:, j, i].mean())
            interval = WHOLE if i else photos[category.name]
            found.append(Score(f"{name} {category.name}", value, len(category.test), interval, "photos", main=False))
    return found


def of_photos(seeds: Sequence[Arrays]) -> Interval:
    """Return the interval of a category's image AUROC, a mean over seeds. `seeds`: what `figures` returns for each."""
    defective = seeds[0]["defective"]

    def drawn(rows: Int[np.ndarray, " N"]) -> float:
        truth = defective[rows]
        if truth.all() or not truth.any():
            return float("nan")
        return 100 * float(np.mean([roc_auc_score(truth, each["scores"][rows]) for each in seeds]))

    return bootstrap(drawn, [len(defective)], "photos")


AGNOSTIC = Protocol(
    name="anomaly",
    variant="agnostic",
    summary="MVTec AD from one defect-free photo: the distance of each patch to its nearest defect-free patch.",
    source="Damm et al. 2025, AnomalyDINO (arXiv 2405.14529); dammsi/AnomalyDINO, run_anomalydino.py",
    kind="anomalies",
    datasets=("mvtec",),
    view=View(),
    features=Reads(),
    fit=Bank(),
    metric=Metric(),
    score=score,
    traps=(
        "Without the final norm, figures fall by 6 to 7 points (anomalib#3627).",
        "Figures are means over categories, and over seeds that take other defect-free photos.",
        "PRO gives each connected defect the same weight, whatever its size, and stops at a false positive rate of .3.",
        "The sign of a principal component is free; where too little of the centre is object, it is turned.",
        "The mask of the object is dilated along rows alone: the authors' code has the patches in one column there.",
        "Copies are turned with exact coordinates; OpenCV rounds them to 1/32 of a pixel.",
    ),
)
LARGE = replace(
    AGNOSTIC,
    variant="agnostic-672",
    summary="MVTec AD from one defect-free photo, at 672 pixels.",
    view=View(short=672),
)

VARIANTS = (AGNOSTIC, LARGE)
