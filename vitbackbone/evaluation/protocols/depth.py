"""Monocular depth with a linear head over bins: NYU Depth v2 and KITTI."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from heads import DenseHead, create_head, scale_invariant_loss
from heads.depth import MEAN_WEIGHT
from vitbackbone.contract import evaluating
from vitbackbone.evaluation.datasets.pairs import Depths, Pairs
from vitbackbone.evaluation.methods.dense_augmentation import DepthViews, random_depth_view
from vitbackbone.evaluation.methods.dense_head import Training, predict
from vitbackbone.evaluation.methods.dense_training import Optimiser, Rows, Sample
from vitbackbone.evaluation.methods.depth_losses import first_loss, gradient_loss
from vitbackbone.evaluation.methods.inputs import (
    normalised,
    pixels_of,
    stand_in,
)
from vitbackbone.evaluation.methods.schedules import Schedule
from vitbackbone.evaluation.metrics.depth import NAMES, box_mask, depth_errors
from vitbackbone.evaluation.metrics.intervals import of_mean
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import setting

TOOLBOX = "Monocular-Depth-Estimation-Toolbox, depth/datasets/pipelines"
THIRD_PARTY = "from a third-party copy of DINOv2's configuration; the authors published heads and no training"


@dataclass(frozen=True)
class View:
    """The view of a test photo."""

    crop: tuple[int, int] | tuple[()] = setting(
        (), "height and width that are cut out, at the bottom, in the middle; none for all"
    )
    flip: bool = setting(True, "whether the mean with the mirror image is taken")


@dataclass(frozen=True)
class Reads:
    """The features that the head reads."""

    layers: Literal["last", "even4"] = setting("last", "layers whose patches are joined: lin1, or lin4")
    norm: bool = setting(False, "whether the final norm is applied to them, if there is one")
    cls: bool = setting(True, "whether the CLS token is joined to every patch, if there is one")


@dataclass(frozen=True)
class Fit:
    """The training of the head."""

    bins: int = setting(256, "bins, evenly spaced from the least to the most depth")
    batch_norm: bool = setting(False, "whether a batch norm comes before the linear map")
    upsample: int = setting(4, "how many times the map is enlarged before depth is taken")
    rate: float = setting(5e-3, "learning rate of AdamW")
    weight_decay: float = setting(0.01, "weight decay")
    beta2: float = setting(0.999, "second momentum of AdamW")
    steps: int = setting(38_400, "training steps")
    warmup: int = setting(12_800, "steps of warm-up", least=0)
    batch_size: int = setting(16, "photos of a step, on all GPUs of the authors together")
    photos_of_a_loss: int = setting(2, "photos whose pixels share one loss: those of one GPU")
    clip: float = setting(35.0, "most norm of the gradient")
    gradient_weight: float = setting(0.5, "weight of the gradient loss beside the scale-invariant one")
    first_steps: int = setting(100, "steps whose loss leaves the variance out", f"{TOOLBOX}", least=0)
    box: tuple[int, int, int, int] | tuple[()] = setting(
        (45, 472, 43, 608), "rows and columns that training photos are cut to; none for all"
    )
    crop: tuple[int, int] = setting((416, 544), "height and width of the crops")
    rotation: float = setting(2.5, "most rotation in degrees, with probability 1/2")
    flip: float = setting(0.5, "probability of a mirror image")
    gamma: tuple[float, float] = setting((0.9, 1.1), "random exponent of the levels, with probability 1/2")
    brightness: tuple[float, float] = setting((0.75, 1.25), "random factor of brightness, likewise")
    colour: tuple[float, float] = setting((0.9, 1.1), "random factor of each colour, likewise")
    seed: int = setting(0, "seed of the weights, the order and the views")


@dataclass(frozen=True)
class Metric:
    """The pixels that count."""

    least: float = setting(1e-3, "least depth in metres, of bins, predictions and the pixels that count")
    most: float = setting(10.0, "most depth in metres, likewise")
    mask: tuple[float, float, float, float] = setting(
        (45 / 480, 471 / 480, 41 / 640, 601 / 640),
        "top, bottom, left and right of the pixels that count, as shares of the photo: Eigen's",
    )


def cut(photo: Image.Image, depth: Float[np.ndarray, "H W"], size: Sequence[int]) -> tuple[Image.Image, NDArray[Any]]:
    """Return the middle of the bottom of a photo and its depth, as KITTI's benchmark cuts them."""
    if not size:
        return photo, depth
    top, left = photo.height - size[0], (photo.width - size[1]) // 2
    if top < 0 or left < 0:
        raise ValueError(f"a photo has {photo.width} x {photo.height} pixels; want at least {size[1]} x {size[0]}")
    box = (left, top, left + size[1], top + size[0])
    return photo.crop(box), depth[top : top + size[0], left : left + size[1]]


