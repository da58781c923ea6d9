"""The checkpoint formats, as tables: which key of a file becomes which parameter of `ViT`.

A head's parameters come out under `head.` and `head_dist.`; they are no part of a backbone, and `load_checkpoint`
hands them on. Sources: timm/models/vision_transformer.py and deit.py, facebookresearch/dinov2
models/vision_transformer.py, and the `save_pretrained` layout of transformers (v5 still writes the v4 names).
"""

import torch
from torch import Tensor

from vitbackbone.convert import Rule, both, drop, rename

Rules = tuple[Rule, ...]


# ---- what a rule may do to tensors --------------------------------------------------------------------------------


def fold_cls(cls: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
    """(1, 1, D) and (1, 1 + N, D): the position of CLS goes into the token."""
    return cls + positions[:, :1], positions[0, 1:]


def fold_cls_and_distillation(cls: Tensor, distillation: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
    """The same with (1, 2 + N, D), whose second position belongs to DeiT's distillation token."""
    return cls + positions[:, :1], distillation + positions[:, 1:2], positions[0, 2:]


def first_of_batch(positions: Tensor) -> tuple[Tensor, ...]:
    """(1, N, D) to (N, D)."""
    return (positions[0],)


def stack_rows(*parts: Tensor) -> tuple[Tensor, ...]:
    """Linear layers that read the same input, as one: q, k and v; gate and value."""
    return (torch.cat(parts),)


FOLD_CLS = Rule(("cls_token", "pos_embed"), ("cls_token", "pos_embed.table"), fold_cls)

# ---- timm, whose names are ours -----------------------------------------------------------------------------------

_TIMM: Rules = (
    *both("patch_embed.proj", "patch_embed.proj"),
    *both("blocks.{i}.norm1", "blocks.{i}.norm1"),
    *both("blocks.{i}.attn.qkv", "blocks.{i}.attn.qkv"),
    *both("blocks.{i}.attn.proj", "blocks.{i}.attn.proj"),
    rename("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma"),
    *both("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *both("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
    *both("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
    rename("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma"),
    *both("norm", "norm"),
    *both("fc_norm", "fc_norm"),
    *both("head", "head"),
)

TIMM: Rules = (*_TIMM, FOLD_CLS)

TIMM_DISTILLED: Rules = (
    *_TIMM,
    Rule(
        ("cls_token", "dist_token", "pos_embed"),
        ("cls_token", "reg_token", "pos_embed.table"),
        fold_cls_and_distillation,
    ),
    *both("head_dist", "head_dist"),
)

TIMM_REGISTERS: Rules = (
    *_TIMM,
    rename("cls_token", "cls_token"),
    rename("reg_token", "reg_token"),
    Rule(("pos_embed",), ("pos_embed.table",), first_of_batch),
)

# ---- this package's own files: every parameter under its name ------------------------------------------------------

NATIVE: Rules = (
    *_TIMM,
    rename("cls_token", "cls_token"),
    rename("reg_token", "reg_token"),
    rename("pos_embed.table", "pos_embed.table"),
    *both("patch_embed.convs.{i}", "patch_embed.convs.{i}"),
    rename("patch_embed.convs.{i}.running_mean", "patch_embed.convs.{i}.running_mean"),
    rename("patch_embed.convs.{i}.running_var", "patch_embed.convs.{i}.running_var"),
    rename("patch_embed.convs.{i}.num_batches_tracked", "patch_embed.convs.{i}.num_batches_tracked"),
)

# ---- the authors' own DINOv2 --------------------------------------------------------------------------------------

DINOV2: Rules = (
    *_TIMM,
    FOLD_CLS,
    drop("mask_token"),  # stands for masked patches in pretraining alone
    rename("register_tokens", "reg_token"),
    *both("blocks.{i}.mlp.w12", "blocks.{i}.mlp.fc1"),
    *both("blocks.{i}.mlp.w3", "blocks.{i}.mlp.fc2"),
)

# ---- Hugging Face -------------------------------------------------------------------------------------------------


def _hugging_face(prefix: str, *rules: Rule) -> Rules:
    """What the model types share. `prefix` is the attribute that holds the backbone inside of a classifier."""

    def inside(rule: Rule) -> Rule:
        return Rule(tuple(prefix + source for source in rule.sources), rule.targets, rule.via)

    block, attention = "encoder.layer.{i}", "encoder.layer.{i}.attention.attention"
    shared = (
        *both("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        *(
            Rule(
                tuple(f"{attention}.{part}.{kind}" for part in ("query", "key", "value")),
                (f"blocks.{{i}}.attn.qkv.{kind}",),
                stack_rows,
            )
            for kind in ("weight", "bias")
        ),
        *both(f"{block}.attention.output.dense", "blocks.{i}.attn.proj"),
        *both("layernorm", "norm"),
        drop("embeddings.mask_token"),  # stands for masked patches in pretraining alone
        drop("pooler.dense.weight"),  # a tanh layer on CLS that transformers adds; untrained in most checkpoints
        drop("pooler.dense.bias"),
    )
    return tuple(inside(rule) for rule in (*shared, *rules))


_HF_FOLD_CLS = Rule(
    ("embeddings.cls_token", "embeddings.position_embeddings"), ("cls_token", "pos_embed.table"), fold_cls
)
_HF_VIT_BLOCK = (
    *both("encoder.layer.{i}.layernorm_before", "blocks.{i}.norm1"),
    *both("encoder.layer.{i}.layernorm_after", "blocks.{i}.norm2"),
    *both("encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.fc1"),
    *both("encoder.layer.{i}.output.dense", "blocks.{i}.mlp.fc2"),
)
_HF_DEIT = (
    *_HF_VIT_BLOCK,
    Rule(
        ("embeddings.cls_token", "embeddings.distillation_token", "embeddings.position_embeddings"),
        ("cls_token", "reg_token", "pos_embed.table"),
        fold_cls_and_distillation,
    ),
)
_HF_DINOV2 = (
    _HF_FOLD_CLS,
    rename("embeddings.register_tokens", "reg_token"),
    *both("encoder.layer.{i}.norm1", "blocks.{i}.norm1"),
    *both("encoder.layer.{i}.norm2", "blocks.{i}.norm2"),
    rename("encoder.layer.{i}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma"),
    rename("encoder.layer.{i}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma"),
    *both("encoder.layer.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
    *both("encoder.layer.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
    *both("encoder.layer.{i}.mlp.weights_in", "blocks.{i}.mlp.fc1"),
    *both("encoder.layer.{i}.mlp.weights_out", "blocks.{i}.mlp.fc2"),
)
_CLASSIFIER = both("classifier", "head")

FORMATS: dict[str, Rules] = {
    "native": NATIVE,
    "timm": TIMM,
    "timm_distilled": TIMM_DISTILLED,
    "timm_registers": TIMM_REGISTERS,
    "dinov2": DINOV2,
    # Hugging Face names the layout in config.json, under `architectures`
    "ViTModel": _hugging_face("", *_HF_VIT_BLOCK, _HF_FOLD_CLS),
    "ViTForImageClassification": (*_hugging_face("vit.", *_HF_VIT_BLOCK, _HF_FOLD_CLS), *_CLASSIFIER),
    "DeiTModel": _hugging_face("", *_HF_DEIT),
    "DeiTForImageClassification": (*_hugging_face("deit.", *_HF_DEIT), *_CLASSIFIER),
    "DeiTForImageClassificationWithTeacher": (
        *_hugging_face("deit.", *_HF_DEIT),
        *both("cls_classifier", "head"),
        *both("distillation_classifier", "head_dist"),
    ),
    "Dinov2Model": _hugging_face("", *_HF_DINOV2),
    "Dinov2ForImageClassification": (*_hugging_face("dinov2.", *_HF_DINOV2), *_CLASSIFIER),
    "Dinov2WithRegistersModel": _hugging_face("", *_HF_DINOV2),
    "Dinov2WithRegistersForImageClassification": (
        *_hugging_face("dinov2_with_registers.", *_HF_DINOV2),
        *_CLASSIFIER,
    ),
}
