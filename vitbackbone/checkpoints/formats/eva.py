"""timm's layouts of Perception Encoder, EVA-CLIP and AIMv2 (timm/models/eva.py, vision_transformer.py), and Perception
Encoder's own files (facebookresearch/perception_models, core/vision_encoder/pe.py)."""

from vitbackbone.checkpoints.formats.changes import FOLD_FLAT, TRANSPOSE, UNSTACK_FIRST, qkv
from vitbackbone.checkpoints.formats.rotary import neighbours_by_column, packed
from vitbackbone.checkpoints.formats.timm import (
    ATTENTION_POOL,
    BLOCK,
    EMBED,
    GAMMA,
    MLP,
    NORM,
    POSITIONS,
    POSITIONS_WITH_CLS,
    QKV,
    QV_BIAS,
    SPLIT_GATED,
)
from vitbackbone.checkpoints.rules import Rule, Rules, both, drop, inside, rename

_OURS = "blocks.{i}"
_IN_ORDER = packed(neighbours_by_column)
_PROJECTION = both("head", "projection")  # CLIP's projection is timm's head
_NORMS_AFTER: Rules = (
    *both(f"{_OURS}.norm1", f"{_OURS}.post1"),
    *both(f"{_OURS}.norm2", f"{_OURS}.post2"),
)

_TIMM_PE: Rules = (
    *EMBED,
    *BLOCK,
    *(Rule((f"{_OURS}.attn.qkv.{kind}",), (f"{_OURS}.attn.qkv.{kind}",), _IN_ORDER) for kind in ("weight", "bias")),
    *GAMMA,
    *MLP,
    *NORM,
    *ATTENTION_POOL,
    *_PROJECTION,
)

TIMM_EVA: dict[str, Rules] = {
    "timm_pe": (*_TIMM_PE, *POSITIONS_WITH_CLS),
    "timm_pe_no_cls": (*_TIMM_PE, *POSITIONS),
    "timm_eva_clip": (  # the giant one, and the largest with norms after the branches
        *EMBED,
        *BLOCK,
        *_NORMS_AFTER,
        *QKV,
        *QV_BIAS,
        *MLP,
        *NORM,
        *POSITIONS_WITH_CLS,
        *_PROJECTION,
    ),
    "timm_eva02_clip": (
        *EMBED,
        *BLOCK,
        *qkv(f"{_OURS}.attn.", ("q_proj", "k_proj", "v_proj"), f"{_OURS}.attn"),
        *both(f"{_OURS}.attn.norm", f"{_OURS}.attn.norm"),
        *SPLIT_GATED,
        *NORM,
        *POSITIONS_WITH_CLS,
        *_PROJECTION,
    ),
    "timm_aimv2": (
        *EMBED,
        rename("patch_embed.norm.weight", "embed_norm.weight"),
        *BLOCK,
        *QKV,
        *SPLIT_GATED,
        *NORM,
        *POSITIONS,
        *both("head", "head"),
    ),
}

_BLOCK = "transformer.resblocks.{i}"
_POOL = {"attn.out_proj": "proj", "layernorm": "norm", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}

_PE: Rules = (
    rename("conv1.weight", "patch_embed.proj.weight"),
    *both("ln_pre", "norm_pre"),
    *both("ln_post", "norm"),
    *(
        Rule((f"{_BLOCK}.attn.in_proj_{kind}",), (f"{_OURS}.attn.qkv.{kind}",), _IN_ORDER)
        for kind in ("weight", "bias")
    ),
    *both(f"{_BLOCK}.attn.out_proj", f"{_OURS}.attn.proj"),
    *both(f"{_BLOCK}.ln_1", f"{_OURS}.norm1"),
    *both(f"{_BLOCK}.ln_2", f"{_OURS}.norm2"),
    *both(f"{_BLOCK}.mlp.c_fc", f"{_OURS}.mlp.fc1"),
    *both(f"{_BLOCK}.mlp.c_proj", f"{_OURS}.mlp.fc2"),
    rename(f"{_BLOCK}.ls_1.gamma", f"{_OURS}.ls1.gamma"),
    rename(f"{_BLOCK}.ls_2.gamma", f"{_OURS}.ls2.gamma"),
    rename("attn_pool.probe", "attn_pool.latent"),
    *(
        Rule((f"attn_pool.attn.in_proj_{kind}",), (f"attn_pool.q.{kind}", f"attn_pool.kv.{kind}"), UNSTACK_FIRST)
        for kind in ("weight", "bias")
    ),
    *(rule for theirs, ours in _POOL.items() for rule in both(f"attn_pool.{theirs}", f"attn_pool.{ours}")),
    Rule(("proj",), ("projection.weight",), TRANSPOSE),
)
_POSITIONS: dict[str, Rules] = {
    "": (Rule(("class_embedding", "positional_embedding"), ("cls_token", "pos_embed.table"), FOLD_FLAT),),
    "_no_cls": (rename("positional_embedding", "pos_embed.table"),),
}
# The core models hold the text tower too, which is left out
_TEXT: Rules = (
    *(drop(f"{part}.{{rest}}") for part in ("transformer", "token_embedding", "ln_final")),
    *map(drop, ("positional_embedding", "text_projection", "logit_scale", "logit_bias", "attn_mask")),
)
PERCEPTION: dict[str, Rules] = {
    **{f"pe{cls}": (*_PE, *positions) for cls, positions in _POSITIONS.items()},
    **{f"pe_core{cls}": (*inside("visual.", (*_PE, *positions)), *_TEXT) for cls, positions in _POSITIONS.items()},
}
