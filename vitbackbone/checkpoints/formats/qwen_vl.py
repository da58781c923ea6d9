"""The layouts of the vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from vitbackbone.checkpoints.formats.changes import FRAMES, gated
from vitbackbone.checkpoints.rules import Rule, Rules, both, drop, rename

_BLOCK = "blocks.{i}"
_SHARED: Rules = (
    Rule(("patch_embed.proj.weight",), ("patch_embed.proj.weight",), FRAMES),
    *both(f"{_BLOCK}.attn.qkv", f"{_BLOCK}.attn.qkv"),
    *both(f"{_BLOCK}.attn.proj", f"{_BLOCK}.attn.proj"),
    *both(f"{_BLOCK}.norm1", f"{_BLOCK}.norm1"),
    *both(f"{_BLOCK}.norm2", f"{_BLOCK}.norm2"),
    drop("merger.{rest}"),  # to the language model's width, four patches at a time
)
QWEN2_VL: Rules = (
    *_SHARED,
    *both(f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mlp.fc1"),
    *both(f"{_BLOCK}.mlp.fc2", f"{_BLOCK}.mlp.fc2"),
)
QWEN2_5_VL: Rules = (
    *_SHARED,
    *gated(f"{_BLOCK}.mlp.gate_proj", f"{_BLOCK}.mlp.up_proj", f"{_BLOCK}.mlp.w12"),
    *both(f"{_BLOCK}.mlp.down_proj", f"{_BLOCK}.mlp.w3"),
)
QWEN3_VL: Rules = (
    *_SHARED,
    rename("patch_embed.proj.bias", "patch_embed.proj.bias"),
    rename("pos_embed.weight", "pos_embed.table"),
    *both(f"{_BLOCK}.mlp.linear_fc1", f"{_BLOCK}.mlp.fc1"),
    *both(f"{_BLOCK}.mlp.linear_fc2", f"{_BLOCK}.mlp.fc2"),
    drop("deepstack_merger_list.{rest}"),
)
