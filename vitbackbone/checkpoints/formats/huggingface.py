"""The layouts of transformers' `save_pretrained`. (Version 5 still writes most names of version 4.)

`TOWERS` are read. Their keys are relative to the tower, so that one table serves every class that has the tower
somewhere inside. `CLASSES` are written: the keys of one class, from the top of its file.
"""

from dataclasses import replace

from vitbackbone.checkpoints.formats.changes import (
    FLATTEN,
    FOLD_CLS,
    FOLD_DISTILLED,
    FOLD_FLAT,
    UNBATCH,
    UNSTACK_FIRST,
    gated,
    qkv,
)
from vitbackbone.checkpoints.rules import (
    Rule,
    Rules,
    beside,
    both,
    drop,
    inside,
    mask_token,
    read_only,
    rename,
    together,
    unused,
)

CLASSIFIER = both("classifier", "head")
TEACHER = together(("cls_classifier", "head"), ("distillation_classifier", "head_dist"))
CLASSIFIER_OF_BOTH = both("classifier", "head_concat")  # reads CLS and the mean of the patches


def layers(prefix: str, names: dict[str, str]) -> Rules:
    """Rename the weights and biases of layers, from names in a block of the checkpoint to names in our block."""
    return tuple(rule for theirs, ours in names.items() for rule in both(f"{prefix}.{theirs}", f"blocks.{{i}}.{ours}"))


def _having(extra: Rules, rules: Rules) -> Rules:
    """Return `rules` with unused parameters that this class has, and that other classes of the same code lack."""
    sources = {rule.sources for rule in extra}
    return (*(rule for rule in rules if rule.sources not in sources), *extra)


# ---- ViT and the classes copied from its code ---------------------------------------------------------------------

