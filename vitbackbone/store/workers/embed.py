"""Embed batches of pixels into the rows of a shard's tensors."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitbackbone.contract import Backbone, BackboneModule, Features, Images, Prefix
from vitbackbone.store.layout import tensor_name
from vitbackbone.store.workers.reader import Outcome, PixelBatch

log = logging.getLogger("vitbackbone")

# Messages of the plain RuntimeError that torch raises if memory runs out on the CPU.
OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_alloc|out of memory", re.IGNORECASE)


@dataclass
class Embedder:
    """Computes `kinds` of tokens of `layers` (0-based) in `dtype`.

    A forward gets images of at most `max_pixels` pixels together, or a single larger one. If memory runs out,
    `max_pixels` is halved for the rest of the run.
    """

    backbone: Backbone
    kinds: Sequence[str]
    layers: Sequence[int]
    dtype: torch.dtype
    device: torch.device | str
    max_pixels: int

    def empty(self) -> dict[str, Tensor]:
        """Return the tensors of a shard without images."""
        spec = self.backbone.spec
        before = {"cls": (), "registers": (spec.num_registers,), "patches": ()}
        tensors = {
            tensor_name(kind, layer, self.layers): torch.empty(0, *before[kind], spec.dims[layer], dtype=self.dtype)
            for layer in self.layers
            for kind in self.kinds
        }
        return tensors | ({"grid": torch.empty(0, 2, dtype=torch.int32)} if "patches" in self.kinds else {})

    def __call__(self, batch: PixelBatch) -> tuple[list[Outcome], dict[str, Tensor]]:
        """Return the outcome of each input, and the rows of those with features.

        Raises `MemoryError` if memory does not suffice for a single image.
        """
        outcomes = list(batch.outcomes)
        if not batch.shapes:
            return outcomes, {}
        forwards = self._within_memory(batch.images(self.backbone.preprocess))
        finite = torch.cat([good for good, _ in forwards])
        read = [i for i, outcome in enumerate(outcomes) if outcome.reason is None]
        for i, good in zip(read, finite.tolist(), strict=True):
            if not good:
                error = f"features are not finite (NaN or Inf) in {self.dtype}"
                outcomes[i] = replace(outcomes[i], reason="not finite", error=error)
        return outcomes, {name: torch.cat([rows[name] for _, rows in forwards]) for name in forwards[0][1]}

    def _within_memory(self, images: Images) -> list[tuple[Bool[Tensor, " n"], dict[str, Tensor]]]:
        """Embed the images in as many forwards as memory requires."""
        forwards = []
        start = 0
        while start < len(images):
            some = images[start : start + self._fitting(images, start)]
            try:
                forwards.append(self._embed(some))
                start += len(some)
                continue
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not OUT_OF_MEMORY.search(str(error)):
                    raise
                if len(some) == 1:
                    height, width = some[0].shape[-2:]
                    raise MemoryError(
                        f"memory ran out with a single image of {height} x {width} pixels; ask for a lower "
                        "resolution, or use a device with more memory. Complete shards are kept"
                    ) from error
            # Outside of `except`: its error holds references to what was allocated.
            self.max_pixels = sum(map(_pixels, some)) // 2
            log.warning("memory ran out with %d images at once; continuing with half as many", len(some))
            if torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()
        return forwards

    def _fitting(self, images: Images, start: int) -> int:
        """Return how many images from `start` on fit into one forward, at least one."""
        total = 0
        for i in range(start, len(images)):
            total += _pixels(images[i])
            if total > self.max_pixels:
                return max(1, i - start)
        return len(images) - start

    def _embed(self, images: Images) -> tuple[Bool[Tensor, " n"], dict[str, Tensor]]:
        """Return which images have finite features, and the rows of these images."""
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
    assert output.cls is not None  # `extract` checks it
    return output.cls


def _flat(maps: Float[Tensor, "B D h w"], grids: Int[Tensor, "B 2"], keep: Bool[Tensor, " B"]) -> Float[Tensor, "L D"]:
    """Join the patches of the images to keep, each without the padding of its map."""
    cut = [maps[i, :, : grids[i, 0], : grids[i, 1]].flatten(1).T for i in keep.nonzero().flatten().tolist()]
    return torch.cat([maps.new_empty(0, maps.shape[1]), *cut])


def _pixels(image: Tensor) -> int:
    return image.shape[-2] * image.shape[-1]
