"""The path by which the features of a store are computed: found once, kept in its manifest, and taken again by whoever
resumes or helps, as two paths differ in the last bits."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from vitbackbone.contract import Backbone, BackboneModule, Precision, Runtime
from vitbackbone.images import ImageTransform, Photo, Resolution
from vitbackbone.runtime import SAMPLE, optimize, rebuild
from vitbackbone.store.layout import MANIFEST
from vitbackbone.store.locate import Unreadable, read_bytes
from vitbackbone.store.manifest import parse
from vitbackbone.store.plan import locators, read_plan
from vitbackbone.store.rows import Inputs

AUTO_FROM = 2000  # images: of fewer, comparing the paths takes longer than it saves
TRIED = 64  # inputs that are opened for a sample

Choice = Literal["auto", "native", "openvino"]


def choose(
    backbone: Backbone,
    precision: Precision,
    engine: Choice,
    directory: Path,
    count: int,
    sample: list[Tensor],
    device: torch.device | str,
) -> Runtime:
    """What computes the features of the store in `directory`, of `count` images. If it is there, what it was made with,
    as far as that is as precise as asked; the manifest says where it is not. Raises `ValueError` as `optimize` does."""
    given = backbone.runtime if isinstance(backbone, BackboneModule) else Runtime()
    if is_optimised(backbone):  # by whoever calls
        return given
    stored = _stored(directory)
    if stored is not None:
        close_enough = _rank(stored.precision) <= _rank(precision)
        if close_enough and engine in ("auto", stored.engine):
            return stored
        return Runtime(precision, stored.engine if engine == "auto" else engine, stored.route)
    if (precision, engine) == ("fp32", "auto") and (count < AUTO_FROM or not _optimisable(backbone)):
        return given
    with on(device, backbone):
        return optimize(cast(BackboneModule, backbone), precision, engine, sample or None).runtime


def is_optimised(backbone: Backbone) -> bool:
    """Whether it computes by a path of its own already."""
    return isinstance(backbone, BackboneModule) and (backbone.fidelity is not None or backbone.runtime != Runtime())


def read_sample(
    directory: Path,
    inputs: Inputs,
    shard_size: int,
    preprocess: ImageTransform,
    resolution: Resolution | None,
    keep_aspect: bool,
    max_pixels: int | None = None,
) -> list[Tensor]:
    """The first images that can be read, (C, H, W) each: of the store, if there is one, as its rows stay where they
    are."""
    table = read_plan(directory, shard_size).table if (directory / "inputs").is_dir() else inputs.table
    table = (table if len(table) else inputs.table)[:TRIED]
    found: list[Tensor] = []
    for at in locators(inputs.root, table, table["bytes"].to_pylist()):
        try:
            pixels = preprocess.pixels(Photo(read_bytes(at), max_pixels), resolution, keep_aspect)
        except (Unreadable, OSError, ValueError):
            continue  # a row of its own says why
        found.append(preprocess.normalise(pixels))
        if len(found) == SAMPLE:
            break
    return found


def calibration(runtime: Runtime, sample: list[Tensor]) -> str | None:
    """What tells one sample from another, where features depend on it: those of 8 bits do."""
    if runtime.precision != "int8":
        return None
    digest = hashlib.sha256()
    for image in sample:
        digest.update(f"{tuple(image.shape)}".encode() + image.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def prepared(backbone: Backbone, runtime: Runtime, sample: list[Tensor], device: str) -> Iterator[Backbone]:
    """The backbone on `device`, by that path."""
    with on(device, backbone):
        if is_optimised(backbone) or runtime == Runtime():
            yield backbone
        else:
            yield rebuild(cast(BackboneModule, backbone), runtime, sample or None)


@contextmanager
def on(device: torch.device | str, backbone: Backbone) -> Iterator[None]:
    """The backbone on `device` meanwhile."""
    assert isinstance(backbone, nn.Module)  # as `extract` sees to
    home = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    if home == torch.device(device):
        yield
        return
    try:
        backbone.to(device)
        yield
    finally:
        backbone.to(home)


def _stored(directory: Path) -> Runtime | None:
    """That of the manifest, if there is one that can be read."""
    try:
        return Runtime(**parse((directory / MANIFEST).read_bytes())["runtime"])
    except (OSError, ValueError):
        return None


def _optimisable(backbone: Backbone) -> bool:
    floats = (p.dtype for p in cast(nn.Module, backbone).parameters() if p.is_floating_point())
    return isinstance(backbone, BackboneModule) and all(dtype == torch.float32 for dtype in floats)


def _rank(precision: Precision) -> int:
    return get_args(Precision).index(precision)
