"""Batches of pixels to rows of the tensors of a shard."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitbackbone.contract import Backbone, BackboneModule, Features, Images, Prefix
from vitbackbone.store.layout import tensor_name
from vitbackbone.store.reader import Batch, Record

log = logging.getLogger("vitbackbone")

# What torch says where memory ran out on the CPU, by a plain RuntimeError.
OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_alloc|out of memory", re.IGNORECASE)


@dataclass
class Embedder:
    """`kinds` of tokens of `layers` (0-based), as `dtype`. A forward gets images of at most `max_pixels` in all, or one
    that has more by itself; where memory runs out, that is halved for good."""

    backbone: Backbone
    kinds: Sequence[str]
    layers: Sequence[int]
    dtype: torch.dtype
    device: torch.device | str
    max_pixels: int

    def empty(self) -> dict[str, Tensor]:
        """The tensors of a shard without images."""
        spec = self.backbone.spec
        before = {"cls": (), "registers": (spec.num_registers,), "patches": ()}
        tensors = {
            tensor_name(kind, layer, self.layers): torch.empty(0, *before[kind], spec.dims[layer], dtype=self.dtype)
            for layer in self.layers
            for kind in self.kinds
        }
        return tensors | ({"grid": torch.empty(0, 2, dtype=torch.int32)} if "patches" in self.kinds else {})

    def __call__(self, batch: Batch) -> tuple[list[Record], dict[str, Tensor]]:
        """The record of each input, and the rows of those that have features.

        Raises `MemoryError` where it does not suffice for one image.
        """
        records = list(batch.records)
        if not batch.shapes:
            return records, {}
        parts = self._within_memory(batch.images(self.backbone.preprocess, self.device))
        finite = torch.cat([good for good, _ in parts])
        read = [i for i, record in enumerate(records) if record.reason is None]
        for i, good in zip(read, finite.tolist(), strict=True):
            if not good:
                error = f"features are not finite (NaN or Inf) in {self.dtype}"
                records[i] = replace(records[i], reason="not finite", error=error)
        return records, {name: torch.cat([rows[name] for _, rows in parts]) for name in parts[0][1]}

    def _within_memory(self, images: Images) -> list[tuple[Bool[Tensor, " n"], dict[str, Tensor]]]:
        """`_embed` of the images, in as many parts as memory wants."""
        parts = []
        start = 0
        while start < len(images):
            part = images[start : start + self._fitting(images, start)]
            try:
                parts.append(self._embed(part))
                start += len(part)
                continue
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not OUT_OF_MEMORY.search(str(error)):
                    raise
                if len(part) == 1:
                    height, width = part[0].shape[-2:]
                    raise MemoryError(
                        f"memory ran out with a single image of {height} x {width} pixels; ask for a lower "
                        "--resolution, or use a device with more memory. What is done is kept"
                    ) from error
            # Outside of `except`, whose error holds on to what was allocated.
            self.max_pixels = sum(map(_pixels, part)) // 2
            log.warning("memory ran out with %d images at once; going on with half of that", len(part))
            if torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()
        return parts

    def _fitting(self, images: Images, start: int) -> int:
        """How many images from `start` on make one forward, at least one."""
        total = 0
        for i in range(start, len(images)):
            total += _pixels(images[i])
            if total > self.max_pixels:
                return max(1, i - start)
        return len(images) - start

    def _embed(self, images: Images) -> tuple[Bool[Tensor, " n"], dict[str, Tensor]]:
        """Which of the images have finite features, and the rows of those."""
        norm = self.backbone.spec.norms(self.layers)
        outputs: list[Features | Prefix]
        if "patches" in self.kinds or not isinstance(self.backbone, BackboneModule):
            outputs = [*self.backbone.forward_layers(images, self.layers, norm=norm)]
        else:
            outputs = [*self.backbone.forward_prefix(images, self.layers, norm=norm)]
        values = {
            (layer, kind): _tokens(output, kind).to("cpu", self.dtype)
            for layer, output in zip(self.layers, outputs, strict=True)
            for kind in self.kinds
        }
        finite = torch.stack([value.isfinite().flatten(1).all(dim=1) for value in values.values()]).all(dim=0)
        first = outputs[0]
        grids = torch.tensor(first.geometry.grids if isinstance(first, Features) else [], dtype=torch.int32)
        rows = {
            tensor_name(kind, layer, self.layers): _flat(value, grids, finite) if kind == "patches" else value[finite]
            for (layer, kind), value in values.items()
        }
        return finite, rows | ({"grid": grids[finite]} if "patches" in self.kinds else {})


def _tokens(output: Features | Prefix, kind: str) -> Float[Tensor, "B ..."]:
    if kind == "patches":
        assert isinstance(output, Features)
        return output.patches
    if kind == "registers":
        return output.registers
    assert output.cls is not None  # as `extract` sees to
    return output.cls


def _flat(maps: Float[Tensor, "B D h w"], grids: Int[Tensor, "B 2"], keep: Bool[Tensor, " B"]) -> Float[Tensor, "L D"]:
    """The patches of the images to keep, one after another, each without the padding of its map."""
    cut = [maps[i, :, : grids[i, 0], : grids[i, 1]].flatten(1).T for i in keep.nonzero().flatten().tolist()]
    return torch.cat([maps.new_empty(0, maps.shape[1]), *cut])


def _pixels(image: Tensor) -> int:
    return image.shape[-2] * image.shape[-1]
