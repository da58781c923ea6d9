"""The outputs of a backbone: `Features` of one layer, `Prefix` without the map, and `Attention` maps.

Axes: `B` batch, `R` register tokens, `D` width, `h w` patch grid, `N` tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from vitbackbone.contract.geometry import Geometry, _columns
from vitbackbone.contract.repeated import one_value
from vitbackbone.contract.tracing import any_size


def pool_cls(features: "Features") -> Float[Tensor, "B D"]:
    """Return the CLS token. Raises `ValueError` if there is none."""
    if features.cls is None:
        raise ValueError("these features have no CLS token; use pool_mean, the mean of the patches")
    return features.cls


def pool_mean(features: "Features") -> Float[Tensor, "B D"]:
    """Return the mean of the patches that show the image.

    The sum is computed in float32 or wider, because half precision overflows.
    """
    patches, wide = features.patches, torch.promote_types(features.patches.dtype, torch.float32)
    if one_value(features.geometry.grids):
        return patches.mean(dim=tuple(range(2, patches.ndim)), dtype=wide).to(patches.dtype)
    valid = features.valid[:, None]
    total = (patches * valid).sum(dim=(2, 3), dtype=wide)
    return (total / valid.sum(dim=(2, 3))).to(patches.dtype)


def pool_cls_or_mean(features: "Features") -> Float[Tensor, "B D"]:
    """Return the CLS token if there is one, or else the mean of the patches."""
    return (pool_mean if features.cls is None else pool_cls)(features)


@dataclass(frozen=True, eq=False)
class Pooled:
    """A pooling whose result is already known."""

    vectors: Float[Tensor, "B P"]

    def __call__(self, features: "Features") -> Float[Tensor, "B P"]:
        return self.vectors


class _Shapes:
    """A record whose `repr` shows the shapes of its tensors, not their numbers."""

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(cast(Any, self)) if each.repr}
        return f"{type(self).__name__}({', '.join(f'{name}={_shape(value)}' for name, value in shown.items())})"


def _shape(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    kind = str(value.dtype).removeprefix("torch.")
    return f"{kind}{list(value.shape)}" + ("" if value.device.type == "cpu" else f" on {value.device}")


@dataclass(frozen=True, eq=False, repr=False)
class Features(_Shapes):
    """The features of one layer, with the same fields for every family of backbones.

    The map of clips (B, T, C, H, W) has a time axis: (B, D, t, h, w). CLS and registers describe a whole clip.
    `BackboneSpec.tubelet` is the number of frames in a step of time. `step` returns the features of one step. If a
    backbone has patches for each group of channels (SatMAE), the groups are the steps.
    """

    cls: Float[Tensor, "B D"] | None  # None if the backbone has no CLS token
    registers: Float[Tensor, "B R D"]  # all prefix tokens but CLS, in the checkpoint's order
    patches: Float[Tensor, "B D *t h w"]  # feature map, row-major over the image; of clips, step by step
    geometry: Geometry
    # The checkpoint's own pooling of these features.
    pool: Callable[["Features"], Float[Tensor, "B P"]] = field(default=pool_cls_or_mean, repr=False)

    @property
    def tokens(self) -> Float[Tensor, "B N D"]:
        """The patches as a sequence, (B, h*w, D), row-major. The tokens of clips are (B, t*h*w, D), one time step after
        the other."""
        with any_size():
            return rearrange(self.patches, "B D ... -> B (...) D")

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature map."""
        return self.geometry.grid

    def step(self, index: int) -> "Features":
        """Return the features of one step of time of clips, with the clips' CLS, registers and pooled vectors.

        Its `patches` are a map (B, D, h, w), which everything that reads the features of images takes.
        Raises `ValueError` for features of images, and `IndexError` if the clips have no such step.
        """
        if self.geometry.steps is None:
            raise ValueError("these are features of images, which have no steps of time; read `patches`")
        if not -self.geometry.steps <= index < self.geometry.steps:
            raise IndexError(f"step {index} of clips with {self.geometry.steps} steps of time")
        geometry = replace(self.geometry, steps=None)
        return Features(self.cls, self.registers, self.patches[:, :, index], geometry, Pooled(self.pooled))

    @property
    def pooled(self) -> Float[Tensor, "B P"]:
        """One vector for each image, by the checkpoint's own pooling. P of each layer is `BackboneSpec.pooled_dims`."""
        # Autograd cannot save tensors that were made in inference mode, so their pooling stays in that mode.
        made_in_inference = not torch.compiler.is_compiling() and self.patches.is_inference()
        with torch.inference_mode() if made_in_inference else nullcontext():
            if one_value(self.geometry.grids):
                return self.pool(self)
            return torch.cat([self.image(i).pooled for i in range(len(self.patches))])

    def image(self, index: int) -> "Features":
        """Return the features of one image as a batch of one, with the map cropped to the image's own grid."""
        index = range(len(self.patches))[index]
        one = slice(index, index + 1)
        geometry = self.geometry.image(index)
        h, w = geometry.grid
        cls = None if self.cls is None else self.cls[one]
        pool = Pooled(self.pool.vectors[one]) if isinstance(self.pool, Pooled) else self.pool
        return Features(cls, self.registers[one], self.patches[one, ..., :h, :w], geometry, pool)

    @property
    def valid(self) -> Bool[Tensor, "B h w"]:
        """True where a patch shows at least one pixel of its image, and False where it shows only padding."""
        device = self.patches.device
        if one_value(self.geometry.grids):
            with any_size():
                return torch.ones(self.patches.shape[0], *self.grid, dtype=torch.bool, device=device)
        h, w = (torch.tensor(axis, device=device).view(-1, 1, 1) for axis in _columns(self.geometry.grids))
        rows = torch.arange(self.grid[0], device=device).view(1, -1, 1)
        columns = torch.arange(self.grid[1], device=device).view(1, 1, -1)
        return (rows < h) & (columns < w)


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(_Shapes):
    """The features of one layer without the patches."""

    cls: Float[Tensor, "B D"] | None  # None if the backbone has no CLS token
    registers: Float[Tensor, "B R D"]  # in the checkpoint's order
    pooled: Float[Tensor, "B P"]  # by the checkpoint's own pooling

    @classmethod
    def of(cls, features: Features) -> "Prefix":
        """Return the part of `features` that is not the map."""
        return Prefix(features.cls, features.registers, features.pooled)


