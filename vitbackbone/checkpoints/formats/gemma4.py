"""The layout of Gemma 4's vision tower in transformers.

Upstream, attention does not scale its logits. The attention here scales them by 1/√d, so the norm of the queries is
multiplied by √d.
"""

import torch
from torch import Tensor

from vitbackbone.checkpoints.formats.changes import PATCHES_CHANNELS_LAST, stack
from vitbackbone.checkpoints.formats.rotary import apart, halves_by_column, of_a_head
from vitbackbone.checkpoints.rules import Change, Rule, Rules, drop, rename

_LIMITS = ("input_min", "input_max", "output_min", "output_max")


def _gather(*limits: Tensor) -> tuple[Tensor]:
    return (torch.stack(limits).view(-1, len(_LIMITS)).T.contiguous(),)


def _clipped(sources: tuple[str, ...], target: str) -> Rule:
    """Gather the limits of linear layers that are one here."""
    each = tuple(f"{source}.{limit}" for source in sources for limit in _LIMITS)
    return Rule(each, (f"{target}.limits",), Change(_gather, lambda limits: limits.T.flatten().unbind()))


_BLOCK, _OURS = "encoder.layers.{i}", "blocks.{i}"
_QKV = tuple(f"{_BLOCK}.self_attn.{part}_proj" for part in "qkv")
_GATED = tuple(f"{_BLOCK}.mlp.{part}_proj" for part in ("gate", "up"))

GEMMA4: Rules = (
    Rule(("patch_embedder.input_proj.weight",), ("patch_embed.proj.weight",), PATCHES_CHANNELS_LAST),
    rename("patch_embedder.position_embedding_table", "pos_embed.table"),
    Rule(tuple(f"{part}.linear.weight" for part in _QKV), (f"{_OURS}.attn.qkv.weight",), apart(halves_by_column)),
    _clipped(_QKV, f"{_OURS}.attn.qkv"),
    Rule(
        (f"{_BLOCK}.self_attn.q_norm.weight",),
        (f"{_OURS}.attn.q_norm.weight",),
        of_a_head(halves_by_column, lambda config: config.head_width**0.5),
    ),
    Rule((f"{_BLOCK}.self_attn.k_norm.weight",), (f"{_OURS}.attn.k_norm.weight",), of_a_head(halves_by_column)),
    rename(f"{_BLOCK}.self_attn.o_proj.linear.weight", f"{_OURS}.attn.proj.weight"),
    _clipped((f"{_BLOCK}.self_attn.o_proj",), f"{_OURS}.attn.proj"),
    rename(f"{_BLOCK}.input_layernorm.weight", f"{_OURS}.norm1.weight"),
    rename(f"{_BLOCK}.post_attention_layernorm.weight", f"{_OURS}.post1.weight"),
    rename(f"{_BLOCK}.pre_feedforward_layernorm.weight", f"{_OURS}.norm2.weight"),
    rename(f"{_BLOCK}.post_feedforward_layernorm.weight", f"{_OURS}.post2.weight"),
    Rule(tuple(f"{part}.linear.weight" for part in _GATED), (f"{_OURS}.mlp.w12.weight",), stack(2)),
    _clipped(_GATED, f"{_OURS}.mlp.w12"),
    rename(f"{_BLOCK}.mlp.down_proj.linear.weight", f"{_OURS}.mlp.w3.weight"),
    _clipped((f"{_BLOCK}.mlp.down_proj",), f"{_OURS}.mlp.w3"),
    drop("std_bias"),  # it scales the tokens for the language model
    drop("std_scale"),
)
