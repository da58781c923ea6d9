"""The outputs of a timm network: the map and the prefix tokens of each level, and the vector that its classifier reads.

Axes: `B` batch, `P` prefix tokens, `D` width, `h w` patch grid, `N` tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Size = tuple[int, int]  # (H, W), or (h, w) of a grid
Final = Any  # the output of `forward_features`: a map, tokens, or one of these for each scale


@dataclass(frozen=True)
class Outputs:
    """The result of one run: the map and the prefix tokens of each requested level, and `Final` if it was requested."""

    maps: list[Tensor]  # (B, D, h, w) of each level
    prefixes: list[Tensor | None]  # (B, P, D); None where timm does not return them
    final: Final


@dataclass(frozen=True)
class Levels:
    """The levels of a network that a backbone returns.

    A level is left out if its map lies off the grid of its stride and no later level fits, such as the large patches of
    CrossViT. `num_prefix` tokens stand in front of the patches. Most networks return them at each level; the others
    have them only in the output of `forward_features`.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    fitting: tuple[bool, ...]  # which levels lie on the grid of their stride at the native size
    num_prefix: int
    has_cls: bool
    at_each_level: bool  # whether timm returns the prefix tokens of each level
    has_norm: bool
    pooled_dim: int | None  # None for a network without a head that pools

    @property
    def depth(self) -> int:
        return len(self.dims)

    @property
    def reads_final(self) -> bool:
        """Whether a part of the last layer comes from the output of `forward_features`."""
        return self.pooled_dim is not None or (self.num_prefix > 0 and not self.at_each_level)


