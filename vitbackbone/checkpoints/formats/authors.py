"""The layouts of the authors' own files, and of this package's files."""

from dataclasses import replace

from vitbackbone.checkpoints.formats.changes import (
    CONVOLUTION,
    FLATTEN,
    FOLD_CLS,
    FOLD_FLAT,
    HEAD_BIASES,
    HEADS_IN,
    HEADS_OUT,
    MASKED_BIAS,
    TRANSPOSE,
    gated,
)
from vitbackbone.checkpoints.formats.timm import (
    ATTENTION_POOL,
    BLOCK,
    EMBED,
    GAMMA,
    HEAD,
    LAYER_SCALE,
    MLP,
    NORM,
    POSITIONS_WITH_CLS,
    QKV,
    QV_BIAS,
    TOKENS,
)
from vitbackbone.checkpoints.rules import Rule, Rules, both, drop, inside, mask_token, read_only, rename

_PLAIN: Rules = (*EMBED, *BLOCK, *QKV, *MLP, *NORM)
_GATED: Rules = (*both("blocks.{i}.mlp.w12", "blocks.{i}.mlp.w12"), *both("blocks.{i}.mlp.w3", "blocks.{i}.mlp.w3"))

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.w12", "mlp.w3")  # of a block
# This package's files: every parameter under its own name. The stem has running statistics
NATIVE: Rules = (
    *_PLAIN,
    *_GATED,
    *TOKENS,
    *LAYER_SCALE,
    *QV_BIAS,
    *HEAD,
    rename("pos_embed.table", "pos_embed.table"),
    *both("patch_embed.convs.{i}", "patch_embed.convs.{i}"),
    rename("patch_embed.convs.{i}.running_mean", "patch_embed.convs.{i}.running_mean"),
    rename("patch_embed.convs.{i}.running_var", "patch_embed.convs.{i}.running_var"),
    rename("patch_embed.convs.{i}.num_batches_tracked", "patch_embed.convs.{i}.num_batches_tracked"),
    *(rename(name, name) for name in (f"blocks.{{i}}.attn.rel_pos.{part}" for part in ("table", "rows", "columns"))),
    *(
        rule
        for part in ("mlp.norm", "post1", "post2", "attn.norm", "attn.q_norm", "attn.k_norm")
        for rule in both(f"blocks.{{i}}.{part}", f"blocks.{{i}}.{part}")
    ),
    *(
        rename(f"blocks.{{i}}.{part}", f"blocks.{{i}}.{part}")
        for part in ("attn.cls_angles", *(f"{layer}.limits" for layer in LINEARS))
    ),
    *both("embed_norm", "embed_norm"),
    *ATTENTION_POOL,
    *(rule for part in ("w12", "norm", "w3") for rule in both(f"attn_pool.mlp.{part}", f"attn_pool.mlp.{part}")),
    *both("neck.{i}", "neck.{i}"),
    *both("projection", "projection"),
)

# google-research/vision_transformer, vit_jax/models_vit.py: an .npz of Flax's arrays
_FLAX = "Transformer/encoderblock_{i}"
_HEADS = f"{_FLAX}/MultiHeadDotProductAttention_1"


def _flax_norm(source: str, target: str) -> Rules:
    return rename(f"{source}/scale", f"{target}.weight"), rename(f"{source}/bias", f"{target}.bias")


def _flax_dense(source: str, target: str) -> Rules:
    return Rule((f"{source}/kernel",), (f"{target}.weight",), TRANSPOSE), rename(f"{source}/bias", f"{target}.bias")


FLAX: Rules = (
    Rule(("embedding/kernel",), ("patch_embed.proj.weight",), CONVOLUTION),
    rename("embedding/bias", "patch_embed.proj.bias"),
    Rule(("cls", "Transformer/posembed_input/pos_embedding"), ("cls_token", "pos_embed.table"), FOLD_CLS),
    *_flax_norm(f"{_FLAX}/LayerNorm_0", "blocks.{i}.norm1"),
    Rule(
        tuple(f"{_HEADS}/{part}/kernel" for part in ("query", "key", "value")),
        ("blocks.{i}.attn.qkv.weight",),
        HEADS_IN,
    ),
    Rule(
        tuple(f"{_HEADS}/{part}/bias" for part in ("query", "key", "value")),
        ("blocks.{i}.attn.qkv.bias",),
        HEAD_BIASES,
    ),
    Rule((f"{_HEADS}/out/kernel",), ("blocks.{i}.attn.proj.weight",), HEADS_OUT),
    rename(f"{_HEADS}/out/bias", "blocks.{i}.attn.proj.bias"),
    *_flax_norm(f"{_FLAX}/LayerNorm_2", "blocks.{i}.norm2"),
    *_flax_dense(f"{_FLAX}/MlpBlock_3/Dense_0", "blocks.{i}.mlp.fc1"),
    *_flax_dense(f"{_FLAX}/MlpBlock_3/Dense_1", "blocks.{i}.mlp.fc2"),
    *_flax_norm("Transformer/encoder_norm", "norm"),
    *_flax_dense("pre_logits", "head.hidden"),  # the tanh layer of the head as pretrained
    *_flax_dense("head", "head"),
)

