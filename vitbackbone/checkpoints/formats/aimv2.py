"""The layout of AIMv2 in transformers."""

from vitbackbone.checkpoints.formats.changes import gated, qkv, stack
from vitbackbone.checkpoints.rules import Rule, Rules, beside, both, rename

_BLOCK, _OURS = "encoder.layers.{i}", "blocks.{i}"

AIMV2: Rules = (
    *both("embeddings.patch_embed", "patch_embed.proj"),
    rename("embeddings.rms_norm.weight", "embed_norm.weight"),
    rename("embeddings.position_embedding.weight", "pos_embed.table"),
    *qkv(f"{_BLOCK}.attention.", ("q_proj", "k_proj", "v_proj"), f"{_OURS}.attn"),
    *both(f"{_BLOCK}.attention.out_proj", f"{_OURS}.attn.proj"),
    rename(f"{_BLOCK}.rms_norm1.weight", f"{_OURS}.norm1.weight"),
    rename(f"{_BLOCK}.rms_norm2.weight", f"{_OURS}.norm2.weight"),
    *gated(f"{_BLOCK}.ffn.gate_proj", f"{_BLOCK}.ffn.up_proj", f"{_OURS}.mlp.w12"),
    *both(f"{_BLOCK}.ffn.down_proj", f"{_OURS}.mlp.w3"),
    rename("rms_norm.weight", "norm.weight"),
    rename("head.cls_token", "attn_pool.latent"),
    *(
        Rule((f"head.k_proj.{kind}", f"head.v_proj.{kind}"), (f"attn_pool.kv.{kind}",), stack(2))
        for kind in ("weight", "bias")
    ),
    *both("head.output_proj", "attn_pool.proj"),
    *beside([rename("visual_projection.weight", "projection.weight")]),
)