def grid_at(size: Size, stride: int) -> Size:
    """Return the grid (h, w) of an image: a patch for each stride that is begun."""
    return -(-size[0] // stride), -(-size[1] // stride)


def read_levels(model: Any, name: str, size: Size, projects: bool = False) -> Levels:
    """Run a network at its native size and describe its outputs. `projects`: see `pool`.

    Raises `ValueError` if it has no levels, or none that lies on the grid of its stride.
    """
    info = getattr(model, "feature_info", None)
    if info is None or not hasattr(model, "forward_intermediates"):
        raise ValueError(f"timm's {name} returns no feature levels; want a network with forward_intermediates")
    strides = [int(level["reduction"]) for level in info]
    with torch.no_grad():
        out = run(model, images_for(model, size), range(len(strides)), norm=False, final=True)
    grids = [(each.shape[2], each.shape[3]) for each in out.maps]
    fitting = [grid == grid_at(size, stride) for grid, stride in zip(grids, strides, strict=True)]
    if not any(fitting):
        wanted = grid_at(size, strides[-1])
        raise ValueError(
            f"timm's {name} is not supported: for images of {size[0]} x {size[1]} its last map is {grids[-1][0]} x "
            f"{grids[-1][1]}, not {wanted[0]} x {wanted[1]}, because its layers crop the border of the image. Use a "
            "network whose layers pad"
        )
    depth = max(i for i, fits in enumerate(fitting) if fits) + 1
    last = out.maps[depth - 1]
    at_each = hands_out_prefix(model)
    count = count_prefix(out.final, grids[depth - 1], last.shape[1]) if has_cls_token(model) else 0
    number = int(model.num_prefix_tokens) if at_each else count
    with torch.no_grad():
        pooled = pool(model, out.final, projects)
    return Levels(
        dims=tuple(each.shape[1] for each in out.maps[:depth]),
        strides=tuple(strides[:depth]),
        fitting=tuple(fitting[:depth]),
        num_prefix=number,
        has_cls=number > 0 and has_cls_token(model),
        at_each_level=at_each,
        has_norm=has_final_norm(model),
        pooled_dim=None if pooled is None else pooled.shape[1],
    )


def images_for(model: Any, size: Size) -> Float[Tensor, "1 C H W"]:
    """Return an image of zeros on a network's device."""
    parameter = next(model.parameters())
    return parameter.new_zeros(1, int(getattr(model, "in_chans", 3)), *size)


def level_maps(model: Any, size: Size) -> list[Tensor]:
    """Return the map (1, D, h, w) of each level for one image of `size`."""
    with torch.no_grad():
        return model.forward_intermediates(images_for(model, size), intermediates_only=True)


def hands_out_prefix(model: Any) -> bool:
    """Tell whether `forward_intermediates` returns the prefix tokens of each level."""
    known = "return_prefix_tokens" in signature(model.forward_intermediates).parameters
    return known and bool(getattr(model, "num_prefix_tokens", 0))


def run(model: Any, images: Float[Tensor, "B C H W"], layers: Sequence[int], norm: bool, final: bool) -> Outputs:
    """Run a network as far as needed. `layers` ascend. `final`: whether to return the output of `forward_features`."""
    options: dict[str, Any] = {"indices": list(layers), "norm": norm}
    prefix = hands_out_prefix(model)
    if prefix:
        options["return_prefix_tokens"] = True
    found = model.forward_intermediates(images, stop_early=not final, intermediates_only=not final, **options)
    whole, levels = found if final else (None, found)
    if prefix:
        return Outputs([maps for maps, _ in levels], [tokens for _, tokens in levels], whole)
    return Outputs(list(levels), [None] * len(levels), whole)


def tokens_of(final: Final, grid: Size, dim: int) -> Float[Tensor, "B N D"] | None:
    """Return the tokens in the output of `forward_features` that go with a map, or None if it has none.

    If the network has several scales, the tokens are those with the map's width and number of patches.
    """
    scales = [each for each in (final if isinstance(final, list | tuple) else [final]) if isinstance(each, Tensor)]
    tokens = [each for each in scales if each.ndim == 3 and each.shape[2] == dim]
    patches = grid[0] * grid[1]
    return min(tokens, key=lambda each: abs(each.shape[1] - patches), default=None)


def prefix_of(final: Final, grid: Size, dim: int, count: int) -> Float[Tensor, "B P D"]:
    """Return the first `count` tokens of the output of `forward_features`."""
    tokens = tokens_of(final, grid, dim)
    assert tokens is not None
    return tokens[:, :count]


def count_prefix(final: Final, grid: Size, dim: int) -> int:
    """Count the tokens in front of the patches in the output of `forward_features`. If there are no patches, all tokens
    count."""
    tokens = tokens_of(final, grid, dim)
    if tokens is None:
        return 0
    number, patches = tokens.shape[1], grid[0] * grid[1]
    return number - patches if number >= patches else number


def has_cls_token(model: nn.Module) -> bool:
    """Tell whether a network holds a CLS token."""
    return any(re.search(r"cls_token(_?\d+)?$", name) for name, _ in model.named_parameters())


def has_final_norm(model: nn.Module) -> bool:
    """Tell whether a network has a final norm: `norm`, or one for each scale, `norm2` to `norm4`."""
    norms = [child for name, child in model.named_children() if re.fullmatch(r"norm\d?", name)]
    return any(not isinstance(norm, nn.Identity) for norm in norms)


def pool(model: Any, final: Final, projects: bool = False) -> Float[Tensor, "B P"] | None:
    """Return what timm's classifier reads, or None if the network has no head that pools.

    `projects`: return the classifier's outputs, because it is a projection to the space of texts.
    """
    try:
        if "pre_logits" not in signature(model.forward_head).parameters:
            return None
        pooled = model.forward_head(final, pre_logits=not projects)
    except (NotImplementedError, AttributeError):  # an encoder alone
        return None
    return pooled if isinstance(pooled, Tensor) and pooled.ndim == 2 else None


def crop(final: Final, run_grid: Size, grid: Size, num_prefix: int, layout: str) -> Final:
    """Crop the output of `forward_features` from `run_grid` to `grid`, because the rest shows only padding.

    An output without such a part is returned unchanged.
    """
    if isinstance(final, list | tuple):
        return [crop(each, run_grid, grid, num_prefix, layout) for each in final]
    h, w = grid
    if final.ndim == 4 and layout == "NHWC" and final.shape[1:3] == run_grid:
        return final[:, :h, :w]
    if final.ndim == 4 and final.shape[2:] == run_grid:
        return final[:, :, :h, :w]
    if final.ndim == 3 and final.shape[1] == num_prefix + run_grid[0] * run_grid[1]:
        patches = rearrange(final[:, num_prefix:], "B (h w) D -> B h w D", h=run_grid[0])[:, :h, :w]
        return torch.cat([final[:, :num_prefix], patches.flatten(1, 2)], dim=1)
    return final
