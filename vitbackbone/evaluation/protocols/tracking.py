"""Video object segmentation by label propagation: DAVIS 2017."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import evaluating
from vitbackbone.evaluation.datasets.davis import Video, Videos
from vitbackbone.evaluation.datasets.photos import open_photo
from vitbackbone.evaluation.methods.inputs import (
    last,
    normalised,
    resize,
    resize_aliased,
    size_of,
    stand_in,
)
from vitbackbone.evaluation.methods.propagation import one_hot, propagate, stretched
from vitbackbone.evaluation.metrics.intervals import of_sums
from vitbackbone.evaluation.metrics.masks import contour_f, jaccard
from vitbackbone.evaluation.protocol import Nothing, Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import setting
from vitbackbone.evaluation.several_devices import ahead

PATCH = 16


@dataclass(frozen=True)
class View:
    """The view of a frame."""

    short: int = setting(960, "shorter side, in pixels")
    per_patch: bool = setting(True, f"whether it is for patches of {PATCH} pixels and follows the patch")
    multiple: int = setting(0, "what the longer side is rounded down to; 0 rounds both sides up to whole patches")
    resizing: Literal["bicubic", "opencv"] = setting("bicubic", "Pillow's filter, or OpenCV's bilinear that aliases")
    std: tuple[float, float, float] | tuple[()] = setting(
        (), "deviations in place of ImageNet's; none for the checkpoint's own"
    )


@dataclass(frozen=True)
class Propagation:
    """The propagation of labels from frame to frame."""

    context: int = setting(7, "last frames that are looked at, beside the first", least=0)
    radius: int = setting(12, "patches around a patch that are looked at", least=0)
    shape: Literal["square", "circle"] = setting("circle", "shape of that neighbourhood")
    topk: int = setting(5, "most similar patches over all frames of context")
    temperature: float = setting(0.2, "of the weights, exp(cosine / temperature)", least=1e-6)
    enlarge: Literal["patch", "native"] = setting(
        "native", "enlarged by the patch, then the classes to the frame; or the scores to the frame at once"
    )


def input_size(size: tuple[int, int], view: View, stride: int) -> tuple[int, int]:
    """Return (height, width) of a frame as it is shown, in whole patches."""
    short = view.short * stride // PATCH if view.per_patch else view.short
    longer = max(size) * short / min(size)
    if view.multiple:
        short, long = short // stride * stride, int(longer // view.multiple * view.multiple) // stride * stride
    else:
        short = math.ceil(short / stride) * stride
        long = math.ceil(max(size) * short / min(size) / stride) * stride
    return (long, short) if size[0] > size[1] else (short, long)


class Tracker:
    """The propagation of a video's first mask through its frames."""

    def __init__(self, run: Run, video: Video) -> None:
        self.run, self.video = run, video

    def image(self, frame: int) -> Float[Tensor, "3 H W"]:
        """Return the input of a frame."""
        view, backbone = self.run.protocol.view, self.run.backbone
        photo = open_photo(self.video.root / self.video.frames[frame])
        size = input_size(size_of(photo), view, backbone.spec.stride)
        shown = resize_aliased(photo, size) if view.resizing == "opencv" else resize(photo, size, "bicubic")
        return normalised(shown, backbone, view.std or None)

    def features(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "D h w"]:
        """Return the patches of a frame, scaled to length 1."""
        return F.normalize(last(self.run.backbone, image[None]).patches[0].float(), dim=0)

    def masks(self) -> list[UInt8[np.ndarray, "H W"]]:
        """Return the object of each pixel of each frame. The first is the given one."""
        fit, first = self.run.protocol.fit, self.video.mask(0)
        objects, found = int(first.max()), [first]
        images = ahead(self.image, range(len(self.video.frames)), self.run.machine.workers)
        with evaluating(self.run.backbone):
            features = self.features(next(images))
            labels = one_hot(self._small(first, (features.shape[1], features.shape[2])), objects).to(features)
            start, recent = (features, labels), [(features, labels)][:0]
            for image in images:
                features = self.features(image)
                context = [start, *recent]
                labels = propagate(
                    features,
                    torch.stack([each for each, _ in context]),
                    torch.stack([each for _, each in context]),
                    fit.radius,
                    fit.shape,
                    fit.topk,
                    fit.temperature,
                )
                recent = [*recent, (features, labels)][-fit.context :] if fit.context else []
                found.append(self._large(labels, (first.shape[0], first.shape[1])))
        return found

    def _small(self, mask: UInt8[np.ndarray, "H W"], grid: tuple[int, int]) -> Tensor:
        """Return the object of each patch, by the nearest pixel to its centre."""
        return torch.from_numpy(np.array(resize(Image.fromarray(mask), grid, "nearest")))

    def _large(self, labels: Float[Tensor, "M h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
        """Return the object of each pixel."""
        by_patch = self.run.protocol.fit.enlarge == "patch"
        grid = (labels.shape[1], labels.shape[2])
        stride = self.run.backbone.spec.stride
        inner = (grid[0] * stride, grid[1] * stride) if by_patch else size
        scores = F.interpolate(labels[None], inner, mode="bilinear", align_corners=False)[0]
        classes = stretched(scores, guarded=not by_patch).argmax(dim=0).to(torch.uint8).cpu().numpy()
        return np.asarray(resize(Image.fromarray(classes), size, "nearest"))


def measure(video: Video, masks: Sequence[UInt8[np.ndarray, "H W"]]) -> dict[str, Float[np.ndarray, "M T"]]:
    """Return J and F of each object in each frame but the first and the last."""
    objects, inner = int(video.mask(0).max()), range(1, len(masks) - 1)
    j, f = np.zeros((objects, len(inner))), np.zeros((objects, len(inner)))
    for column, frame in enumerate(inner):
        truth = video.mask(frame)
        for row in range(objects):
            predicted, wanted = masks[frame] == row + 1, truth == row + 1
            j[row, column], f[row, column] = jaccard(predicted, wanted), contour_f(predicted, wanted)
    return {"j": j, "f": f}


def score(run: Run) -> Sequence[Score]:
    """Propagate and measure."""
    data: Videos = run.data
    for sentence in stand_in(run.backbone.spec, norm=True, cls=False):
        run.note(sentence)
    videos = list(data.sequences)[: run.limit]
    key = ["tracking", run.protocol.view, run.protocol.fit, data.digest()]
    items = {video: [*key, video.name] for video in videos}
    found = run.apart(
        "tracking", items, lambda replica, video: measure(video, Tracker(replica, video).masks())
    ).values()
    j, f = ([each[name].mean(axis=1) for each in found] for name in ("j", "f"))  # of the objects of each video
    both = [(own_j + own_f) / 2 for own_j, own_f in zip(j, f, strict=True)]
    return [_mean("J&F", both), _mean("J", j), _mean("F", f)]


def _mean(name: str, videos: Sequence[Float[np.ndarray, " _"]]) -> Score:
    """Return the mean over all objects. Its interval draws videos, whose objects share their frames."""
    objects, main = np.concatenate(videos), name == "J&F"
    sums = np.array([(each.sum(), len(each)) for each in videos])
    interval = of_sums(sums, lambda total: float(total[0] / total[1]), "videos with all their objects", 100)
    value = 100 * float(objects.mean())
    return Score(name, value, len(objects), interval, "objects", main=main, published=name if main else "")


V3_M = Protocol(
    name="tracking",
    variant="v3",
    summary="DAVIS 2017: the first mask carried on by similar patches; J&F at medium resolution, 60 patches high.",
    source="Siméoni et al. 2025, DINOv3, table 5; notebooks/segmentation_tracking.ipynb",
    kind="videos",
    datasets=("davis",),
    view=View(),
    features=Nothing(),
    fit=Propagation(),
    metric=Nothing(),
    score=score,
    traps=(
        "J&F is a mean over objects, not over videos or frames. The first and the last frame are left out.",
        "Resolution moves it by 12 points: 480, 960 and 1440 pixels are S, M and L for patches of 16.",
        "DINO's own recipe and DINOv3's differ: PE-spatial G has 61.5 in the first and 68.4 in the second, small.",
        "DINOv3's notebook enlarges scores to the nearest patch; its paper says bilinear, as here.",
        "DINO's code divides by a deviation of .228 for red, where ImageNet's is .229.",
    ),
)
V3_S = replace(V3_M, variant="v3-small", summary="DAVIS 2017 at DINOv3's small resolution.", view=View(short=480))
V3_L = replace(V3_M, variant="v3-large", summary="DAVIS 2017 at DINOv3's large resolution.", view=View(short=1440))
V1 = replace(
    V3_M,
    variant="v1",
    summary="DAVIS 2017 as DINO has it: 480 pixels high, square neighbourhoods.",
    source="Caron et al. 2021, DINO, table 5; facebookresearch/dino, eval_video_segmentation.py",
    view=View(short=480, per_patch=False, multiple=64, resizing="opencv", std=(0.228, 0.224, 0.225)),
    fit=Propagation(shape="square", temperature=0.1, enlarge="patch"),
)

VARIANTS = (V3_M, V3_S, V3_L, V1)
