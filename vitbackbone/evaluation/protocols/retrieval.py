"""Landmark retrieval: revisited Oxford and Paris (Radenović et al. 2018)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import evaluating
from vitbackbone.evaluation.datasets.photos import open_photo
from vitbackbone.evaluation.datasets.revisited import Query, Revisited
from vitbackbone.evaluation.methods.inputs import (
    centre_crop,
    last,
    long_side,
    normalised,
    resize,
    size_of,
    stand_in,
    vectors,
    whole_patches,
)
from vitbackbone.evaluation.metrics.intervals import of_mean
from vitbackbone.evaluation.metrics.ranking import Ranked, score_query
from vitbackbone.evaluation.protocol import Nothing, Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import setting


@dataclass(frozen=True)
class View:
    """The view of a photo."""

    size: int = setting(224, "longer side, in pixels")
    fit: Literal["thumbnail", "square"] = setting(
        "square",
        "a thumbnail, never enlarged, cut to whole patches as DINO's patch embedding does; or a square with a black "
        "border",
    )
    filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = setting("bicubic", "Pillow's filter")
    scales: tuple[float, ...] = setting((1.0,), "scales of the input whose vectors are averaged, by bilinear resizing")
    crop_queries: bool = setting(False, "whether queries are cropped to their box, as revisitop does")


@dataclass(frozen=True)
class Metric:
    """The figures that are reported."""

    at: tuple[int, ...] = setting((1, 5, 10), "ranks of the mean precision", "revisitop, example_evaluate.py")


def shown(photo: Image.Image, view: View, stride: int) -> Image.Image:
    """Return a photo as it is shown."""
    size = size_of(photo)
    if view.fit == "square":
        return centre_crop(resize(photo, long_side(size, view.size), view.filter), (view.size, view.size))
    small = photo.copy()
    small.thumbnail((view.size, view.size), Image.Resampling[view.filter.upper()])
    return whole_patches(small, stride)


def image_of(run: Run, photo: Image.Image) -> Float[Tensor, "1 3 H W"]:
    """Return the input of a photo."""
    return normalised(shown(photo, run.protocol.view, run.backbone.spec.stride), run.backbone)[None]


def vector(run: Run, image: Float[Tensor, "1 3 H W"]) -> dict[str, Float[np.ndarray, " D"]]:
    """Return the mean vector of an input over the scales."""
    found = []
    with evaluating(run.backbone):
        for scale in run.protocol.view.scales:
            found.append(vectors(last(run.backbone, _scaled(image, scale, run.backbone.spec.stride)))[0].float())
    return {"vector": torch.stack(found).mean(dim=0).cpu().numpy()}


def _scaled(image: Float[Tensor, "1 3 H W"], scale: float, stride: int) -> Float[Tensor, "1 3 h w"]:
    """Resize an input bilinearly, and cut it to whole patches, as DINO's patch embedding does."""
    if scale == 1:
        return image
    small = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
    height, width = (max(side // stride, 1) * stride for side in small.shape[2:])
    return small[:, :, :height, :width]


def query_photo(run: Run, data: Revisited, row: int) -> Image.Image:
    """Return a query's photo, cropped to its box if the protocol does so."""
    photo = open_photo(data.root / data.queries[row])
    if not run.protocol.view.crop_queries:
        return photo
    left, top, right, bottom = data.truth[row].box.tolist()
    return photo.crop((int(left), int(top), int(right), int(bottom)))


def rankings(queries: Float[np.ndarray, "Q D"], database: Float[np.ndarray, "N D"]) -> Int[np.ndarray, "Q _"]:
    """Return the order of the database for each query, by cosine, the most similar first."""
    q, d = (F.normalize(torch.from_numpy(each), dim=1) for each in (queries, database))
    return torch.argsort(-(q @ d.T), dim=1, stable=True).numpy()


DIFFICULTIES = ("easy", "medium", "hard")


def truth(query: Query, difficulty: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the positives and the junk of a query."""
    if difficulty == "easy":
        return query.easy, np.concatenate([query.junk, query.hard])
    if difficulty == "medium":
        return np.concatenate([query.easy, query.hard]), query.junk
    return query.hard, np.concatenate([query.junk, query.easy])


def score(run: Run) -> Sequence[Score]:
    """Extract, rank and measure."""
    data: Revisited = run.data
    for sentence in stand_in(run.backbone.spec, norm=True, cls=True):
        run.note(sentence)
    key = ["retrieval", run.protocol.view, data.digest()]
    if run.limit is not None:
        run.note("the whole database is ranked, so --limit leaves queries out and no photo")
    rows = range(len(data.queries) if run.limit is None else min(run.limit, len(data.queries)))

    def query(row: int) -> Float[Tensor, "1 3 H W"]:
        return image_of(run, query_photo(run, data, row))

    def photo(name: str) -> Float[Tensor, "1 3 H W"]:
        return image_of(run, open_photo(data.root / name))

    queries = run.each("queries", key, rows, query, lambda replica: partial(vector, replica))
    database = run.each("database", key, data.photos, photo, lambda replica: partial(vector, replica))
    order = rankings(queries["vector"], database["vector"])
    ks, found = run.protocol.metric.at, []
    for difficulty in DIFFICULTIES:
        ranked = [score_query(order[row], *truth(data.truth[row], difficulty), ks) for row in rows]
        found += _scores(difficulty, [each for each in ranked if each is not None], ks)
    return found


def _scores(difficulty: str, ranked: Sequence[Ranked], ks: Sequence[int]) -> list[Score]:
    if not ranked:
        return []
    aps, name = np.array([each.ap for each in ranked]), f"mAP {difficulty}"
    value, interval = 100 * float(aps.mean()), of_mean(aps, "queries", 100)
    found = [Score(name, value, len(aps), interval, "queries", main=difficulty != "easy", published=name)]
    for i, k in enumerate(ks):
        precision = np.array([each.precision[i] for each in ranked])
        value, interval = 100 * float(precision.mean()), of_mean(precision, "queries", 100)
        found.append(Score(f"mP@{k} {difficulty}", value, len(aps), interval, "queries", main=False))
    return found


V3 = Protocol(
    name="retrieval",
    variant="v3",
    summary="Revisited Oxford and Paris: cosine similarity of whole photos, mean average precision of the queries.",
    source="Siméoni et al. 2025, DINOv3, table 9 and appendix D",
    kind="landmarks",
    datasets=("roxford5k", "rparis6k"),
    view=View(),
    features=Nothing(),
    fit=Nothing(),
    metric=Metric(),
    score=score,
    traps=(
        "Average precision is by the trapezoidal rule; scikit-learn's step rule gives .756 in place of .711.",
        "Junk leaves the ranking before ranks are counted; for the hard protocol the easy photos are junk, too.",
        "DINO's code shows whole queries; revisitop crops them to their box.",
        "DINOv2 does not disclose its view. Its published figures stand beside DINOv3's view.",
        "Precision at k looks no further than the last positive.",
    ),
)
V2 = replace(
    V3,
    variant="v2",
    source="Oquab et al. 2023, DINOv2, table 9. Its view is not disclosed; DINOv3's stands in for it",
)
V1 = replace(
    V3,
    variant="v1",
    source="Caron et al. 2021, DINO, table 3; facebookresearch/dino, eval_image_retrieval.py",
    view=View(fit="thumbnail", filter="lanczos"),
)
V1_PARIS = replace(
    V1,
    variant="v1-paris",
    summary="Revisited Paris as DINO shows it: 512 pixels, the mean over three scales.",
    view=View(size=512, fit="thumbnail", filter="lanczos", scales=(1.0, 0.5**0.5, 0.5)),
)

VARIANTS = (V3, V2, V1, V1_PARIS)