def scaled_box(box: Sequence[int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Return a box of a photo of 480 x 640 in a photo of (H, W); all of it without a box."""
    if not box:
        return slice(None), slice(None)
    rows, columns = (
        slice(int(start / whole * have), int(end / whole * have))
        for start, end, whole, have in ((box[0], box[1], 480, size[0]), (box[2], box[3], 640, size[1]))
    )
    return rows, columns


def sample(run: Run, data: Depths, split: Pairs, row: int, rng: np.random.Generator) -> Sample:
    """Return a random view of a photo, normalised, and its depth, 0 where unknown."""
    fit, view = run.protocol.fit, run.protocol.view
    photo, depth = cut(*data.pair(split, row), view.crop)
    rows, columns = scaled_box(fit.box, (photo.height, photo.width))
    views = DepthViews(fit.rotation, fit.flip, fit.crop, fit.gamma, fit.brightness, fit.colour)
    pixels, target = random_depth_view(
        pixels_of(photo)[:, rows, columns], torch.from_numpy(depth[rows, columns].copy()), views, rng
    )
    return _normalise(run, pixels), target


def _normalise(run: Run, levels: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
    """Normalise levels in [0, 1]. `Preprocess.normalise` takes bytes."""
    preprocess = run.backbone.preprocess
    black, white = (preprocess.normalise(torch.full((3, 1, 1), value, dtype=torch.uint8)) for value in (0, 255))
    return black + levels * (white - black)


def loss(run: Run, head: DenseHead, rows: Rows, step: int) -> Tensor:
    """Return the mean loss of groups of photos."""
    fit = run.protocol.fit
    targets = torch.stack([target for _, target in rows])[:, None]
    size = (targets.shape[2], targets.shape[3])
    depth = predict(run.backbone, head, torch.stack([image for image, _ in rows]), size)
    targets = targets.to(depth)
    groups = [
        _group_loss(fit, p, t, step)
        for p, t in zip(depth.split(fit.photos_of_a_loss), targets.split(fit.photos_of_a_loss), strict=True)
    ]
    return torch.stack(groups).mean()


def _group_loss(fit: Fit, depth: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], step: int) -> Tensor:
    known = target > 0
    value = first_loss(depth, target, known, MEAN_WEIGHT)
    if step >= fit.first_steps:
        value = scale_invariant_loss(depth, target)
    if fit.gradient_weight and known.any():
        value = value + fit.gradient_weight * gradient_loss(depth, target, known)
    return value


def make_head(run: Run) -> DenseHead:
    """Make the linear head, with weights of N(0, 0.01)."""
    reads, fit, metric, spec = run.protocol.features, run.protocol.fit, run.protocol.metric, run.backbone.spec
    head = create_head(
        "linear_depth",
        spec,
        layers=reads.layers,
        bins=fit.bins,
        min_depth=metric.least,
        max_depth=metric.most,
        norm=reads.norm and spec.has_norm,
        cls=reads.cls and spec.has_cls,
        batch_norm=fit.batch_norm,
        upsample=fit.upsample,
    )
    nn.init.normal_(head.linear.weight, std=0.01)
    nn.init.zeros_(head.linear.bias)
    return head


def depth_of(run: Run, head: DenseHead, photo: Image.Image) -> Float[np.ndarray, "H W"]:
    """Return the depth of each pixel of a photo in metres."""
    metric, size = run.protocol.metric, (photo.height, photo.width)
    image = normalised(photo, run.backbone)[None]
    with evaluating(run.backbone):
        depth = predict(run.backbone, head, image, size)
        if run.protocol.view.flip:
            depth = (depth + predict(run.backbone, head, image.flip(3), size).flip(3)) / 2
    return depth[0, 0].clamp(metric.least, metric.most).double().cpu().numpy()


def counted(truth: Float[np.ndarray, "H W"], metric: Metric) -> Bool[np.ndarray, "H W"]:
    """Return the pixels that count."""
    top, bottom, left, right = metric.mask
    return (truth > metric.least) & (truth < metric.most) & box_mask(truth.shape, (top, bottom, left, right))


def score(run: Run) -> Sequence[Score]:
    """Train and measure."""
    data: Depths = run.data
    for sentence in stand_in(run.backbone.spec, norm=run.protocol.features.norm, cls=run.protocol.features.cls):
        run.note(sentence)
    protocol, fit = run.protocol, run.shortened(run.protocol.fit, len(data.train))
    fitted, tested = data.train.limited(run.limit), data.test.limited(run.limit)
    reads, metric = protocol.features, protocol.metric
    schedule = Schedule("one-cycle", fit.steps, fit.warmup)
    optimiser = Optimiser(fit.rate, fit.weight_decay, fit.beta2, fit.clip, schedule)
    key = ["depth", fit, reads, protocol.view.crop, metric.least, metric.most, fitted.digest(), data.scale]
    training = Training(
        run,
        key,
        partial(make_head, run),
        partial(sample, run, data, fitted),
        len(fitted),
        partial(loss, run),
        optimiser,
        fit.batch_size,
        fit.seed,
    )

    def read(row: int) -> tuple[Image.Image, NDArray[Any]]:
        return cut(*data.pair(tested, row), protocol.view.crop)

    def computing(run: Run) -> Callable[[tuple[Image.Image, NDArray[Any]]], dict[str, NDArray[Any]]]:
        head = training.on(run, fit.steps)

        def one(pair: tuple[Image.Image, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            photo, truth = pair
            errors = depth_errors(depth_of(run, head, photo), truth, counted(truth, metric))
            return {"errors": np.array([errors[name] for name in NAMES])}

        return one

    key = [*training.key, metric, tested.digest(), protocol.view]
    measured = run.each("measuring", key, range(len(tested)), read, computing)
    training.publish_head(fit.steps, f"{protocol.name}-{protocol.variant}-{run.dataset}")
    return _scores(measured["errors"])


UNITS = {"rmse": "m", "a1": "%", "a2": "%", "a3": "%", "silog": "%"}


def _scores(errors: Float[np.ndarray, "N E"]) -> list[Score]:
    found, count = [], int((~np.isnan(errors[:, 0])).sum())
    for name, values in zip(NAMES, errors.T, strict=True):
        scale = 100.0 if name.startswith("a") and name != "abs_rel" else 1.0
        found.append(
            Score(
                "RMSE" if name == "rmse" else name,
                scale * float(np.nanmean(values)),
                count,
                of_mean(values, "photos", scale),
                "photos",
                UNITS.get(name, ""),
                "higher" if scale > 1 else "lower",
                main=name == "rmse",
                published="RMSE" if name == "rmse" else "",
            )
        )
    return found


TRAPS = (
    "RMSE is computed for each photo, and then averaged. Over all pixels at once it is another figure.",
    "Eigen's mask and the range of depth move DINOv2's NYU from .433 to .412.",
    "DINOv2's heads read layers without the final norm, and DINOv3's with it.",
    "KITTI has dozens of scripts: another one gave 7.4 in place of 2.3.",
    "Photos of patch 14 are padded with zeros on all sides, and the map of the padded photo is resized to the photo.",
    "With 24 layers, lin4 reads 4, 11, 17 and 23, as the authors' code does.",
)

V2 = Protocol(
    name="depth-nyu",
    variant="v2",
    summary="Depth on NYU with one linear layer over 256 bins, on the last layer and its CLS token.",
    source="Oquab et al. 2023, DINOv2, section 7.4; " + THIRD_PARTY,
    kind="depth-nyu",
    datasets=("nyu",),
    view=View(),
    features=Reads(),
    fit=Fit(),
    metric=Metric(),
    score=score,
    traps=TRAPS,
)
V2_LIN4 = replace(
    V2, variant="v2-lin4", summary="Depth on NYU with one linear layer on four layers.", features=Reads(layers="even4")
)
V3 = replace(
    V2,
    variant="v3",
    summary="Depth on NYU with batch norm and one linear layer on the normed last layer.",
    source="Siméoni et al. 2025, DINOv3, table 3; eval/depth/configs/config-nyu.yaml",
    features=Reads(norm=True, cls=False),
    fit=Fit(batch_norm=True, upsample=1, rate=3e-4, weight_decay=1e-4, beta2=0.99, gradient_weight=0.0),
)
KITTI_METRIC = Metric(most=80.0, mask=(0.40810811, 0.99189189, 0.03594771, 0.96405229))


def _kitti(nyu: Protocol) -> Protocol:
    """Return the same variant on KITTI."""
    return replace(
        nyu,
        name="depth-kitti",
        summary=nyu.summary.replace("NYU", "KITTI"),
        kind="depth-kitti",
        datasets=("kitti",),
        view=View(crop=(352, 1216)),
        fit=replace(nyu.fit, box=(), crop=(352, 704), brightness=(0.9, 1.1)),
        metric=KITTI_METRIC,
        sources={"metric.mask": "Garg et al. 2016", "view.crop": f"{TOOLBOX}, `KBCrop`"},
    )


VARIANTS = (V2, V2_LIN4, V3, *map(_kitti, (V2, V2_LIN4, V3)))
