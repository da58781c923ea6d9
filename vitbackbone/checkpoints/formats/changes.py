"""The computations of rules, with their inverses. None of them broadcasts: shapes that differ are refused.

Axes: `D` width, `N` patches, `p` patch side, `d` width of a head.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from vitbackbone.checkpoints.rules import Change, Rule

Tensors = tuple[Tensor, ...]


def _add(token: Tensor, position: Tensor) -> Tensor:
    """Add a token's position to it. Raises `ValueError` if their shapes differ."""
    if token.shape != position.shape:
        raise ValueError(
            f"the token has shape {tuple(token.shape)} and its position {tuple(position.shape)}; want equal shapes"
        )
    return token + position


def _fold_cls(cls: Tensor, positions: Tensor) -> Tensors:
    table = _unbatch(positions)[0]
    return _add(cls, table[None, :1]), table[1:]


def _unfold_cls(cls: Tensor, table: Tensor) -> Tensors:
    return cls, torch.cat([torch.zeros_like(cls), table[None]], dim=1)


def _fold_distilled(cls: Tensor, distillation: Tensor, positions: Tensor) -> Tensors:
    table = _unbatch(positions)[0]
    return _add(cls, table[None, :1]), _add(distillation, table[None, 1:2]), table[2:]


def _unfold_distilled(cls: Tensor, distillation: Tensor, table: Tensor) -> Tensors:
    return cls, distillation, torch.cat([torch.zeros_like(cls), torch.zeros_like(cls), table[None]], dim=1)


def _fold_flat(cls: Tensor, positions: Tensor) -> Tensors:
    return _add(cls, positions[0])[None, None], positions[1:]


def _unfold_flat(cls: Tensor, table: Tensor) -> Tensors:
    return cls[0, 0], torch.cat([torch.zeros_like(cls[0]), table])


def _unbatch(positions: Tensor) -> Tensors:
    return (rearrange(positions, "1 n d -> n d"),)


def _flatten(table: Tensor) -> Tensors:
    if table.ndim == 4 and table.shape[1] != table.shape[2]:
        raise ValueError(f"the table has {table.shape[1]} x {table.shape[2]} positions; want a square")
    return (rearrange(table, "1 h w d -> (h w) d"),)


def _square(table: Tensor) -> Tensors:
    return (rearrange(table, "(h w) d -> 1 h w d", h=math.isqrt(len(table))),)


def _split_masked(bias: Tensor, mask: Tensor) -> Tensors:
    if bias.shape != mask.shape:
        raise ValueError(f"the bias has shape {tuple(bias.shape)} and its mask {tuple(mask.shape)}; want equal shapes")
    q, _, v = bias.chunk(3)
    return q, v


def _join_masked(q: Tensor, v: Tensor) -> Tensors:
    none, ones = torch.zeros_like(q), torch.ones_like(q)
    return torch.cat([q, none, v]), torch.cat([ones, none, ones])


def _transpose(kernel: Tensor) -> Tensors:
    return (rearrange(kernel, "a b -> b a"),)


def join(*parts: Tensor) -> Tensors:
    """Concatenate tensors of one shape. Raises `ValueError` on other shapes, which could sum up to the right one."""
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"they have the shapes {', '.join(str(tuple(part.shape)) for part in parts)}; want one shape")
    return (torch.cat(parts),)


def _heads_in(*kernels: Tensor) -> Tensors:
    return join(*(rearrange(kernel, "D heads d -> (heads d) D") for kernel in kernels))


def _head_biases(*biases: Tensor) -> Tensors:
    return join(*(rearrange(bias, "heads d -> (heads d)") for bias in biases))


def _unstack_first(whole: Tensor) -> Tensors:
    size = len(whole) // 3
    return whole[:size], whole[size:]


def stack(count: int) -> Change:
    """Join linear layers that read the same input: q, k and v; or gate and value."""
    return Change(join, lambda whole: whole.chunk(count))


# CLS (1, 1, D) and positions (1, 1 + N, D): the position of CLS is added to the token
FOLD_CLS = Change(_fold_cls, _unfold_cls)
# the same with (1, 2 + N, D): the second position belongs to DeiT's distillation token
FOLD_DISTILLED = Change(_fold_distilled, _unfold_distilled)
# the same without the batch axis: (D,) and (1 + N, D)
FOLD_FLAT = Change(_fold_flat, _unfold_flat)
# one of two tensors of the checkpoint that are one tensor of the model
FIRST = Change(lambda first, _: (first,))
# (1, N, D) to (N, D)
UNBATCH = Change(_unbatch, lambda table: (table[None],))
# (1, h, w, D) to (N, D); the grid is a square
FLATTEN = Change(_flatten, _square)
# a bias of q, k and v, and the mask that removes the bias of k (facebookresearch/dinov3, layers/attention.py)
MASKED_BIAS = Change(_split_masked, _join_masked)
# a matrix that multiplies from the other side
TRANSPOSE = Change(_transpose, _transpose)
# one layer for q, k and v to one for q and one for k and v
UNSTACK_FIRST = Change(_unstack_first, lambda first, rest: (torch.cat([first, rest]),))
# Flax's kernels: the convolution's (p, p, 3, D); q, k and v with (D, heads, d) each, and their biases; the output's
CONVOLUTION = Change(lambda kernel: (rearrange(kernel, "p q c D -> D c p q"),))
HEADS_IN, HEAD_BIASES = Change(_heads_in), Change(_head_biases)
HEADS_OUT = Change(lambda kernel: (rearrange(kernel, "heads d D -> D (heads d)"),))


def _frames(kernel: Tensor) -> Tensors:
    return (torch.stack([kernel / 2, kernel / 2], dim=2),)


def _linear(kernel: Tensor) -> Tensors:
    return (rearrange(kernel, "D c p q -> D (c p q)"),)


def _patches(weight: Tensor) -> Tensors:
    side = math.isqrt(weight.shape[1] // 3)
    return (rearrange(weight, "D (c p q) -> D c p q", c=3, p=side),)


def _patches_channels_last(weight: Tensor) -> Tensors:
    side = math.isqrt(weight.shape[1] // 3)
    return (rearrange(weight, "D (p q c) -> D c p q", c=3, p=side),)


# a kernel over frames, (D, 3, t, p, p), of two equal frames: the sum of its slices
FRAMES = Change(lambda kernel: (kernel.sum(dim=2),), _frames)
# a linear layer of a patch's values, channel by channel, or pixel by pixel
PATCHES = Change(_patches, _linear)
PATCHES_CHANNELS_LAST = Change(_patches_channels_last, lambda kernel: (rearrange(kernel, "D c p q -> D (p q c)"),))


def qkv(source: str, parts: tuple[str, str, str], target: str) -> tuple[Rule, ...]:
    """Join three linear layers into one. Each has a bias, or k has none, or none has."""
    q, _, v = (source + part for part in parts)
    return (
        *(
            Rule(tuple(f"{source}{part}.{kind}" for part in parts), (f"{target}.qkv.{kind}",), stack(3))
            for kind in KINDS
        ),
        Rule((f"{q}.bias",), (f"{target}.q_bias",)),
        Rule((f"{v}.bias",), (f"{target}.v_bias",)),
    )


def gated(gate: str, value: str, target: str) -> tuple[Rule, ...]:
    """Join the two branches of a gated MLP into one layer."""
    return tuple(Rule((f"{gate}.{kind}", f"{value}.{kind}"), (f"{target}.{kind}",), stack(2)) for kind in KINDS)


KINDS = ("weight", "bias")
