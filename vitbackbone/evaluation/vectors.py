"""One vector for each image of a dataset, extracted once into a feature store that all protocols share.

Axes: `N` images, `F` width of the vector, `B` batch.
"""

import hashlib
import io
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from vitbackbone.contract import (
    Attention,
    Backbone,
    BackboneModule,
    BackboneSpec,
    Features,
    Geometry,
    Pooled,
    pool_mean,
)
from vitbackbone.contract import Images as Batch
from vitbackbone.evaluation.datasets import Images
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import digest, plain, setting
from vitbackbone.evaluation.views import CropView, viewing
from vitbackbone.files import publish
from vitbackbone.images import ImageTransform
from vitbackbone.store import FeatureStore, extract

log = logging.getLogger("vitbackbone")
DINOV2 = "dinov2/eval/utils.py"


@dataclass(frozen=True)
class VectorFeatures:
    """The vector of each image that is read from a backbone. A backbone without CLS gives `pooled` in its place."""

    blocks: int = setting(1, "CLS tokens of so many last blocks, side by side", DINOV2)
    mean: bool = setting(False, "append the mean of the last block's patches; registers are not among them", DINOV2)
    norm: bool = setting(True, "apply the checkpoint's final norm to each block", DINOV2)

    def width(self, spec: BackboneSpec) -> int:
        """Return F."""
        return sum(self.widths(spec)) + self.mean * spec.dim

    def widths(self, spec: BackboneSpec) -> list[int]:
        """Return the width of each block's part."""
        return [
            (spec.dims if spec.has_cls else spec.pooled_dims)[layer] for layer in spec.indices(range(-self.blocks, 0))
        ]

    def plain_cls(self, spec: BackboneSpec) -> bool:
        """Tell whether this is the CLS token of the last layer as `extract` itself stores it."""
        return self.blocks == 1 and not self.mean and spec.has_cls and self.norm == spec.has_norm

    def check(self, spec: BackboneSpec) -> "VectorFeatures":
        """Return the features that this backbone has: without its final norm if it has none.

        Raises `ValueError` if the backbone has fewer blocks.
        """
        if self.blocks > spec.depth:
            raise ValueError(f"features.blocks={self.blocks}, and {spec.name} has {spec.depth} blocks")
        layers = spec.indices(range(-self.blocks, 0))
        return self if spec.norms(layers) or not self.norm else replace(self, norm=False)

    @torch.no_grad()
    def read(self, backbone: BackboneModule, images: Batch) -> Float[Tensor, "B F"]:
        """Run the backbone, and return the vectors in float32."""
        features = self.check(backbone.spec)
        layers = range(-features.blocks, 0)
        if features.mean:
            outputs: Sequence[Any] = backbone.forward_layers(images, layers, norm=features.norm)
        else:
            outputs = backbone.forward_prefix(images, layers, norm=features.norm)
        parts = [each.cls if backbone.spec.has_cls else each.pooled for each in outputs]
        return torch.cat([*parts, *([pool_mean(outputs[-1])] if features.mean else [])], dim=1).float()


