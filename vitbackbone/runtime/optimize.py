"""A backbone in the precision asked, by whichever of the paths is fastest on this machine and close enough.

Axes: `B` batch, `D` width, `h w` patch grid.
"""

import logging
import time
from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import (
    BackboneModule,
    BackboneSpec,
    Engine,
    Features,
    Fidelity,
    Images,
    Precision,
    Runtime,
    check_images,
)
from vitbackbone.runtime.routes import PATHS, Path, Unavailable, run

LOG = logging.getLogger("vitbackbone")

PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # from the closest on
FLOORS: dict[Precision, float] = {"fp32": 1 - 1e-9, "bf16": 0.9999, "int8": 0.999}  # of the cosine to plain float32
SAMPLE = 4  # images that are looked at
ROUNDS, SECONDS = 4, 2.0  # that a comparison of speeds takes at least
BEHIND = 1.5  # times the best time, after a round: a path so far behind runs no more
IDLE = 0.01  # seconds in which the threads of the one before fall asleep; awake, they would take cores from the next
GAIN = 1.03  # times as fast as one before it in the table that a path must be, to be taken


def optimize(
    backbone: BackboneModule,
    precision: Precision = "fp32",
    engine: Literal["auto", "native", "openvino"] = "auto",
    sample: Images | None = None,
    floor: float | None = None,
) -> BackboneModule:
    """A new backbone with the same contract, weights and device, by the fastest path of this machine that is as precise
    as asked. `backbone` stays as it is; the two share their parameters where the path allows it.

    It is for inference alone: it makes no gradients, and is not to be copied or pickled. Its `runtime` says what
    computes the features, its `fidelity` how close they are to plain float32, and a line of the log "vitbackbone" which
    path was taken, and why.

    `precision`: the least that will do, and no promise of speed: where "bf16" or "int8" brings nothing on this machine,
    a higher one is taken. "fp32" equals the plain backbone to 1e-5. Below it, a GPU's kernels are compiled, which takes
    up to a minute. Small batches on a GPU are recorded and replayed, which hooks on blocks do not see.
    `engine`: "native" is torch, "openvino" needs the extra of that name; "auto" takes the faster.
    `sample`: a batch as the backbone takes it, to calibrate with and to measure closeness and speed on; the first 4
    images count. If these are of one size, images of that size may run up to a tenth faster than others. Without any,
    it is one of noise as large as the weights were trained for, which is easier on a low precision than photos are.
    `floor`: the cosine to plain float32 that CLS and patches must reach, in place of 0.9999 for "bf16" and 0.999 for
    "int8".

    Raises `ValueError` if the precision asked can run and does not reach the floor, where the engine cannot run the
    backbone, on values that are none, and on a backbone that is optimised already or not in float32.
    """
    device = _check(backbone, precision, engine)
    images = _noise(backbone.spec) if sample is None else sample
    check_images(images, backbone.channels)
    images = images[:SAMPLE]
    images = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    paths = [
        path
        for path in PATHS
        if path.device == device.type
        and engine in ("auto", path.engine)
        and PRECISIONS.index(path.precision) <= PRECISIONS.index(precision)
    ]
    least = FLOORS[precision] if floor is None else floor
    floors = {each: FLOORS["fp32"] if each == "fp32" else least for each in PRECISIONS}
    built, refused = _build_all(paths, backbone, images, floors)
    too_far = [str(why) for path, why in refused.items() if isinstance(why, TooFar) and path.precision == precision]
    if too_far and precision not in {path.precision for path in built}:
        raise ValueError(
            f"{backbone.spec.name}: {'; '.join(too_far)}. Take a higher precision than {precision!r}, or give the "
            "lowest cosine that will do as `floor`"
        )
    if not built:
        reasons = "; ".join(map(str, refused.values()))
        raise ValueError(f"engine={engine!r} cannot run {backbone.spec.name} here: {reasons}. Use engine='native'")
    best, gains = _race(built, images)
    fast = built[best]
    LOG.info(
        "%s, at least %s: %s, %s; cosine to float32 %.7f%s",
        backbone.spec.name,
        precision,
        best,
        " and ".join(gains),
        cast(Fidelity, fast.fidelity).cosine,
        "".join(f"; not {path}: {why}" for path, why in refused.items()),
    )
    return fast


def rebuild(backbone: BackboneModule, runtime: Runtime, sample: Images | None = None) -> BackboneModule:
    """The backbone by the very path that `optimize` once took: no speeds are compared, and nothing is logged.

    Raises `ValueError` where this machine cannot, or the result is not as close as `optimize` has it by default.
    """
    device = _check(backbone, runtime.precision, runtime.engine)
    images = (_noise(backbone.spec) if sample is None else sample)[:SAMPLE]
    images = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    paths = [path for path in PATHS if path.device == device.type and path.runtime == runtime]
    built, refused = _build_all(paths, backbone, images, FLOORS)
    if not built:
        why = "; ".join(map(str, refused.values())) or f"there is no such path on {device.type}"
        raise ValueError(f"{backbone.spec.name} cannot run in {runtime.precision} by {runtime.path} here: {why}")
    return built[paths[0]]


