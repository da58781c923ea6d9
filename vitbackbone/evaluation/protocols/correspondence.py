"""Semantic correspondence on SPair-71k, in the four forms that papers report: they differ by ten points."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import evaluating
from vitbackbone.evaluation.datasets.photos import open_photo
from vitbackbone.evaluation.datasets.spair import Correspondences, Pair
from vitbackbone.evaluation.methods.inputs import (
    features_of,
    normalised,
    resize,
    size_of,
    stand_in,
)
from vitbackbone.evaluation.methods.matching import match, read_at
from vitbackbone.evaluation.metrics.intervals import Interval, of_mean, of_sums
from vitbackbone.evaluation.metrics.keypoints import Mean, mean_pck, within
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import setting

NAME = "PCK@0.1"  # of the published figures
MEANS: tuple[Mean, ...] = ("pair", "point", "category")
HELD = 128  # photos, and feature maps, that are kept in memory
Points = Float[np.ndarray, "K 2"]


@dataclass(frozen=True)
class View:
    """The view of a photo."""

    shape: Literal["native", "squash", "middle", "corner"] = setting(
        "native", "its own size; squashed to a square; in the middle of a square; in the top left of a square"
    )
    size: int = setting(0, "side of the square in pixels, rounded down to whole patches; 0 without a square")
    patches: int = setting(0, "side of the square in patches, in place of `size`; 0 to use `size`")
    filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = setting("bicubic", "Pillow's filter")
    fill: int = setting(0, "level of the square around the photo")
    whole_pixels: bool = setting(False, "whether keypoints are cut to whole pixels of the view")


@dataclass(frozen=True)
class Reads:
    """The features that are compared."""

    norms: tuple[bool, ...] = setting((True,), "whether the final norm is applied; the best of several is reported")
    read: Literal["nearest", "inside", "bilinear"] = setting(
        "inside", "the patch at the rounded index, the patch that holds the point, or interpolated"
    )


@dataclass(frozen=True)
class Match:
    """The search for the keypoint."""

    how: Literal["argmax", "window", "kernel"] = setting("argmax", "the best patch, or a mean of places around it")
    sigma: float = setting(7.0, "of the Gaussian around the best patch, in patches")
    window: int = setting(5, "patches from the best one, in both directions", least=0)
    temperature: float = setting(0.04, "of the softmax over places", least=1e-6)
    half_patch: bool = setting(True, "whether a patch stands for its centre, not its corner")


@dataclass(frozen=True)
class Metric:
    """The test of a keypoint, and the average over keypoints."""

    alpha: float = setting(0.1, "share of the longer side of the target's box")
    rule: Literal["<=", "<"] = setting("<=", "whether a keypoint exactly at the threshold is right")
    mean: Literal["pair", "point", "category"] = setting("pair", "what has the same weight")
    pairs_per_category: int = setting(0, "pairs that are drawn from each category; 0 for all")
    seed: int = setting(20, "seed of that draw, from pairs sorted by name", least=0)


@dataclass(frozen=True, eq=False)
class Shown:
    """A photo in its view, and how points get there."""

    image: Image.Image
    scale: tuple[float, float]  # (x, y) pixels of the view for a pixel of the photo
    offset: tuple[int, int]  # (x, y) of the photo in the view


def show(photo: Image.Image, view: View, stride: int) -> Shown:
    """Return a photo in its view."""
    height, width = size_of(photo)
    side = view.patches * stride or view.size // stride * stride
    if view.shape == "native":
        return Shown(photo, (1.0, 1.0), (0, 0))
    if view.shape == "squash":
        return Shown(resize(photo, (side, side), view.filter), (side / width, side / height), (0, 0))
    longer, colour = max(height, width), (view.fill,) * 3
    scale = (side / longer, side / longer)
    if view.shape == "corner":
        square = Image.new("RGB", (longer, longer), colour)
        square.paste(photo)
        return Shown(resize(square, (side, side), view.filter), scale, (0, 0))
    small = (side, round(side * width / height)) if height > width else (round(side * height / width), side)
    square = Image.new("RGB", (side, side), colour)
    offset = ((side - small[1]) // 2, (side - small[0]) // 2)
    square.paste(resize(photo, small, view.filter), offset)
    return Shown(square, scale, offset)


def placed(points: Points, shown: Shown, view: View) -> Points:
    """Return points of the photo in pixels of the view."""
    moved = points * np.array(shown.scale) + np.array(shown.offset)
    return np.trunc(moved) if view.whole_pixels else moved


class Matcher:
    """The distances of the keypoints that are found in a pair's target from the true ones."""

    def __init__(self, run: Run, norm: bool) -> None:
        self.run, self.norm = run, norm and run.backbone.spec.has_norm
        self.features = lru_cache(HELD)(self._features)

    def _features(self, shown: Shown) -> Float[Tensor, "D h w"]:
        backbone = self.run.backbone
        with evaluating(backbone):
            features = features_of(backbone, normalised(shown.image, backbone)[None], [-1], self.norm)[0]
            return F.normalize(features.patches[0].float(), dim=0)

    def distances(self, pair: Pair, source: Shown, target: Shown) -> Float[np.ndarray, " K"]:
        """Return the distance of each keypoint in pixels of the target's photo."""
        protocol, stride = self.run.protocol, self.run.backbone.spec.stride
        how, view = protocol.fit, protocol.view
        features, others = self.features(source), self.features(target)
        with torch.inference_mode():
            extent = np.array([features.shape[2], features.shape[1]]) * stride
            at = torch.from_numpy(placed(pair.source_points, source, view) / extent).to(features)
            described = read_at(features, at, protocol.features.read)
            cells = match(described, others, how.how, how.sigma, how.window, how.temperature)
        found = cells.double().cpu().numpy() * stride + (stride // 2 if how.half_patch else 0)
        error = (found - placed(pair.target_points, target, view)) / np.array(target.scale)
        return np.linalg.norm(error, axis=1)


def chosen_pairs(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """Return pairs of each category drawn without replacement, or all if `count` is 0."""
    if not count:
        return list(pairs)
    found = []
    for category in sorted({each.category for each in pairs}):
        of_one = sorted((each for each in pairs if each.category == category), key=lambda each: each.name)
        random.Random(seed).shuffle(of_one)
        found += of_one[:count]
    return found


def score(run: Run) -> Sequence[Score]:
    """Match and measure."""
    data: Correspondences = run.data
    for sentence in stand_in(run.backbone.spec, norm=any(run.protocol.features.norms), cls=False):
        run.note(sentence)
    protocol, metric = run.protocol, run.protocol.metric
    pairs = chosen_pairs(data.pairs, metric.pairs_per_category, metric.seed)
    if run.limit is not None:
        pairs = random.Random(0).sample(pairs, min(run.limit, len(pairs)))
    most = max(len(each.source_points) for each in pairs)

    @lru_cache(HELD)
    def shown(name: str) -> Shown:
        return show(open_photo(data.root / name), protocol.view, run.backbone.spec.stride)

    def read(pair: Pair) -> tuple[Pair, Shown, Shown]:
        return pair, shown(pair.source), shown(pair.target)

    def computing(run: Run, norm: bool) -> Callable[[tuple[Pair, Shown, Shown]], dict[str, Float[np.ndarray, " K"]]]:
        matcher = Matcher(run, norm)

        def one(photos: tuple[Pair, Shown, Shown]) -> dict[str, Float[np.ndarray, " K"]]:
            distances = matcher.distances(*photos)
            return {"distance": np.pad(distances, (0, most - len(distances)), constant_values=np.nan)}

        return one

    found = []
    for norm in dict.fromkeys(norm and run.backbone.spec.has_norm for norm in protocol.features.norms):
        key = ["correspondence", protocol.view, protocol.features.read, protocol.fit, norm, data.digest()]
        key.append([each.name for each in pairs])
        distances = run.each("matching", key, pairs, read, partial(computing, norm=norm))["distance"]
        found.append((*_measured(pairs, distances, protocol), norm))
    _, scores, norm = max(found, key=lambda each: each[0])
    if len(found) > 1:
        run.facts["final norm"] = norm
    return scores


def _measured(
    pairs: Sequence[Pair], distances: Float[np.ndarray, "N most"], protocol: Protocol
) -> tuple[float, list[Score]]:
    metric = protocol.metric
    right: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for pair, row in zip(pairs, distances, strict=True):
        right[pair.category].append(within(row[~np.isnan(row)], pair.size, metric.alpha, metric.rule))
    value, name = 100 * mean_pck(right, metric.mean), f"PCK@{metric.alpha:g}"
    scores = [
        Score(f"{name} per {metric.mean}", value, len(pairs), _interval(right, metric.mean), "pairs", published=NAME)
    ]
    for kind in MEANS:
        if kind != metric.mean:
            mean, interval = 100 * mean_pck(right, kind), _interval(right, kind)
            scores.append(Score(f"{name} per {kind}", mean, len(pairs), interval, "pairs", main=False))
    for category, rows in sorted(right.items()):
        one = {category: rows}
        mean, interval = 100 * mean_pck(one, metric.mean), _interval(one, metric.mean)
        scores.append(Score(f"{name} {category}", mean, len(rows), interval, "pairs", main=False))
    return value, scores


def _interval(pairs: Mapping[str, Sequence[NDArray[Any]]], mean: Mean) -> Interval:
    """Return the interval of a mean PCK. `pairs`: as `mean_pck` takes them."""
    right = [(column, each) for column, of_one in enumerate(pairs.values()) for each in of_one]
    if mean == "pair":
        return of_mean(np.array([each.mean() for _, each in right]), "pairs", 100)
    counts = np.zeros((len(right), len(pairs), 2))
    for row, (column, each) in zip(counts, right, strict=True):
        row[column] = each.sum(), len(each)

    def figure(total: Float[np.ndarray, "C 2"]) -> float:
        if mean == "point":
            return float(total[:, 0].sum() / total[:, 1].sum())
        drawn = total[:, 1] > 0
        return float((total[drawn, 0] / total[drawn, 1]).mean())

    return of_sums(counts, figure, "pairs", 100)


OFFICIAL = Protocol(
    name="correspondence",
    variant="official",
    summary="SPair-71k as its authors count it: photos at their own size, the most similar patch, the mean over pairs.",
    source="Min et al. 2019; juhongm999/hpf, model/evaluation.py. It fixes the rule and the mean, and no view or match",
    kind="correspondences",
    datasets=("spair",),
    view=View(),
    features=Reads(),
    fit=Match(),
    metric=Metric(),
    score=score,
    traps=(
        "Four forms are in use. DINOv3 B has 46.8 in INSID3's (768) and 57.2 in its own: name the form.",
        "A mean over pairs, over keypoints and over categories are three figures; results.json has all.",
        "Probe3D draws 200 pairs a category from an unsorted list of files, which differs from disk to disk. Here the "
        "list is sorted.",
        "GeoAware-SC counts less than the threshold, others at most the threshold.",
    ),
)
INSID3 = replace(
    OFFICIAL,
    variant="insid3",
    summary="SPair-71k as INSID3 has it: squashed photos, and a mean of places under a Gaussian.",
    source="visinf/INSID3, inference_keypoint_matching.py, utils/keypoints.py",
    view=View(shape="squash", size=768, filter="bilinear"),
    features=Reads(read="nearest"),
    fit=Match(how="kernel", half_patch=False),
)
GEOAWARE = replace(
    OFFICIAL,
    variant="geoaware",
    summary="SPair-71k as GeoAware-SC has it: 60 x 60 patches in the middle of a square, a soft mean of places.",
    source="Zhang et al. 2024; Junyi42/GeoAware-SC, pck_train.py, configs/eval_zero_shot_spair.yaml",
    view=View(shape="middle", patches=60, filter="lanczos"),
    fit=Match(how="window", temperature=0.02),
    metric=Metric(rule="<"),
)
PROBE3D = replace(
    OFFICIAL,
    variant="probe3d",
    summary="SPair-71k as Probe3D has it: a white square of 800, interpolated features, 200 pairs a category.",
    source="El Banani et al. 2024; mbanani/probe3d, evaluate_spair_correspondence.py",
    view=View(shape="corner", size=800, fill=255, whole_pixels=True),
    features=Reads(read="bilinear"),
    fit=Match(half_patch=False),
    metric=Metric(rule="<", mean="category", pairs_per_category=200),
)
V3 = replace(
    PROBE3D,
    variant="v3",
    summary="SPair-71k as DINOv3 has it: Probe3D's form at 64 x 64 patches, the better of normed and not.",
    source="Siméoni et al. 2025, DINOv3, section 6.1 and appendix D",
    view=replace(PROBE3D.view, size=0, patches=64),
    features=Reads(read="bilinear", norms=(True, False)),
)

VARIANTS = (OFFICIAL, INSID3, GEOAWARE, PROBE3D, V3)