class VectorBackbone(nn.Module):
    """A backbone whose CLS token is the vector of `VectorFeatures`, so that `extract` stores it."""

    def __init__(self, backbone: BackboneModule, features: VectorFeatures) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = features
        width = features.width(backbone.spec)
        own = backbone.spec
        shape: dict[str, Any] = {"dims": (), "strides": (), "pooled_dims": (), "dim": width, "pooled_dim": width}
        one: dict[str, Any] = {"depth": 1, "num_heads": 0, "num_registers": 0, "has_cls": True, "has_norm": False}
        self.spec = replace(own, **shape, **one, settings=f"{own.settings} {features}")

    @property
    def preprocess(self) -> ImageTransform:
        return self.backbone.preprocess

    def forward(self, images: Batch) -> Features:
        vectors = self.features.read(self.backbone, images)
        sizes = tuple((each.shape[-2], each.shape[-1]) for each in images)
        empty = vectors[:, None][:, :0]
        return Features(vectors, empty, vectors[:, :, None, None], Geometry(sizes, self.spec.stride), Pooled(vectors))

    def forward_layers(self, images: Batch, layers: Sequence[int], norm: bool | Sequence[bool]) -> tuple[Features, ...]:
        return (self(images),) * len(layers)

    def attention(self, images: Batch, layers: Sequence[int]) -> tuple[Attention, ...]:
        raise ValueError("these vectors have no attention")


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of the images that could be read."""

    store: FeatureStore
    rows: Int[np.ndarray, " N"]  # which images of the dataset they are
    labels: Int[np.ndarray, "N ..."]
    names: Sequence[str]
    chosen: Int[np.ndarray, " N"] | None = None  # rows of the store; None means all

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the list of images that could be read."""
        return hashlib.sha256(np.ascontiguousarray(self.rows).data).hexdigest()

    @cached_property
    def array(self) -> Float[np.ndarray, "N F"]:
        """All vectors in memory, float32."""
        found = self.store.cls if self.chosen is None else self.store.read("cls", self.chosen)
        return np.asarray(found, dtype=np.float32)

    def block(self, start: int, stop: int) -> Float[np.ndarray, "n F"]:
        """Read some vectors, float32."""
        rows = np.arange(start, min(stop, len(self))) if self.chosen is None else self.chosen[start:stop]
        return self.store.read("cls", rows).astype(np.float32, copy=False)

    def take(self, rows: Int[np.ndarray, " n"]) -> "Vectors":
        """Return some of the vectors, in the given order."""
        chosen = rows if self.chosen is None else self.chosen[rows]
        names = [self.names[i] for i in rows.tolist()]
        return Vectors(self.store, self.rows[rows], self.labels[rows], names, chosen)


def vectors(run: Run, images: Images, view: CropView, features: VectorFeatures, what: str) -> Vectors:
    """Extract the vectors of images, or find them in a store that an earlier protocol or run has made.

    `what`: the images in words, such as "cifar10 train". Images that cannot be read are left out and noted.
    Raises `ValueError` if none can be read.
    """
    features = features.check(run.backbone.spec)
    images = images.limited(run.limit)
    listed = [str(images.root.absolute()), list(images.names), images.content]  # `extract` itself sees changed files
    key = digest(run.fingerprint, listed, plain(view), plain(features))[:16]
    source = _source(run.out / "lists", images, key)
    simple = features.plain_cls(run.backbone.spec)
    log.info("%s: features of the %d images of %s", run.protocol.name, len(images), what)
    if not run.backbone.spec.has_cls:
        run.note("the backbone has no CLS token; its own pooling stands in for it")
    with ExitStack() as stack:
        backbone = stack.enter_context(viewing(run.backbone, view.preprocess(run.backbone)))
        machine = run.machine
        store = extract(
            backbone if simple else cast(Backbone, VectorBackbone(backbone, features)),
            source,
            run.out / "features" / key,
            batch_size=machine.batch_size,
            workers=machine.workers,
            device=machine.device,
            devices=machine.devices,
            progress=machine.progress,
        )
    return _aligned(run, store, images, what)


def _aligned(run: Run, store: FeatureStore, images: Images, what: str) -> Vectors:
    """Return the vectors with their labels. Images without features are left out, and noted."""
    rows = store.images["row"].to_numpy()
    if not len(rows):
        raise ValueError(f"no image of {what} could be read; the first reason: {store.failed[0][1]}")
    lost = len(images) - len(rows)
    if lost:
        missing = sorted({*range(len(images))} - {*rows.tolist()})
        run.unreadable += [name for i in missing if (name := f"{what}: {images.names[i]}") not in run.unreadable]
        run.note(f"{lost} of {len(images)} images of {what} could not be read and are left out")
    order = np.argsort(rows, kind="stable")
    chosen = None if np.array_equal(order, np.arange(len(rows))) else order
    kept = rows[order]
    return Vectors(store, kept, images.labels[kept], [images.names[i] for i in kept.tolist()], chosen)


def _source(folder: Path, images: Images, key: str) -> Path:
    """Write the list of images that `extract` reads: paths, or the images themselves as PNG if they are arrays."""
    file = folder / f"{key}.parquet"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    if images.pixels is None:
        root = images.root.absolute()
        table = pa.table({"path": [str(root / name) for name in images.names]})
    else:
        table = pa.table({"name": list(images.names), "image": [_png(pixels) for pixels in images.pixels]})
    with publish(file) as temporary, temporary.open("wb") as opened:
        pq.write_table(table, opened, row_group_size=1000)
    return file


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