def _check(backbone: BackboneModule, precision: str, engine: str) -> torch.device:
    """The device of the backbone. Raises `ValueError` where there is nothing to optimise."""
    for name, value, known in (("precision", precision, PRECISIONS), ("engine", engine, ("auto", *get_args(Engine)))):
        if value not in known:
            raise ValueError(f"{name}={value!r}; want one of {', '.join(known)}")
    if not isinstance(backbone, BackboneModule):
        raise ValueError(f"backbone is a {type(backbone).__name__}; want what load_backbone returns")
    if backbone.fidelity is not None or backbone.runtime != Runtime():
        raise ValueError(f"{backbone.spec.name} is optimised already; optimise the backbone that it was made from")
    kinds = {(p.dtype, p.device) for p in backbone.parameters() if p.is_floating_point()}
    if len(kinds) > 1 or any(dtype != torch.float32 for dtype, _ in kinds):
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(f"{backbone.spec.name} is in {found}; want float32 on one device, `.float()`")
    return next(iter(kinds))[1] if kinds else torch.device("cpu")


def _noise(spec: BackboneSpec) -> Tensor:
    """One image of (H, W) as the backbone was trained for, coarse and fine noise."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (torch.randn(1, 3, *size, generator=generator) for size in ((7, 7), spec.image_size))
    return F.interpolate(coarse, size=spec.image_size, mode="bicubic") + 0.3 * fine


# ---- which one ----------------------------------------------------------------------------------------------------


class TooFar(Unavailable):
    """Its features are too far from those of plain float32."""


def _build_all(
    paths: list[Path], backbone: BackboneModule, images: Images, floors: Mapping[Precision, float]
) -> tuple[dict[Path, BackboneModule], dict[Path, Unavailable]]:
    """What each path makes of the backbone, and of the others why they do not."""
    want = run(backbone, images)
    built: dict[Path, BackboneModule] = {}
    refused: dict[Path, Unavailable] = {}
    for path in paths:
        try:
            fast = path.build(backbone, images)
            fast.runtime, fast.fidelity = path.runtime, compare(run(fast, images), want)
            if not fast.fidelity.cosine >= floors[path.precision]:
                raise TooFar(f"cosine {fast.fidelity.cosine:.7f}, want at least {floors[path.precision]}")
            built[path] = fast
        except Unavailable as error:
            refused[path] = error
    return built, refused


def compare(got: Features, want: Features) -> Fidelity:
    """How close features are to others of the same images and layer."""
    with torch.inference_mode():
        cosines = _cosine(got.patches, want.patches) * want.valid
        patches = (cosines.sum(dim=(1, 2)) / want.valid.sum(dim=(1, 2))).min().item()
        cls = None if got.cls is None or want.cls is None else _cosine(got.cls, want.cls).min().item()
        cls_error = None if got.cls is None or want.cls is None else _error(got.cls, want.cls)
        return Fidelity(cls, patches, cls_error, _error(got.patches, want.patches))


def _cosine(a: Float[Tensor, "B D *map"], b: Float[Tensor, "B D *map"]) -> Float[Tensor, "B *map"]:
    """Of equal vectors it is 1, of zeros too; of what is not finite it is 0."""
    cosine = F.cosine_similarity(a.double(), b.double(), dim=1)
    return cosine.masked_fill((a == b).all(dim=1), 1.0).nan_to_num(nan=0.0)


def _error(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def _race(built: Mapping[Path, BackboneModule], images: Images) -> tuple[Path, list[str]]:
    """The path to take, and how it compares with the plainest and with the next best. They run in turn, and the best
    time of each counts: what else the machine does only ever adds."""
    best, *others = built
    if not others:
        return best, ["the only path"]
    seconds = dict.fromkeys(built, float("inf"))
    began, rounds, running = time.perf_counter(), 0, list(built)
    while rounds < ROUNDS or time.perf_counter() - began < SECONDS:
        for path in running:
            time.sleep(IDLE)
            started = time.perf_counter()
            run(built[path], images).patches.sum().item()  # which waits for a GPU
            seconds[path] = min(seconds[path], time.perf_counter() - started)
        rounds += 1
        running = [path for path in running if seconds[path] < BEHIND * min(seconds.values())]
    for path in others:
        if seconds[best] > GAIN * seconds[path]:
            best = path
    next_best = min((path for path in built if path != best), key=lambda path: seconds[path])
    told = [path for path in built if path != best and path in (next_best, next(iter(built)))]
    return best, [f"{seconds[path] / seconds[best]:.2f} times as fast as {path}" for path in told]
