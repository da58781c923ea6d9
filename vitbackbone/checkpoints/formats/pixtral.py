"""The layout of Pixtral in transformers."""

from vitbackbone.checkpoints.formats.changes import gated, qkv
from vitbackbone.checkpoints.rules import Rules, rename

_BLOCK, _OURS = "transformer.layers.{i}", "blocks.{i}"

PIXTRAL: Rules = (
    rename("patch_conv.weight", "patch_embed.proj.weight"),
    rename("ln_pre.weight", "norm_pre.weight"),
    *qkv(f"{_BLOCK}.attention.", ("q_proj", "k_proj", "v_proj"), f"{_OURS}.attn"),
    rename(f"{_BLOCK}.attention.o_proj.weight", f"{_OURS}.attn.proj.weight"),
    rename(f"{_BLOCK}.attention_norm.weight", f"{_OURS}.norm1.weight"),
    rename(f"{_BLOCK}.ffn_norm.weight", f"{_OURS}.norm2.weight"),
    *gated(f"{_BLOCK}.feed_forward.gate_proj", f"{_BLOCK}.feed_forward.up_proj", f"{_OURS}.mlp.w12"),
    rename(f"{_BLOCK}.feed_forward.down_proj.weight", f"{_OURS}.mlp.w3.weight"),
)
