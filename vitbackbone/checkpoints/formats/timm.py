"""timm's layouts, whose names mostly equal ours (timm/models/vision_transformer.py, deit.py, beit.py, eva.py,
vision_transformer_sam.py)."""

from vitbackbone.checkpoints.formats.changes import FLATTEN, FOLD_CLS, FOLD_DISTILLED, UNBATCH, gated, qkv
from vitbackbone.checkpoints.rules import Rule, Rules, both, rename, together

# ---- the parts of a layout ----------------------------------------------------------------------------------------

EMBED: Rules = (*both("patch_embed.proj", "patch_embed.proj"), *both("norm_pre", "norm_pre"))
POSITIONS_WITH_CLS: Rules = (Rule(("cls_token", "pos_embed"), ("cls_token", "pos_embed.table"), FOLD_CLS),)
POSITIONS: Rules = (Rule(("pos_embed",), ("pos_embed.table",), UNBATCH),)
TOKENS: Rules = (rename("cls_token", "cls_token"), rename("reg_token", "reg_token"))
BLOCK: Rules = (
    *both("blocks.{i}.norm1", "blocks.{i}.norm1"),
    *both("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
    *both("blocks.{i}.norm2", "blocks.{i}.norm2"),
)
QKV: Rules = both("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv")
QV_BIAS: Rules = (
    rename("blocks.{i}.attn.q_bias", "blocks.{i}.attn.q_bias"),
    rename("blocks.{i}.attn.v_bias", "blocks.{i}.attn.v_bias"),
)
LAYER_SCALE: Rules = (
    rename("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma"),
    rename("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma"),
)
GAMMA: Rules = (
    rename("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma"),
    rename("blocks.{i}.gamma_2", "blocks.{i}.ls2.gamma"),
)
MLP: Rules = (
    *both("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
    *both("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
)
PACKED_GATED: Rules = (
    *both("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.w12"),
    *both("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.w3"),
)
SPLIT_GATED: Rules = (
    *gated("blocks.{i}.mlp.fc1_g", "blocks.{i}.mlp.fc1_x", "blocks.{i}.mlp.w12"),
    *both("blocks.{i}.mlp.norm", "blocks.{i}.mlp.norm"),
    *both("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.w3"),
)
NORM: Rules = (*both("norm", "norm"), *both("fc_norm", "fc_norm"))
ATTENTION_POOL: Rules = (
    rename("attn_pool.latent", "attn_pool.latent"),
    *(
        rule
        for part in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
        for rule in both(f"attn_pool.{part}", f"attn_pool.{part}")
    ),
)
HEAD = both("head", "head")

# ---- the layouts --------------------------------------------------------------------------------------------------

VIT: Rules = (*EMBED, *BLOCK, *QKV, *LAYER_SCALE, *MLP, *PACKED_GATED, *NORM, *ATTENTION_POOL)
_BEIT: Rules = (*EMBED, *BLOCK, *QKV, *QV_BIAS, *GAMMA, *NORM, *HEAD)

TIMM: dict[str, Rules] = {
    "timm": (*VIT, *POSITIONS_WITH_CLS, *HEAD),
    "timm_no_embed_class": (*VIT, *TOKENS, *POSITIONS, *HEAD),  # timm's name: only patches have positions
    "timm_distilled": (
        *VIT,
        Rule(("cls_token", "dist_token", "pos_embed"), ("cls_token", "reg_token", "pos_embed.table"), FOLD_DISTILLED),
        *together(("head", "head"), ("head_dist", "head_dist")),
    ),
    "timm_clip": (*VIT, *POSITIONS_WITH_CLS, *both("head", "projection")),  # CLIP's projection is timm's head
    "timm_beit": (
        *_BEIT,
        *MLP,
        *TOKENS,
        rename("blocks.{i}.attn.relative_position_bias_table", "blocks.{i}.attn.rel_pos.table"),
    ),
    "timm_dinov3": (*_BEIT, *MLP, *SPLIT_GATED, *TOKENS),
    "timm_eva02": (*_BEIT, *PACKED_GATED, *POSITIONS_WITH_CLS),
    "timm_eva02_split": (  # the larger ones: q, k and v apart, gate and value apart
        *EMBED,
        *BLOCK,
        *qkv("blocks.{i}.attn.", ("q_proj", "k_proj", "v_proj"), "blocks.{i}.attn"),
        *SPLIT_GATED,
        *NORM,
        *HEAD,
        *POSITIONS_WITH_CLS,
    ),
    "timm_sam": (
        *EMBED,
        *BLOCK,
        *QKV,
        *MLP,
        Rule(("pos_embed",), ("pos_embed.table",), FLATTEN),
        rename("blocks.{i}.attn.rel_pos_h", "blocks.{i}.attn.rel_pos.rows"),
        rename("blocks.{i}.attn.rel_pos_w", "blocks.{i}.attn.rel_pos.columns"),
        *both("neck.{i}", "neck.{i}"),
    ),
}
