"""The layout of InternViT in transformers, and of the authors' own repositories (OpenGVLab, modeling_intern_vit.py)."""

from vitbackbone.checkpoints.formats.changes import FOLD_CLS, qkv
from vitbackbone.checkpoints.rules import Rule, Rules, both, drop, rename

_BLOCK, _OURS = "encoder.layer.{i}", "blocks.{i}"
_TOKENS = ("embeddings.cls_token", "embeddings.position_embeddings")

INTERNVL: Rules = (
    *both("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    Rule(_TOKENS, ("cls_token", "pos_embed.table"), FOLD_CLS),
    rename("embeddings.cls_token", "cls_token"),
    drop("embeddings.mask_token"),
    *qkv(f"{_BLOCK}.attention.", ("q_proj", "k_proj", "v_proj"), f"{_OURS}.attn"),
    rename(f"{_BLOCK}.attention.q_norm.weight", f"{_OURS}.attn.q_norm.weight"),
    rename(f"{_BLOCK}.attention.k_norm.weight", f"{_OURS}.attn.k_norm.weight"),
    *both(f"{_BLOCK}.attention.projection_layer", f"{_OURS}.attn.proj"),
    *both(f"{_BLOCK}.layernorm_before", f"{_OURS}.norm1"),
    *both(f"{_BLOCK}.layernorm_after", f"{_OURS}.norm2"),
    *both(f"{_BLOCK}.mlp.fc1", f"{_OURS}.mlp.fc1"),
    *both(f"{_BLOCK}.mlp.fc2", f"{_OURS}.mlp.fc2"),
    rename(f"{_BLOCK}.lambda_1", f"{_OURS}.ls1.gamma"),
    rename(f"{_BLOCK}.lambda_2", f"{_OURS}.ls2.gamma"),
    *both("layernorm", "norm"),
)

_BLOCK = "encoder.layers.{i}"
INTERN_VIT: Rules = (
    *both("embeddings.patch_embedding", "patch_embed.proj"),
    Rule(("embeddings.class_embedding", "embeddings.position_embedding"), ("cls_token", "pos_embed.table"), FOLD_CLS),
    *both(f"{_BLOCK}.attn.qkv", f"{_OURS}.attn.qkv"),
    rename(f"{_BLOCK}.attn.q_norm.weight", f"{_OURS}.attn.q_norm.weight"),
    rename(f"{_BLOCK}.attn.k_norm.weight", f"{_OURS}.attn.k_norm.weight"),
    *both(f"{_BLOCK}.attn.proj", f"{_OURS}.attn.proj"),
    *both(f"{_BLOCK}.norm1", f"{_OURS}.norm1"),
    *both(f"{_BLOCK}.norm2", f"{_OURS}.norm2"),
    *both(f"{_BLOCK}.mlp.fc1", f"{_OURS}.mlp.fc1"),
    *both(f"{_BLOCK}.mlp.fc2", f"{_OURS}.mlp.fc2"),
    rename(f"{_BLOCK}.ls1", f"{_OURS}.ls1.gamma"),
    rename(f"{_BLOCK}.ls2", f"{_OURS}.ls2.gamma"),
)
