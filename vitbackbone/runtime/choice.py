"""The choice of a route: build every route that is precise enough, measure them, and take the fastest."""

import logging
import time
from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract import (
    BackboneModule,
    Engine,
    Fidelity,
    Images,
    Precision,
    Runtime,
    check_images,
)
from vitbackbone.runtime.fidelity import compare
from vitbackbone.runtime.routes import ROUTES, Route, Unavailable, run

LOG = logging.getLogger("vitbackbone")

PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # from the most precise to the least
FLOORS: dict[Precision, float] = {"fp32": 1 - 1e-9, "bf16": 0.9999, "int8": 0.999}  # lowest cosine to plain float32
SAMPLE = 4  # images of a sample that are used
ROUNDS, SECONDS = 4, 2.0  # least length of a comparison of speeds
BEHIND = 1.5  # a route that takes this many times the best time is not timed again
IDLE = 0.01  # seconds between two routes, so that the threads of the first sleep and leave the cores to the second
GAIN = 1.03  # a route must be this many times as fast as an earlier one of the table to be taken


def optimize(
    backbone: BackboneModule,
    precision: Precision = "fp32",
    engine: Literal["auto", "native", "openvino"] = "auto",
    sample: Images | None = None,
    floor: float | None = None,
) -> BackboneModule:
    """Return a backbone with the same contract, weights and device that computes its features faster.

    Every route of this machine that is precise enough is built and timed; the fastest is taken. `backbone` is not
    changed. The two share their parameters where the route allows it.

    The result is for inference only: it computes no gradients and cannot be copied or pickled. Its `runtime` names the
    route, and its `fidelity` says how close the features are to plain float32. A line of the log "vitbackbone" says
    which route was taken and why. On a GPU, "bf16" and "int8" compile kernels, which takes up to a minute. A GPU
    records and replays small batches, so hooks on blocks do not see them.

    `precision`: the lowest precision allowed; a higher one is used where it is faster here. "fp32" equals the plain
    backbone to 1e-5.
    `engine`: "native" is torch, "openvino" needs the extra `openvino`, "auto" takes the faster of the two.
    `sample`: a batch as the backbone takes it. The first 4 images calibrate 8 bits and measure closeness and speed. If
    they have one size, images of that size may run up to a tenth faster than others. The default is noise of the size
    that the weights were trained for, which loses less in a low precision than photos do.
    `floor`: the lowest cosine of CLS and patches to plain float32. The default is 0.9999 for "bf16", 0.999 for "int8".

    Raises `ValueError` if the precision asked for runs but does not reach the floor, if the engine cannot run the
    backbone, or if an argument is unknown. The backbone must be in float32, and not optimised already.
    """
    device = _check(backbone, precision, engine)
    images = _noise(backbone) if sample is None else sample
    check_images(images, backbone.channels)
    images = images[:SAMPLE]
    images = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    routes = [
        route
        for route in ROUTES
        if route.device == device.type
        and engine in ("auto", route.engine)
        and PRECISIONS.index(route.precision) <= PRECISIONS.index(precision)
    ]
    least = FLOORS[precision] if floor is None else floor
    floors = {each: FLOORS["fp32"] if each == "fp32" else least for each in PRECISIONS}
    built, refused = _build_all(routes, backbone, images, floors)
    too_far = [str(why) for route, why in refused.items() if isinstance(why, TooFar) and route.precision == precision]
    if too_far and precision not in {route.precision for route in built}:
        raise ValueError(
            f"{backbone.spec.name}: {'; '.join(too_far)}. Take a higher precision than {precision!r}, or pass a lower "
            "`floor`, the least cosine that you accept"
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
        "".join(f"; not {route}: {why}" for route, why in refused.items()),
    )
    return fast