# microsoft/unilm, beit/modeling_finetune.py and modeling_pretrain.py; in pretraining all blocks share one table
BEIT: Rules = (
    *_PLAIN,
    *QV_BIAS,
    *GAMMA,
    *HEAD,
    rename("cls_token", "cls_token"),
    rename("blocks.{i}.attn.relative_position_bias_table", "blocks.{i}.attn.rel_pos.table"),
    *read_only([rename("rel_pos_bias.relative_position_bias_table", "blocks.{i}.attn.rel_pos.table")]),
    drop("blocks.{i}.attn.relative_position_index"),
    drop("rel_pos_bias.relative_position_index"),
    replace(mask_token("mask_token", 1, 1, "dim"), blank=None),
    drop("lm_head.weight"),
    drop("lm_head.bias"),
)

# facebookresearch/mae, models_mae.py; the decoder serves pretraining
MAE: Rules = (
    *_PLAIN,
    *POSITIONS_WITH_CLS,
    drop("mask_token"),
    drop("decoder_pos_embed"),
    *(drop(f"decoder_{part}.{{rest}}") for part in ("embed", "blocks", "norm", "pred")),
)

# facebookresearch/dino, vision_transformer.py
DINO: Rules = (*_PLAIN, *POSITIONS_WITH_CLS)

# facebookresearch/moco-v3, main_moco.py: the trained network, its momentum copy and the predictor
MOCO_V3: Rules = (
    *inside("module.base_encoder.", (*_PLAIN, *POSITIONS_WITH_CLS, drop("head.{rest}"))),
    drop("module.momentum_encoder.{rest}"),
    drop("module.predictor.{rest}"),
)

# facebookresearch/dinov2, models/vision_transformer.py
DINOV2: Rules = (
    *_PLAIN,
    *_GATED,
    *LAYER_SCALE,
    *POSITIONS_WITH_CLS,
    rename("register_tokens", "reg_token"),
    mask_token("mask_token", 1, "dim"),
)
# facebookresearch/dinov2, hub/classifiers.py
DINOV2_CLASSIFIER: Rules = (*inside("backbone.", DINOV2), *both("linear_head", "head_concat"))

# facebookresearch/dinov3, models/vision_transformer.py
DINOV3: Rules = (
    *_PLAIN,
    *LAYER_SCALE,
    rename("cls_token", "cls_token"),
    rename("storage_tokens", "reg_token"),
    Rule(
        ("blocks.{i}.attn.qkv.bias", "blocks.{i}.attn.qkv.bias_mask"),
        ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias"),
        MASKED_BIAS,
    ),
    *gated("blocks.{i}.mlp.w1", "blocks.{i}.mlp.w2", "blocks.{i}.mlp.w12"),
    *both("blocks.{i}.mlp.w3", "blocks.{i}.mlp.w3"),
    mask_token("mask_token", 1, "dim"),
    drop("rope_embed.periods"),  # `Rotary` computes them
    drop("local_cls_norm.weight"),  # for small crops in pretraining
    drop("local_cls_norm.bias"),
)

# openai/CLIP, clip/model.py, and mlfoundations/open_clip, transformer.py
_RESBLOCK = "transformer.resblocks.{i}"
CLIP: Rules = (
    *inside(
        "visual.",
        (
            rename("conv1.weight", "patch_embed.proj.weight"),
            Rule(("class_embedding", "positional_embedding"), ("cls_token", "pos_embed.table"), FOLD_FLAT),
            *both("ln_pre", "norm_pre"),
            *both(f"{_RESBLOCK}.ln_1", "blocks.{i}.norm1"),
            rename(f"{_RESBLOCK}.attn.in_proj_weight", "blocks.{i}.attn.qkv.weight"),
            rename(f"{_RESBLOCK}.attn.in_proj_bias", "blocks.{i}.attn.qkv.bias"),
            *both(f"{_RESBLOCK}.attn.out_proj", "blocks.{i}.attn.proj"),
            *both(f"{_RESBLOCK}.ln_2", "blocks.{i}.norm2"),
            *both(f"{_RESBLOCK}.mlp.c_fc", "blocks.{i}.mlp.fc1"),
            *both(f"{_RESBLOCK}.mlp.c_proj", "blocks.{i}.mlp.fc2"),
            *both("ln_post", "norm"),
            Rule(("proj",), ("projection.weight",), TRANSPOSE),
        ),
    ),
    *(drop(f"{part}.{{rest}}") for part in ("transformer", "token_embedding", "ln_final")),  # the text tower
    *map(drop, ("positional_embedding", "text_projection", "logit_scale", "logit_bias", "attn_mask")),
)

# facebookresearch/segment-anything, modeling/image_encoder.py
SAM: Rules = (
    *inside(
        "image_encoder.",
        (
            *EMBED,
            *BLOCK,
            *QKV,
            Rule(("pos_embed",), ("pos_embed.table",), FLATTEN),
            rename("blocks.{i}.attn.rel_pos_h", "blocks.{i}.attn.rel_pos.rows"),
            rename("blocks.{i}.attn.rel_pos_w", "blocks.{i}.attn.rel_pos.columns"),
            *both("blocks.{i}.mlp.lin1", "blocks.{i}.mlp.fc1"),
            *both("blocks.{i}.mlp.lin2", "blocks.{i}.mlp.fc2"),
            *both("neck.{i}", "neck.{i}"),
        ),
    ),
    drop("prompt_encoder.{rest}"),
    drop("mask_decoder.{rest}"),
)

AUTHORS: dict[str, Rules] = {
    "native": NATIVE,
    "flax": FLAX,
    "beit": BEIT,
    "mae": MAE,
    "dino": DINO,
    "moco_v3": MOCO_V3,
    "dinov2": DINOV2,
    "dinov2_classifier": DINOV2_CLASSIFIER,
    "dinov3": DINOV3,
    "clip": CLIP,
    "sam": SAM,
}
