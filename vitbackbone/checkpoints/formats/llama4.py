"""The layout of Llama 4's vision tower, whose CLS token follows the patches."""

import torch
from torch import Tensor

from vitbackbone.checkpoints.formats.changes import PATCHES
from vitbackbone.checkpoints.formats.rotary import neighbours_by_column, qkv_in_order
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, drop


def _fold(cls: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    return (cls + positions[-1])[None, None], positions[:-1]


def _unfold(cls: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    return cls[0, 0], torch.cat([table, torch.zeros_like(cls[0])])


_BLOCK, _OURS = "model.layers.{i}", "blocks.{i}"
_TOKENS = ("class_embedding", "positional_embedding_vlm")

LLAMA4: Rules = (
    Rule(("patch_embedding.linear.weight",), ("patch_embed.proj.weight",), PATCHES),
    Rule(_TOKENS, ("cls_token", "pos_embed.table"), Change(_fold, _unfold)),
    *both("layernorm_pre", "norm_pre"),
    *qkv_in_order(f"{_BLOCK}.self_attn.", ("q_proj", "k_proj", "v_proj"), f"{_OURS}.attn", neighbours_by_column),
    *both(f"{_BLOCK}.self_attn.o_proj", f"{_OURS}.attn.proj"),
    *both(f"{_BLOCK}.input_layernorm", f"{_OURS}.norm1"),
    *both(f"{_BLOCK}.post_attention_layernorm", f"{_OURS}.norm2"),
    *both(f"{_BLOCK}.mlp.fc1", f"{_OURS}.mlp.fc1"),
    *both(f"{_BLOCK}.mlp.fc2", f"{_OURS}.mlp.fc2"),
    *both("layernorm_post", "norm"),
    drop("vision_adapter.{rest}"),
)
