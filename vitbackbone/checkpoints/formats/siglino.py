"""The layout of SigLino's files (tiiuae/siglino, model.py), with experts and without.

The layers that predict the teachers' features are left out.
"""

import torch
from torch import Tensor

from vitbackbone.checkpoints.formats.changes import PATCHES_CHANNELS_LAST, stack
from vitbackbone.checkpoints.formats.rotary import apart
from vitbackbone.checkpoints.rules import Change, Rule, Rules, drop, rename

_LAYER, _OURS = "layers.{i}", "blocks.{i}"
_POOLING = "siglip2_multihead_attention_pooling_head"
_TEACHERS = (
    *(f"{name}_adapter.{part}" for name in ("dinov3", "siglip2") for part in ("fc1", "norm", "fc2")),
    "layer_norm_dinov3",
    *(f"{_POOLING}.{part}" for part in ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2")),
)


def _second_half_first(width: int) -> list[int]:
    """The second half of each head turns, and the first is still."""
    return [*range(width // 2, width), *range(width // 2)]


def _beside(gate: Tensor, value: Tensor) -> tuple[Tensor]:
    return (torch.cat([gate, value], dim=1),)


SIGLINO: Rules = (
    Rule(("img_projector.weight",), ("patch_embed.proj.weight",), PATCHES_CHANNELS_LAST),
    rename("cls_token", "cls_token"),
    rename("storage_tokens", "reg_token"),
    Rule(
        tuple(f"{_LAYER}.attention.{name}.weight" for name in ("wq", "wk", "wv")),
        (f"{_OURS}.attn.qkv.weight",),
        apart(_second_half_first),
    ),
    rename(f"{_LAYER}.attention.wo.weight", f"{_OURS}.attn.proj.weight"),
    rename(f"{_LAYER}.attention.sinks", f"{_OURS}.attn.sinks"),
    rename(f"{_LAYER}.attention_norm.weight", f"{_OURS}.norm1.weight"),
    rename(f"{_LAYER}.ffn_norm.weight", f"{_OURS}.norm2.weight"),
    Rule(
        tuple(f"{_LAYER}.feed_forward.{name}.weight" for name in ("w1", "w3")), (f"{_OURS}.mlp.w12.weight",), stack(2)
    ),
    rename(f"{_LAYER}.feed_forward.w2.weight", f"{_OURS}.mlp.w3.weight"),
    Rule(
        tuple(f"{_LAYER}.moe.experts.{name}" for name in ("w1", "w3")),
        (f"{_OURS}.mlp.w12",),
        Change(_beside, lambda both: both.chunk(2, dim=1)),
    ),
    rename(f"{_LAYER}.moe.experts.w2", f"{_OURS}.mlp.w3"),
    rename(f"{_LAYER}.moe.router.gate.weight", f"{_OURS}.mlp.router.weight"),
    rename(f"{_LAYER}.moe.expert_bias", f"{_OURS}.mlp.bias"),
    rename("norm.weight", "norm.weight"),
    drop("freqs_cis_golden"),  # computed
    *(drop(f"{name}.{kind}") for name in _TEACHERS for kind in ("weight", "bias")),
    *(drop(f"{_POOLING}.{name}") for name in ("probe", "attention.in_proj_weight", "attention.in_proj_bias")),
)
