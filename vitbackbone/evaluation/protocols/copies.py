"""Copy detection: INRIA Copydays (Douze et al. 2009), as DINO evaluates it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import evaluating
from vitbackbone.evaluation.datasets.copydays import Copies, Photos
from vitbackbone.evaluation.datasets.layout import stamp
from vitbackbone.evaluation.datasets.photos import open_photo
from vitbackbone.evaluation.methods.inputs import (
    last,
    normalised,
    resize,
    stand_in,
    vectors,
)
from vitbackbone.evaluation.methods.whitening import fit_whitening
from vitbackbone.evaluation.metrics.intervals import bootstrap, of_mean
from vitbackbone.evaluation.metrics.ranking import average_precision, micro_average_precision
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import setting

WHITENING, DISTRACTORS = "copydays-whitening", "copydays-distractors"


@dataclass(frozen=True)
class View:
    """The view of a photo."""

    size: int = setting(320, "side of the square that a photo is squashed to, in pixels; Pillow's bicubic filter")


@dataclass(frozen=True)
class Reads:
    """The vector of a photo."""

    parts: Literal["cls+gem", "cls"] = setting("cls+gem", "the CLS token, with or without the pooled patches")
    power: float = setting(4.0, "power of the generalised mean of the patches")
    least: float = setting(1e-6, "what smaller values of the patches are raised to")


@dataclass(frozen=True)
class Fit:
    """Whitening."""

    whiten: bool = setting(True, f"whether vectors are whitened, by the photos of {WHITENING} if they are given")


@dataclass(frozen=True)
class Metric:
    """The ranks that count."""

    depth: int = setting(20, "ranks that are looked at; a positive farther down counts as missed")


def vector(run: Run, image: Float[Tensor, "1 3 H W"]) -> dict[str, Float[np.ndarray, " D"]]:
    """Return the vector of an input."""
    reads = run.protocol.features
    with evaluating(run.backbone):
        features = last(run.backbone, image)
        found = vectors(features)[0].float()
        if reads.parts == "cls+gem":
            patches = features.patches[0].float().clamp(min=reads.least)
            found = torch.cat([found, patches.pow(reads.power).mean(dim=(1, 2)).pow(1 / reads.power)])
    return {"vector": found.cpu().numpy()}


def extract(run: Run, root: Path, names: Sequence[str], what: str) -> Float[np.ndarray, "N D"]:
    """Return the vectors of photos."""
    key = ["copies", run.protocol.view, run.protocol.features, stamp(root, names)]
    side = run.protocol.view.size

    def read(name: str) -> Float[Tensor, "1 3 H W"]:
        return normalised(resize(open_photo(root / name), (side, side), "bicubic"), run.backbone)[None]

    return run.each(what, key, names, read, lambda replica: partial(vector, replica))["vector"]


def ranked(
    queries: Float[np.ndarray, "Q D"], database: Float[np.ndarray, "N D"], depth: int
) -> tuple[Int[np.ndarray, "Q _"], Float[np.ndarray, "Q k"]]:
    """Return the most similar images of each query by cosine, and their similarities, the most similar first."""
    q, d = (F.normalize(torch.from_numpy(each), dim=1) for each in (queries, database))
    values, places = (q @ d.T).topk(min(depth, len(d)), dim=1)
    return places.numpy(), values.double().numpy()


def score(run: Run) -> Sequence[Score]:
    """Extract, whiten, rank and measure."""
    data: Copies = run.data
    for sentence in stand_in(run.backbone.spec, norm=True, cls=True):
        run.note(sentence)
    if run.limit is not None:
        run.note("Copydays is small and is measured whole; --limit leaves blocks out, but for the strong copies")
    blocks = list(data.blocks)[: run.limit]
    database = extract(run, data.root, data.originals, "originals")
    queries = {block: extract(run, data.root, data.blocks[block], block.replace("/", "-")) for block in blocks}
    if DISTRACTORS in run.folders:
        others: Photos = run.read(DISTRACTORS)
        database = np.concatenate([database, extract(run, others.root, others.names, "distractors")])
    else:
        run.note(f"no distractors: the paper has 10,000; give --data {DISTRACTORS}=DIR")
    if run.protocol.fit.whiten and WHITENING in run.folders:
        photos: Photos = run.read(WHITENING)
        whiten = fit_whitening(extract(run, photos.root, photos.names, "whitening"))
        database, queries = whiten(database), {block: whiten(each) for block, each in queries.items()}
    elif run.protocol.fit.whiten:
        run.note(f"no whitening: the paper learns it from 20,000 photos; give --data {WHITENING}=DIR")
    found = [each for block in blocks for each in measure(data, block, queries[block], database, run)]
    return found


def measure(
    data: Copies, block: str, queries: Float[np.ndarray, "Q D"], database: Float[np.ndarray, "N D"], run: Run
) -> list[Score]:
    """Return the mean average precision of a block, and for strong copies the micro-average precision."""
    places, similar = ranked(queries, database, run.protocol.metric.depth)
    positives = [data.positives(block, index) for index in range(len(queries))]
    right = np.stack([np.isin(row, wanted) for row, wanted in zip(places, positives, strict=True)])
    aps = np.array([average_precision(np.flatnonzero(row), len(p)) for row, p in zip(right, positives, strict=True)])
    strong, name, value = block == "strong", f"mAP {block}", 100 * float(aps.mean())
    interval = of_mean(aps, "queries", 100)
    found = [Score(name, value, len(aps), interval, "queries", main=strong, published=name)]
    if strong:

        def micro(rows: Int[np.ndarray, " Q"]) -> float:
            wanted = sum(len(positives[row]) for row in rows.tolist())
            return 100 * micro_average_precision(similar[rows].ravel(), right[rows].ravel(), wanted)

        value, interval = micro(np.arange(len(aps))), bootstrap(micro, [len(aps)], "queries")
        found.append(Score("micro-AP strong", value, len(aps), interval, "queries", main=False))
    return found


V1 = Protocol(
    name="copies",
    variant="v1",
    summary="Copydays: photos and their strong copies, found among the originals and distractors by cosine.",
    source="Caron et al. 2021, DINO, table 4; facebookresearch/dino, eval_copy_detection.py",
    kind="copies",
    datasets=("copydays",),
    view=View(),
    features=Reads(),
    fit=Fit(),
    metric=Metric(),
    score=score,
    optional=(WHITENING, DISTRACTORS),
    traps=(
        "The whitening removes the mean, but learns from second moments that are not centred, as the authors' code.",
        "Only the first 20 ranks count.",
        "A strong copy belongs to the original with the same first four characters of its name.",
        "The paper's figures need 20,000 photos to whiten by and 10,000 distractors, both of YFCC100M.",
    ),
)

VARIANTS = (V1,)
