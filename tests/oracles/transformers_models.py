"""The models of transformers as oracles, by small configurations of their classes."""

import copy
import functools
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size
from vitbackbone import load_backbone

transformers.utils.logging.disable_progress_bar()

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 8, "image_size": 64}
MLP = {"intermediate_size": 96}
GATED = {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 4}
SHARED = {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}
SAM = {"output_channels": 16, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 96}
SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
HF_SIZES: tuple[Size, ...] = ((64, 64), (96, 96), (40, 88), (61, 43), (72, 8))
SWIN_SIZES: tuple[Size, ...] = ((64, 64), (96, 96), (72, 104), (101, 78))


@dataclass(frozen=True)
class HuggingFace:
    """A class of transformers, and a small configuration of it."""

    family: str
    config: str
    model: str
    settings: dict[str, object] = field(default_factory=dict)
    sizes: tuple[Size, ...] = HF_SIZES
    multiple: int = 8


HF: dict[str, HuggingFace] = {
    "vit": HuggingFace("ViT", "ViTConfig", "ViTModel", MLP),
    "vit without qkv bias": HuggingFace("ViT", "ViTConfig", "ViTModel", {**MLP, "qkv_bias": False}),
    "vit classifier": HuggingFace("ViT", "ViTConfig", "ViTForImageClassification", {**MLP, "num_labels": 7}),
    "deit": HuggingFace("DeiT", "DeiTConfig", "DeiTModel", MLP),
    "deit classifier": HuggingFace("DeiT", "DeiTConfig", "DeiTForImageClassification", {**MLP, "num_labels": 7}),
    "deit teacher": HuggingFace(
        "DeiT, distilled", "DeiTConfig", "DeiTForImageClassificationWithTeacher", {**MLP, "num_labels": 7}
    ),
    "beit": HuggingFace("BEiT", "BeitConfig", "BeitModel", {**MLP, "use_relative_position_bias": True}),
    "beit shared": HuggingFace("BEiT", "BeitConfig", "BeitForImageClassification", {**MLP, **SHARED, "num_labels": 7}),
    "beit cls": HuggingFace("BEiT", "BeitConfig", "BeitModel", {**MLP, "use_mean_pooling": False}),
    "mae": HuggingFace("MAE", "ViTMAEConfig", "ViTMAEModel", {**MLP, "mask_ratio": 0.0}),
    "ijepa": HuggingFace("I-JEPA", "IJepaConfig", "IJepaModel", MLP),
    "ijepa classifier": HuggingFace("I-JEPA", "IJepaConfig", "IJepaForImageClassification", {**MLP, "num_labels": 7}),
    "dinov2": HuggingFace("DINOv2", "Dinov2Config", "Dinov2Model"),
    "dinov2 swiglu": HuggingFace("DINOv2, SwiGLU", "Dinov2Config", "Dinov2Model", {"use_swiglu_ffn": True}),
    "dinov2 classifier": HuggingFace("DINOv2", "Dinov2Config", "Dinov2ForImageClassification", {"num_labels": 7}),
    "dinov2 registers": HuggingFace("DINOv2 with registers", "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "dinov2 registers classifier": HuggingFace(
        "DINOv2 with registers",
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        {"num_labels": 7},
    ),
    "dinov3": HuggingFace("DINOv3", "DINOv3ViTConfig", "DINOv3ViTModel", {**MLP, "num_register_tokens": 4}),
    "dinov3 without registers": HuggingFace("DINOv3", "DINOv3ViTConfig", "DINOv3ViTModel", {**MLP, "key_bias": True}),
    "dinov3 swiglu": HuggingFace("DINOv3, SwiGLU", "DINOv3ViTConfig", "DINOv3ViTModel", {**MLP, **GATED}),
    "clip": HuggingFace("CLIP", "CLIPVisionConfig", "CLIPVisionModel", MLP),
    "clip projected": HuggingFace(
        "CLIP", "CLIPVisionConfig", "CLIPVisionModelWithProjection", {**MLP, "hidden_act": "gelu"}
    ),
    "siglip": HuggingFace("SigLIP", "SiglipVisionConfig", "SiglipVisionModel", MLP),
    "swin": HuggingFace("Swin", "SwinConfig", "SwinModel", SWIN, SWIN_SIZES, 4),
    "swin classifier": HuggingFace(
        "Swin", "SwinConfig", "SwinForImageClassification", {**SWIN, "num_labels": 7}, SWIN_SIZES, 4
    ),
    "swinv2": HuggingFace("Swin V2", "Swinv2Config", "Swinv2Model", SWIN, SWIN_SIZES, 4),
    "swinv2 classifier": HuggingFace(
        "Swin V2", "Swinv2Config", "Swinv2ForImageClassification", {**SWIN, "num_labels": 7}, SWIN_SIZES, 4
    ),
    "sam": HuggingFace("SAM", "SamVisionConfig", "SamVisionModel", {**MLP, **SAM}, ((64, 64),)),  # its only size
}
FIXED_SIZE = ("Dinov2", "DINOv3", "Sam", "Swin")  # classes whose forward has no `interpolate_pos_encoding`