@dataclass(frozen=True, eq=False, repr=False)
class Kept(_Shapes):
    """The features of the last layer for some patches of each image, with the final norm if there is one."""

    cls: Float[Tensor, "B D"] | None  # None if the backbone has no CLS token
    registers: Float[Tensor, "B R D"]
    tokens: Float[Tensor, "B K D"]  # in the order of `indices`
    indices: Int[Tensor, "B K"]  # indices of the kept patches, row-major over the grid
    geometry: Geometry


def stack_maps(maps: Sequence[Shaped[Tensor, "_ C *t _ _"]]) -> Shaped[Tensor, "B C *t h w"]:
    """Concatenate maps of several sizes on the batch axis, padded with zeros at the bottom and right to the largest."""
    h, w = (max(each.shape[axis] for each in maps) for axis in (-2, -1))
    return torch.cat([F.pad(each, (0, w - each.shape[-1], 0, h - each.shape[-2])) for each in maps])


def stack(alone: Sequence[Features]) -> Features:
    """Join the features of single images into one batch, with maps padded with zeros to the largest grid."""
    first = alone[0]
    sizes = tuple(size for f in alone for size in f.geometry.sizes)
    geometry = Geometry(sizes, first.geometry.stride, steps=first.geometry.steps)
    patches = stack_maps([f.patches for f in alone])
    cls = None if first.cls is None else torch.cat([pool_cls(f) for f in alone])
    done = [f.pool.vectors for f in alone if isinstance(f.pool, Pooled)]
    pool = Pooled(torch.cat(done)) if done else first.pool
    return Features(cls, torch.cat([f.registers for f in alone]), patches, geometry, pool)


@dataclass(frozen=True, eq=False, repr=False)
class Attention(_Shapes):
    """The attention maps of one block. Tokens are CLS if there is one, then registers, then patches, row-major."""

    # Row i holds the weights of all tokens in token i. Rows sum to 1, minus the weight of a window's padding or a sink.
    weights: Float[Tensor, "B heads N N"]
    num_prefix: int  # CLS and registers
    grid: tuple[int, int]  # (h, w) of the patches
    steps: int | None = field(default=None, repr=False)  # steps of time in clips; None for images

    @property
    def cls_to_patches(self) -> Float[Tensor, "B heads *t h w"]:
        """The weights of the patches in the first token, which is CLS if there is one, as maps.

        Raises `ValueError` if the backbone has no prefix token.
        """
        if not self.num_prefix:
            raise ValueError("this backbone has no CLS token; read a patch's row of `weights` instead")
        with any_size():
            seen = self.weights[:, :, 0, self.num_prefix :]
            return seen.unflatten(2, self.grid if self.steps is None else (self.steps, *self.grid))
