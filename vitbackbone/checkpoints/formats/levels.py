"""The layouts of Hiera, SAM 2's encoder and DINOv3's ConvNeXt in transformers, to the parameters of a `TimmBackbone`.

Keys are relative to the network. The blocks of Hiera's stages get consecutive numbers before these rules apply
(`trainers.merge_chunks`).
"""

from vitbackbone.checkpoints.rules import Rules, beside, both, drop, rename

STAGES = range(4)  # in every published one


def _block(theirs: str, ours: str, names: dict[str, str]) -> Rules:
    return tuple(rule for a, b in names.items() for rule in both(f"{theirs}.{a}", f"{ours}.{b}"))


def _stage_norms() -> Rules:
    """Drop the norms that classes with `Backbone` in their name have for each stage that they return."""
    names = (f"{above}hidden_states_norms.stage{s + 1}" for s in STAGES for above in ("", "../"))
    return tuple(drop(f"{name}.{kind}") for name in names for kind in ("weight", "bias"))


_HIERA_BLOCK = {
    **{"layernorm_before": "norm1", "attn.qkv": "attn.qkv", "attn.proj": "attn.proj", "layernorm_after": "norm2"},
    **{"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "proj": "proj"},
}
HIERA: Rules = (
    *both("embeddings.patch_embeddings.projection", "model.patch_embed.proj"),
    rename("embeddings.position_embeddings", "model.pos_embed"),
    *_block("blocks.{i}", "model.blocks.{i}", _HIERA_BLOCK),
    *both("pooler.layernorm", "model.head.norm"),
    *beside(both("classifier", "head")),
    *_stage_norms(),
)
_SAM2_BLOCK = {
    **{"layer_norm1": "norm1", "attn.qkv": "attn.qkv", "attn.proj": "attn.proj", "layer_norm2": "norm2"},
    **{"mlp.proj_in": "mlp.fc1", "mlp.proj_out": "mlp.fc2", "proj": "proj"},
}
SAM2: Rules = (
    *both("patch_embed.projection", "model.patch_embed.proj"),
    rename("pos_embed", "model.pos_embed"),
    rename("pos_embed_window", "model.pos_embed_window"),
    *_block("blocks.{i}", "model.blocks.{i}", _SAM2_BLOCK),
)

_CONVNEXT_BLOCK = {
    **{"depthwise_conv": "conv_dw", "layer_norm": "norm"},
    **{"pointwise_conv1": "mlp.fc1", "pointwise_conv2": "mlp.fc2"},
}


def _convnext_stage(s: int) -> Rules:
    theirs, ours = f"stages.{s}", f"model.stages.{s}"
    down = ("model.stem.0", "model.stem.1") if s == 0 else (f"{ours}.downsample.0", f"{ours}.downsample.1")
    return (
        *both(f"{theirs}.downsample_layers.0", down[0]),
        *both(f"{theirs}.downsample_layers.1", down[1]),
        *_block(f"{theirs}.layers.{{i}}", f"{ours}.blocks.{{i}}", _CONVNEXT_BLOCK),
        rename(f"{theirs}.layers.{{i}}.gamma", f"{ours}.blocks.{{i}}.gamma"),
    )


CONVNEXT: Rules = (
    *(rule for s in STAGES for rule in _convnext_stage(s)),
    *both("layer_norm", "model.head.norm"),
    *beside(both("layer_norm", "model.head.norm")),
    *_stage_norms(),
)

LEVELS: dict[str, Rules] = {"hf_hiera": HIERA, "hf_sam2": SAM2, "hf_dinov3_convnext": CONVNEXT}
