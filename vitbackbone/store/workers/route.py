"""The route by which the features of a store are computed.

The first run chooses it and the manifest records it. Every later run takes the same route, because two routes differ in
the last bits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeGuard, cast, get_args

import pyarrow as pa
import torch
from safetensors.torch import load
from torch import Tensor, nn

from vitbackbone.contract import Backbone, BackboneModule, Precision, Runtime, device_of
from vitbackbone.files import Storage
from vitbackbone.images import ImageTransform, Photo, Resolution
from vitbackbone.runtime import SAMPLE, optimize, rebuild
from vitbackbone.store.objects import Damaged, put_tensors, read_object
from vitbackbone.store.sources.locate import Unreadable, locators, read_bytes
from vitbackbone.store.sources.rows import Root

AUTO_FROM = 2000  # images; with fewer, comparing the routes takes longer than it saves
TRIED = 64  # most inputs that are opened for a sample

Choice = Literal["auto", "native", "openvino"]


def choose(
    backbone: Backbone,
    precision: Precision,
    engine: Choice,
    stored: Runtime | None,
    count: int,
    sample: list[Tensor],
    device: torch.device | str,
) -> Runtime:
    """Choose what computes the features of `count` images. `stored`: the runtime of the existing store, if any.

    `sample`: some of them, or none if none can be read. Then routes are not compared, because none has work.
    Reuses the store's runtime if it is precise enough. If it is not, the check of the settings refuses the run.
    Raises `ValueError` as `optimize` does.
    """
    if stored is not None:
        close_enough = _rank(stored.precision) <= _rank(precision)
        if close_enough and engine in ("auto", stored.engine):
            return stored
        return Runtime(precision, stored.engine if engine == "auto" else engine, stored.route)
    compared = count >= AUTO_FROM and sample and _optimisable(backbone)
    if (precision, engine) == ("fp32", "auto") and not compared:
        return Runtime()
    with on(device, backbone):
        return optimize(cast(BackboneModule, backbone), precision, engine, sample or None).runtime


def is_optimised(backbone: Backbone) -> TypeGuard[BackboneModule]:
    """Tell whether a backbone is the result of `optimize`."""
    return isinstance(backbone, BackboneModule) and (backbone.fidelity is not None or backbone.runtime != Runtime())


def read_sample(
    root: Root,
    rows: pa.Table,
    preprocess: ImageTransform,
    resolution: Resolution | None,
    keep_aspect: bool,
    max_pixels: int | None = None,
) -> list[Tensor]:
    """Read the first images that can be read, (C, H, W) each.

    `rows`: the first rows of the existing store, because they keep their order. Without a store, the source's.
    """
    table = rows[:TRIED]
    found: list[Tensor] = []
    for at in locators(root, table, table["bytes"].to_pylist()):
        try:
            pixels = preprocess.pixels(Photo(read_bytes(at), max_pixels), resolution, keep_aspect)
        except (Unreadable, OSError, ValueError):
            continue  # the extraction records the reason in its row
        found.append(preprocess.normalise(pixels))
        if len(found) == SAMPLE:
            break
    return found


def put_sample(storage: Storage, sample: list[Tensor]) -> str | None:
    """Write the images of a sample into the store, and return the name of the object; None if there are none.

    The last bits of features depend on the images that a route was made with, and those of 8 bits much more. So every
    later run makes it with the same images, whatever has become of their files.
    """
    return put_tensors(storage, {f"{i}": image.contiguous() for i, image in enumerate(sample)}) if sample else None


def stored_sample(storage: Storage, name: str | None, again: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Read the images of a sample. If they are damaged, they are written again, as `again` reads them from their files.

    Raises `ValueError` if the files have other images now.
    """
    if name is None:
        return []
    try:
        tensors = load(read_object(storage, name))
    except Damaged as error:
        if put_sample(storage, images := again()) == name:
            return images
        raise ValueError(
            f"{storage.url}: the images that its route was made with cannot be read, and the first images of the "
            "source are others now. Put those back and run the same extraction again, or give another --out: "
            f"{error.found}"
        ) from error
    return [tensors[f"{i}"] for i in range(len(tensors))]


@contextmanager
def prepared(backbone: Backbone, runtime: Runtime, sample: list[Tensor], device: str) -> Iterator[Backbone]:
    """Give the backbone on `device`, with the route of `runtime`."""
    with on(device, backbone):
        if is_optimised(backbone) or runtime == Runtime():
            yield backbone
        else:
            yield rebuild(cast(BackboneModule, backbone), runtime, sample or None)


@contextmanager
def on(device: torch.device | str, backbone: Backbone) -> Iterator[None]:
    """Move the backbone to `device` for the block."""
    assert isinstance(backbone, nn.Module)  # `extract` checks it
    home = device_of(backbone) or torch.device("cpu")
    if home == torch.device(device):
        yield
        return
    try:
        backbone.to(device)
        yield
    finally:
        backbone.to(home)


def _optimisable(backbone: Backbone) -> bool:
    floats = (p.dtype for p in cast(nn.Module, backbone).parameters() if p.is_floating_point())
    return isinstance(backbone, BackboneModule) and all(dtype == torch.float32 for dtype in floats)


def _rank(precision: Precision) -> int:
    return get_args(Precision).index(precision)
