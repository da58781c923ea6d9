"""The layouts in which transformers' image encoders return a layer, and the way from each of them to a map."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Size = tuple[int, int]  # (H, W)
Kind = Literal["NCHW", "NHWC", "tokens"]
MOST_PREFIX = 160  # tokens that are not patches: YOLOS has 101, OWL-ViT 1


@dataclass(frozen=True)
class Layout:
    """The layout of one layer.

    `"NCHW"` (B, D, h, w), `"NHWC"` (B, h, w, D), `"tokens"` (B, N, D), (B·N, D), (1, B·N, D) or (B·N, 1, D).
    """

    kind: Kind
    dim: int
    stride: int
    others: int = 0  # tokens that are not patches


def grid_of(size: Size, stride: int) -> Size:
    """Return the patches of an image along each axis: ceil(side / stride)."""
    return -(-size[0] // stride), -(-size[1] // stride)


def first_tensor(value: Any) -> Tensor | None:
    """Return a layer's map or tokens from what a module returns: a tensor, or the first one of a tuple or a record."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((each for each in value if isinstance(each, Tensor)), None)
    return None


def layout_of(tensor: Tensor, size: Size, batch: int, patch: int | None, packed: bool = False) -> Layout:
    """Return the layout of a layer that was computed for `batch` images of `size`.

    `patch`: the side of a patch in pixels, or None. A layer's stride is a multiple of it.
    The stride is the smallest one whose patches are no more than the layer has. Without `patch`, the stride of tokens
    divides both sides.
    Raises `ValueError` if the shape is not one of the known layouts.
    """
    shape = tuple(tensor.shape)
    if tensor.ndim == 4 and shape[0] == batch:
        for kind, grid, dim in (("NCHW", shape[2:], shape[1]), ("NHWC", shape[1:3], shape[3])):
            for stride in _strides(size, None):
                if grid_of(size, stride) == grid:
                    return Layout(kind, dim, stride)  # type: ignore[arg-type]
        rows, columns = (_sides(side, count) for side, count in zip(size, shape[2:], strict=True))
        if rows and columns:
            raise ValueError(
                f"a layer of shape {shape} has patches of {rows[0]} x {columns[0]} pixels; only square patches are "
                "supported"
            )
    tokens = _count(shape, batch, packed)
    if tokens is not None:
        for stride in _strides(size, patch):
            h, w = grid_of(size, stride)
            if patch is None and (size[0] % stride or size[1] % stride):
                continue  # any number of tokens fits some stride
            if 0 <= (others := tokens - h * w) <= MOST_PREFIX:
                return Layout("tokens", shape[-1], stride, others)
    raise ValueError(f"a layer of shape {shape} is not a map of an image of {size[0]} x {size[1]} pixels")


def _sides(side: int, count: int) -> list[int]:
    """Return the sides of patches that cut `side` pixels into `count` patches."""
    return [each for each in _strides((side, side), None) if -(-side // each) == count]


def _count(shape: tuple[int, ...], batch: int, packed: bool) -> int | None:
    """Return the tokens of one image, or None if the shape has none."""
    if len(shape) == 2:
        return shape[0] // batch
    if packed and len(shape) == 3 and 1 in shape[:2]:
        return shape[0] * shape[1] // batch
    return shape[1] if len(shape) == 3 and shape[0] == batch else None


def _strides(size: Size, patch: int | None) -> Iterator[int]:
    step = patch or 1
    yield from range(step, max(size) + step, step)  # the last one holds the whole image


def as_map(
    tensor: Tensor, layout: Layout, size: Size, batch: int, places: Tensor
) -> tuple[Float[Tensor, "B D h w"], Float[Tensor, "B P D"]]:
    """Return a layer's map and its other tokens. `places`: the token of each patch in raster order."""
    h, w = grid_of(size, layout.stride)
    if layout.kind == "NCHW":
        return _checked(tensor, layout, (h, w)), tensor.new_zeros(batch, 0, layout.dim)
    if layout.kind == "NHWC":
        return _checked(tensor.permute(0, 3, 1, 2), layout, (h, w)), tensor.new_zeros(batch, 0, layout.dim)
    tokens = tensor.reshape(batch, -1, layout.dim)
    if tokens.shape[1] != h * w + layout.others:
        raise ValueError(
            f"this encoder returns {tokens.shape[1]} tokens for an image of {size[0]} x {size[1]} pixels, where "
            f"{h * w + layout.others} are wanted: {h} x {w} patches and {layout.others} others"
        )
    patches = rearrange(tokens[:, places], "B (h w) D -> B D h w", h=h)
    return patches, tokens[:, others(places, tokens.shape[1])]


def _checked(tensor: Tensor, layout: Layout, grid: Size) -> Tensor:
    if tensor.shape[2:] != grid or tensor.shape[1] != layout.dim:
        raise ValueError(
            f"this encoder returns a map of {tensor.shape[2]} x {tensor.shape[3]} where {grid[0]} x {grid[1]} patches "
            f"are wanted, at its stride of {layout.stride}"
        )
    return tensor


def others(places: Tensor, count: int) -> Tensor:
    """Return the tokens that are not patches, in their order."""
    free = torch.ones(count, dtype=torch.bool, device=places.device)
    free[places] = False
    return free.nonzero()[:, 0]