def rebuild(backbone: BackboneModule, runtime: Runtime, sample: Images | None = None) -> BackboneModule:
    """Build the route that `optimize` took before, without comparing speeds and without logging.

    Raises `ValueError` if this machine cannot run it, or if the result does not reach the default floor.
    """
    device = _check(backbone, runtime.precision, runtime.engine)
    images = (_noise(backbone) if sample is None else sample)[:SAMPLE]
    images = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    routes = [route for route in ROUTES if route.device == device.type and route.runtime == runtime]
    built, refused = _build_all(routes, backbone, images, FLOORS)
    if not built:
        why = "; ".join(map(str, refused.values())) or f"{device.type} has no such route"
        raise ValueError(f"{backbone.spec.name} cannot run in {runtime.precision} by {runtime.route} here: {why}")
    return built[routes[0]]


def _check(backbone: BackboneModule, precision: str, engine: str) -> torch.device:
    """Return the device of the backbone. Raises `ValueError` if it cannot be optimised."""
    for name, value, known in (("precision", precision, PRECISIONS), ("engine", engine, ("auto", *get_args(Engine)))):
        if value not in known:
            raise ValueError(f"{name}={value!r}; want one of {', '.join(known)}")
    if not isinstance(backbone, BackboneModule):
        raise ValueError(f"backbone is a {type(backbone).__name__}; want one that load_backbone returns")
    if backbone.fidelity is not None or backbone.runtime != Runtime():
        raise ValueError(f"{backbone.spec.name} is optimised already; optimise the backbone that it was made from")
    kinds = {(p.dtype, p.device) for p in backbone.parameters() if p.is_floating_point()}
    if len(kinds) > 1 or any(dtype != torch.float32 for dtype, _ in kinds):
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(f"{backbone.spec.name} is in {found}; want float32 on one device, `.float()`")
    return next(iter(kinds))[1] if kinds else torch.device("cpu")


def _noise(backbone: BackboneModule) -> Tensor:
    """Return one image of coarse and fine noise, of the size that the backbone was trained for."""
    generator = torch.Generator().manual_seed(0)
    native, channels = backbone.spec.image_size, backbone.channels[0]
    coarse, fine = (torch.randn(1, channels, *size, generator=generator) for size in ((7, 7), native))
    return F.interpolate(coarse, size=native, mode="bicubic") + 0.3 * fine


# ---- comparing routes ---------------------------------------------------------------------------------------------


class TooFar(Unavailable):
    """The features are too far from plain float32."""


def _build_all(
    routes: list[Route], backbone: BackboneModule, images: Images, floors: Mapping[Precision, float]
) -> tuple[dict[Route, BackboneModule], dict[Route, Unavailable]]:
    """Return the backbone of each route that can be built, and the reason for each that cannot."""
    want = run(backbone, images)
    built: dict[Route, BackboneModule] = {}
    refused: dict[Route, Unavailable] = {}
    for route in routes:
        try:
            fast = route.build(backbone, images)
            fast.runtime, fast.fidelity = route.runtime, compare(run(fast, images), want)
            if not fast.fidelity.cosine >= floors[route.precision]:
                raise TooFar(f"cosine {fast.fidelity.cosine:.7f}, want at least {floors[route.precision]}")
            built[route] = fast
        except Unavailable as error:
            refused[route] = error
    return built, refused


def _race(built: Mapping[Route, BackboneModule], images: Images) -> tuple[Route, list[str]]:
    """Return the fastest route, and its speed relative to the plainest and to the next best.

    The routes run in turn. The best time of each counts, because other load on the machine only adds time.
    """
    best, *others = built
    if not others:
        return best, ["the only route"]
    seconds = dict.fromkeys(built, float("inf"))
    began, rounds, running = time.perf_counter(), 0, list(built)
    while rounds < ROUNDS or time.perf_counter() - began < SECONDS:
        for route in running:
            time.sleep(IDLE)
            started = time.perf_counter()
            run(built[route], images).patches.sum().item()  # which waits for a GPU
            seconds[route] = min(seconds[route], time.perf_counter() - started)
        rounds += 1
        running = [route for route in running if seconds[route] < BEHIND * min(seconds.values())]
    for route in others:
        if seconds[best] > GAIN * seconds[route]:
            best = route
    next_best = min((route for route in built if route != best), key=lambda route: seconds[route])
    told = [route for route in built if route != best and route in (next_best, next(iter(built)))]
    return best, [f"{seconds[route] / seconds[best]:.2f} times as fast as {route}" for route in told]
