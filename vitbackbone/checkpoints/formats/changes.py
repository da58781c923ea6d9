"""What rules do to tensors, and how to undo it.

Axes: `D` width, `N` patches, `p` patch side, `d` width of a head.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from vitbackbone.checkpoints.rules import Change, Rule

Tensors = tuple[Tensor, ...]


def _fold_cls(cls: Tensor, positions: Tensor) -> Tensors:
    return cls + positions[:, :1], positions[0, 1:]


def _unfold_cls(cls: Tensor, table: Tensor) -> Tensors:
    return cls, torch.cat([torch.zeros_like(cls), table[None]], dim=1)


def _fold_distilled(cls: Tensor, distillation: Tensor, positions: Tensor) -> Tensors:
    return cls + positions[:, :1], distillation + positions[:, 1:2], positions[0, 2:]


def _unfold_distilled(cls: Tensor, distillation: Tensor, table: Tensor) -> Tensors:
    return cls, distillation, torch.cat([torch.zeros_like(cls), torch.zeros_like(cls), table[None]], dim=1)


def _fold_flat(cls: Tensor, positions: Tensor) -> Tensors:
    return (cls + positions[0])[None, None], positions[1:]


def _unfold_flat(cls: Tensor, table: Tensor) -> Tensors:
    return cls[0, 0], torch.cat([torch.zeros_like(cls[0]), table])


def _square(table: Tensor) -> Tensors:
    return (rearrange(table, "(h w) d -> 1 h w d", h=math.isqrt(len(table))),)


def _split_masked(bias: Tensor, mask: Tensor) -> Tensors:
    q, _, v = bias.chunk(3)
    return q, v


def _join_masked(q: Tensor, v: Tensor) -> Tensors:
    none, ones = torch.zeros_like(q), torch.ones_like(q)
    return torch.cat([q, none, v]), torch.cat([ones, none, ones])


def _turn(kernel: Tensor) -> Tensors:
    return (kernel.T,)


def _heads_in(*kernels: Tensor) -> Tensors:
    return (torch.cat([rearrange(kernel, "D heads d -> (heads d) D") for kernel in kernels]),)


def _head_biases(*biases: Tensor) -> Tensors:
    return (torch.cat([bias.flatten() for bias in biases]),)


def _unstack_first(whole: Tensor) -> Tensors:
    size = len(whole) // 3
    return whole[:size], whole[size:]


def stack(count: int) -> Change:
    """Linear layers that read the same input, as one: q, k and v; gate and value."""
    return Change(lambda *parts: (torch.cat(parts),), lambda whole: whole.chunk(count))


# (1, 1, D) and (1, 1 + N, D): the position of CLS goes into the token
FOLD_CLS = Change(_fold_cls, _unfold_cls)
# the same with (1, 2 + N, D), whose second position belongs to DeiT's distillation token
FOLD_DISTILLED = Change(_fold_distilled, _unfold_distilled)
# the same without the batch axis: (D,) and (1 + N, D)
FOLD_FLAT = Change(_fold_flat, _unfold_flat)
# (1, N, D) to (N, D)
UNBATCH = Change(lambda positions: (positions[0],), lambda table: (table[None],))
# (1, h, w, D) to (N, D), of a square grid
FLATTEN = Change(lambda positions: (rearrange(positions, "1 h w d -> (h w) d"),), _square)
# a bias of q, k and v with the mask that leaves k out (facebookresearch/dinov3, layers/attention.py)
MASKED_BIAS = Change(_split_masked, _join_masked)
# a matrix that multiplies from the other side
TRANSPOSE = Change(_turn, _turn)
# q, k and v of one layer, of which q is used apart
UNSTACK_FIRST = Change(_unstack_first, lambda first, rest: (torch.cat([first, rest]),))
# Flax's kernels: the convolution's (p, p, 3, D); q, k, v of (D, heads, d) each, and their biases; and back again
CONVOLUTION = Change(lambda kernel: (rearrange(kernel, "p q c D -> D c p q"),))
HEADS_IN, HEAD_BIASES = Change(_heads_in), Change(_head_biases)
HEADS_OUT = Change(lambda kernel: (rearrange(kernel, "heads d D -> D (heads d)"),))


def qkv(source: str, parts: tuple[str, str, str], target: str) -> tuple[Rule, ...]:
    """Three linear layers as one, with a bias each, or with none for k, or with none at all."""
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
    """The two branches of a gated MLP as one layer."""
    return tuple(Rule((f"{gate}.{kind}", f"{value}.{kind}"), (f"{target}.{kind}",), stack(2)) for kind in KINDS)


KINDS = ("weight", "bias")