def hf_model(case: str) -> transformers.PreTrainedModel:
    row = HF[case]
    config = getattr(transformers, row.config)(**({"image_size": 64} if row.multiple == 4 else SMALL), **row.settings)
    return randomise(getattr(transformers, row.model)(config))


def run_hf(row: HuggingFace, model: transformers.PreTrainedModel, x: Tensor, layers: list[int]) -> Outputs:
    # In DINOv3 and SAM, what transformers calls the base model is a part of it.
    inner = model if row.model in ("DINOv3ViTModel", "SamVisionModel") else model.base_model
    if row.model == "CLIPVisionModelWithProjection":
        inner = model.vision_model
    options: dict[str, object] = {} if row.model.startswith(FIXED_SIZE) else {"interpolate_pos_encoding": True}
    if row.config == "ViTMAEConfig":  # it shuffles the patches by noise, unless that is in order
        patch = model.config.patch_size
        options["noise"] = torch.arange(x.shape[2] // patch * (x.shape[3] // patch)).float().expand(len(x), -1)
    if row.config.startswith("Swin"):  # it remembers having seen a small map, and shifts no window after
        inner = copy.deepcopy(inner)
    out = inner(pixel_values=x, output_hidden_states=True, **options)
    if row.config.startswith("Swin"):  # its hidden states have been made coarser for the next stage
        return Outputs(out.last_hidden_state, {max(layers): out.hidden_states[-1]}, out.pooler_output)
    tokens = out.last_hidden_state
    raw = {layer: out.hidden_states[layer + 1] for layer in layers}
    pooled = getattr(out, "pooler_output", None)
    if row.config == "SamVisionConfig":
        raw = {layer: states.flatten(1, 2) for layer, states in raw.items()}
        return Outputs(raw[max(layers)], raw, tokens.mean(dim=(2, 3)), neck=tokens)
    if row.config == "CLIPVisionConfig":  # transformers norms CLS alone; ours norms every token, as timm does
        tokens = inner.post_layernorm(tokens)
        if row.model.endswith("WithProjection"):
            pooled = model(pixel_values=x, **options).image_embeds
    if row.config == "IJepaConfig":
        pooled = tokens.mean(dim=1)
    if row.config in ("ViTConfig", "DeiTConfig", "ViTMAEConfig"):  # their pooler is a tanh layer of transformers' own
        pooled = tokens[:, 0]
    return Outputs(tokens, raw, pooled)


def hf_case(name: str) -> Case:
    row = HF[name]
    return Case(
        row.family,
        "transformers",
        name,
        row.sizes,
        functools.partial(hf_model, name),
        lambda folder, positions: load_backbone(folder, positions=positions),
        lambda model, folder: model.save_pretrained(folder),
        functools.partial(run_hf, row),
        policy="hf",
        multiple=row.multiple,
    )


HF_CASES: list[Case] = [*map(hf_case, HF)]