BLOCK = "encoder.layer.{i}"
BERT: Rules = (
    *both("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    *qkv(f"{BLOCK}.attention.attention.", ("query", "key", "value"), "blocks.{i}.attn"),
    *both(f"{BLOCK}.attention.output.dense", "blocks.{i}.attn.proj"),
    *both("layernorm", "norm"),
    replace(mask_token("embeddings.mask_token", 1, 1, "dim"), blank=None),
    drop("pooler.dense.weight"),  # a tanh layer on CLS that transformers adds; untrained in most checkpoints
    drop("pooler.dense.bias"),
)
_POOLER: Rules = (unused("pooler.dense.weight", "dim", "dim"), unused("pooler.dense.bias", "dim"))
MLP = layers(BLOCK, {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"})
NORMS = layers(BLOCK, {"layernorm_before": "norm1", "layernorm_after": "norm2"})
_CLS, _POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
_REGISTERS = Rule(
    ("embeddings.register_tokens",), ("reg_token",), blank=(1, "num_registers", "dim")
)  # present even if empty
_WITH_CLS: Rules = (Rule((_CLS, _POSITIONS), ("cls_token", "pos_embed.table"), FOLD_CLS),)

VIT: Rules = (*BERT, *MLP, *NORMS, *_WITH_CLS)
IJEPA: Rules = (*BERT, *MLP, *NORMS, Rule((_POSITIONS,), ("pos_embed.table",), UNBATCH))
DEIT: Rules = (
    *BERT,
    *MLP,
    *NORMS,
    Rule(
        (_CLS, "embeddings.distillation_token", _POSITIONS),
        ("cls_token", "reg_token", "pos_embed.table"),
        FOLD_DISTILLED,
    ),
)
DINOV2: Rules = (
    *_having((mask_token("embeddings.mask_token", 1, "dim"),), BERT),
    *_WITH_CLS,
    *layers(BLOCK, {name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}),
    *layers(BLOCK, {"mlp.weights_in": "mlp.w12", "mlp.weights_out": "mlp.w3"}),
    rename(f"{BLOCK}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma"),
    rename(f"{BLOCK}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma"),
)
DINOV2_WITH_REGISTERS: Rules = (*DINOV2, _REGISTERS)
_TABLE = "relative_position_bias.relative_position_bias_table"
_BEIT: Rules = (
    *BERT,
    *MLP,
    *NORMS,
    rename(f"{BLOCK}.lambda_1", "blocks.{i}.ls1.gamma"),
    rename(f"{BLOCK}.lambda_2", "blocks.{i}.ls2.gamma"),
    *both("pooler.layernorm", "fc_norm"),
)
# Two switches of BeitConfig: absolute positions, and one table of relative ones for all blocks
BEIT: dict[str, Rules] = {
    f"{absolute}{shared}": (*_BEIT, *positions, rename(table, "blocks.{i}.attn.rel_pos.table"))
    for absolute, positions in {"": (rename(_CLS, "cls_token"),), " absolute": _WITH_CLS}.items()
    for shared, table in {"": f"{BLOCK}.attention.attention.{_TABLE}", " shared": f"encoder.{_TABLE}"}.items()
}

# ---- DINOv3 -------------------------------------------------------------------------------------------------------

DINOV3: Rules = (
    *both("embeddings.patch_embeddings", "patch_embed.proj"),
    rename("embeddings.cls_token", "cls_token"),
    _REGISTERS,
    mask_token("embeddings.mask_token", 1, 1, "dim"),
    *qkv("layer.{i}.attention.", ("q_proj", "k_proj", "v_proj"), "blocks.{i}.attn"),
    *layers("layer.{i}", {"attention.o_proj": "attn.proj", "norm1": "norm1", "norm2": "norm2"}),
    rename("layer.{i}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma"),
    rename("layer.{i}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma"),
    *layers("layer.{i}", {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}),
    *gated("layer.{i}.mlp.gate_proj", "layer.{i}.mlp.up_proj", "blocks.{i}.mlp.w12"),
    *layers("layer.{i}", {"mlp.down_proj": "mlp.w3"}),
    *both("norm", "norm"),
)

# ---- CLIP and SigLIP ----------------------------------------------------------------------------------------------


def _clip_block(theirs: str) -> Rules:
    return (
        *qkv(f"{theirs}.self_attn.", ("q_proj", "k_proj", "v_proj"), "blocks.{i}.attn"),
        *layers(
            theirs,
            {
                "self_attn.out_proj": "attn.proj",
                "layer_norm1": "norm1",
                "layer_norm2": "norm2",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            },
        ),
    )


_CLIP_BLOCK: Rules = (*_clip_block("encoder.layers.{i}"), *both("post_layernorm", "norm"))
CLIP: Rules = (
    rename("embeddings.patch_embedding.weight", "patch_embed.proj.weight"),
    Rule(
        ("embeddings.class_embedding", "embeddings.position_embedding.weight"),
        ("cls_token", "pos_embed.table"),
        FOLD_FLAT,
    ),
    drop("embeddings.position_ids"),
    *both("pre_layrnorm", "norm_pre"),  # sic
    *read_only(both("pre_layernorm", "norm_pre")),  # OWL-ViT
    *_CLIP_BLOCK,
)
CLIP_PROJECTED: Rules = (*inside("vision_model.", CLIP), rename("visual_projection.weight", "projection.weight"))
_MAP = {"attention.out_proj": "proj", "layernorm": "norm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
SIGLIP: Rules = (
    *both("embeddings.patch_embedding", "patch_embed.proj"),
    rename("embeddings.position_embedding.weight", "pos_embed.table"),
    drop("embeddings.position_ids"),
    *_CLIP_BLOCK,
    rename("head.probe", "attn_pool.latent"),
    *(
        Rule((f"head.attention.in_proj_{kind}",), (f"attn_pool.q.{kind}", f"attn_pool.kv.{kind}"), UNSTACK_FIRST)
        for kind in ("weight", "bias")
    ),
    *(rule for theirs, ours in _MAP.items() for rule in both(f"head.{theirs}", f"attn_pool.{ours}")),
)

# ---- SAM ----------------------------------------------------------------------------------------------------------

SAM: Rules = (
    *both("patch_embed.projection", "patch_embed.proj"),
    Rule(("pos_embed",), ("pos_embed.table",), FLATTEN),
    *layers(
        "layers.{i}",
        {
            "layer_norm1": "norm1",
            "layer_norm2": "norm2",
            "attn.qkv": "attn.qkv",
            "attn.proj": "attn.proj",
            "mlp.lin1": "mlp.fc1",
            "mlp.lin2": "mlp.fc2",
        },
    ),
    rename("layers.{i}.attn.rel_pos_h", "blocks.{i}.attn.rel_pos.rows"),
    rename("layers.{i}.attn.rel_pos_w", "blocks.{i}.attn.rel_pos.columns"),
    rename("neck.conv1.weight", "neck.0.weight"),
    *both("neck.layer_norm1", "neck.1"),
    rename("neck.conv2.weight", "neck.2.weight"),
    *both("neck.layer_norm2", "neck.3"),
)


# ---- what is read -------------------------------------------------------------------------------------------------

_MIM_NORM = beside(both("layernorm", "norm"))  # BeitForMaskedImageModeling has its final norm beside the tower
TOWERS: dict[str, Rules] = {
    "hf_vit": (*VIT, *beside(CLASSIFIER)),
    # ViTMSNForImageClassification of transformers 5 writes its blocks beside the tower
    "hf_vit_msn": (*VIT, *beside((*(rule for rule in VIT if "{i}" in rule.sources[0]), *CLASSIFIER))),
    "hf_ijepa": (*IJEPA, *beside(CLASSIFIER)),
    "hf_deit": (
        *DEIT,
        *beside(CLASSIFIER),
        *beside(TEACHER),
    ),
    "hf_dinov2": (*DINOV2_WITH_REGISTERS, *beside(CLASSIFIER_OF_BOTH)),
    "hf_beit": (
        *BEIT[""],
        Rule((_CLS, _POSITIONS), ("cls_token", "pos_embed.table"), FOLD_CLS),
        rename(f"encoder.{_TABLE}", "blocks.{i}.attn.rel_pos.table"),
        *_MIM_NORM,
        *beside(CLASSIFIER),
    ),
    "hf_dinov3": DINOV3,
    "hf_clip": (
        *CLIP,
        *read_only(_clip_block("encoder.layer.{i}")),  # AltCLIP
        *beside((rename("visual_projection.weight", "projection.weight"), *CLASSIFIER)),
    ),
    "hf_siglip": (*SIGLIP, *beside(CLASSIFIER)),
    "hf_sam": SAM,
}

# ---- what is written ----------------------------------------------------------------------------------------------

CLASSES: dict[str, Rules] = {
    "ViTModel": _having(_POOLER, VIT),
    "ViTForImageClassification": (*inside("vit.", VIT), *CLASSIFIER),
    "ViTMAEModel": VIT,
    "ViTMAEForPreTraining": inside("vit.", VIT),
    "IJepaModel": IJEPA,
    "IJepaForImageClassification": (*inside("ijepa.", IJEPA), *CLASSIFIER),
    "DeiTModel": _having(_POOLER, DEIT),
    "DeiTForImageClassification": (*inside("deit.", DEIT), *CLASSIFIER),
    "DeiTForImageClassificationWithTeacher": (
        *inside("deit.", DEIT),
        *TEACHER,
    ),
    "Dinov2Model": DINOV2,
    "Dinov2ForImageClassification": (*inside("dinov2.", DINOV2), *CLASSIFIER_OF_BOTH),
    "Dinov2WithRegistersModel": DINOV2_WITH_REGISTERS,
    "Dinov2WithRegistersForImageClassification": (
        *inside("dinov2_with_registers.", DINOV2_WITH_REGISTERS),
        *CLASSIFIER_OF_BOTH,
    ),
    **{f"BeitModel{kind}": rules for kind, rules in BEIT.items()},
    **{f"BeitForImageClassification{kind}": (*inside("beit.", rules), *CLASSIFIER) for kind, rules in BEIT.items()},
    **{
        f"BeitForMaskedImageModeling{kind}": (
            *inside(
                "beit.",
                (
                    rule
                    for rule in rules
                    if not set(rule.targets) & {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"}
                ),
            ),
            *both("layernorm", "norm"),
        )
        for kind, rules in BEIT.items()
    },
    "DINOv3ViTModel": DINOV3,
    "CLIPVisionModel": CLIP,
    "CLIPVisionModelWithProjection": CLIP_PROJECTED,
    "CLIPModel": CLIP_PROJECTED,
    "SiglipVisionModel": SIGLIP,
    "SiglipModel": inside("vision_model.", SIGLIP),
    "SamVisionModel": inside("vision_encoder.", SAM),
    "SamModel": inside("vision_encoder.", SAM),
}
