"""Unsupervised object discovery: CorLoc of LOST and TokenCut on Pascal VOC and COCO 20k."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vitbackbone.contract import evaluating
from vitbackbone.evaluation.datasets.boxes import Boxed
from vitbackbone.evaluation.datasets.photos import open_photo
from vitbackbone.evaluation.methods.discovery import box_of, lost, tokencut
from vitbackbone.evaluation.methods.inputs import last, normalised
from vitbackbone.evaluation.methods.keys import key_map
from vitbackbone.evaluation.metrics.boxes import is_found
from vitbackbone.evaluation.metrics.intervals import wilson
from vitbackbone.evaluation.protocol import Nothing, Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import setting


@dataclass(frozen=True)
class Reads:
    """The features that are compared."""

    features: Literal["keys", "outputs"] = setting("keys", "the last attention's keys, or the normed patches")


@dataclass(frozen=True)
class Method:
    """The search for the box."""

    method: Literal["lost", "tokencut"] = setting("tokencut", "LOST's seed and votes, or TokenCut's normalised cut")
    k: int = setting(100, "LOST: patches of least degree that may vote")
    tau: tuple[float, ...] = setting((0.2,), "TokenCut: least cosine of an edge; the best of several is reported")
    epsilon: float = setting(1e-5, "TokenCut: weight of other edges")


@dataclass(frozen=True)
class Metric:
    """The test of a box."""

    iou: float = setting(0.5, "least IoU with any true box")


def feature_map(run: Run, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "D h w"]:
    """Return the features of a photo at its own size, padded with zeros to whole patches at the right and bottom."""
    with evaluating(run.backbone):
        if run.protocol.features.features == "keys":
            return key_map(run.backbone, image).float()
        return last(run.backbone, image[None]).patches[0].float()


def boxes(run: Run, image: Float[Tensor, "3 H W"]) -> dict[str, Float[np.ndarray, "T 4"]]:
    """Return the box of a photo for each threshold; there is one for LOST."""
    fit, stride = run.protocol.fit, run.backbone.spec.stride
    features = feature_map(run, image)
    if fit.method == "lost":
        masks = [lost(features, fit.k)]
    else:
        masks = [tokencut(features, tau, fit.epsilon) for tau in fit.tau]
    return {"box": np.stack([box_of(mask, stride, (image.shape[1], image.shape[2])) for mask in masks])}


def score(run: Run) -> Sequence[Score]:
    """Find a box in each photo and compare it with the true ones."""
    data: Boxed = run.data
    count = len(data.photos)
    rows = np.arange(count) if run.limit is None else np.random.RandomState(0).permutation(count)[: run.limit]
    key: list[Any] = ["discovery", run.protocol.features, run.protocol.fit, data.digest()]
    chosen = np.sort(rows).tolist()

    def read(row: int) -> Float[Tensor, "3 H W"]:
        return normalised(open_photo(data.root / data.photos[row]), run.backbone)

    found = run.each("discovering", key, chosen, read, lambda replica: partial(boxes, replica))["box"]
    right = np.array(
        [
            [is_found(box, data.boxes[row], run.protocol.metric.iou) for box in each]
            for row, each in zip(chosen, found, strict=True)
        ]
    ).T
    best = int(right.sum(axis=1).argmax())
    if len(right) > 1:
        run.facts["tau"] = run.protocol.fit.tau[best]
        run.note("several thresholds were compared on the reported photos, as in the paper; the best one is reported")
    value = 100 * float(right[best].sum()) / len(rows)
    return [Score("CorLoc", value, len(rows), wilson(right[best]), "photos", published="CorLoc")]


TOKENCUT = Protocol(
    name="discovery",
    variant="tokencut",
    summary="CorLoc: how often one box, found by a normalised cut of the patches, meets an object.",
    source="Wang et al. 2022, TokenCut; YangtaoWANG95/TokenCut, main_tokencut.py",
    kind="boxes",
    datasets=("voc07-boxes", "voc12-boxes", "coco20k"),
    view=Nothing(),
    features=Reads(),
    fit=Method(),
    metric=Metric(),
    score=score,
    traps=(
        "Keys and outputs give other figures: DINO S16's TokenCut falls from 68.8 to 61.1 on VOC07.",
        "Photos keep their size; their right and bottom are padded with zeros to whole patches.",
        "Difficult objects of VOC count, and crowds of COCO do not.",
        "DINOv3 reports the best of nine thresholds on the reported photos.",
    ),
)
LOST = replace(
    TOKENCUT,
    variant="lost",
    summary="CorLoc: how often one box, grown from the patch unlike all others, meets an object.",
    source="Siméoni et al. 2021, LOST; valeoai/LOST, main_lost.py",
    fit=Method(method="lost"),
)
V3 = replace(
    TOKENCUT,
    variant="v3",
    summary="CorLoc of TokenCut on output features, the best of nine thresholds.",
    source="Siméoni et al. 2025, DINOv3, table 7",
    features=Reads(features="outputs"),
    fit=Method(tau=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)),
)

VARIANTS = (TOKENCUT, LOST, V3)
