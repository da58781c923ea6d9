"""The upstreams as oracles: models with every parameter randomised, what they return, and how far ours is from it.

A case is a row of a table. The tests hold every case to 1e-5, and `make parity` writes down what it measures.
"""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from safetensors.torch import save_file
from scipy.interpolate import RectBivariateSpline
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from vitbackbone import BackboneModule, ViT, load_backbone
from vitbackbone.checkpoints.zoo import ZOO, Positions

Size = tuple[int, int]


transformers.utils.logging.disable_progress_bar()


def images(size: Size, batch: int = 1, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(size[0] * 1000 + size[1]))


@dataclass(frozen=True)
class Outputs:
    """Features of images by an upstream library: tokens (B, prefix + N, D), row-major."""

    tokens: Tensor  # the last layer, with the final norm on every token where there is one
    layers: dict[int, Tensor]  # without that norm
    pooled: Tensor
    neck: Tensor | None = None  # (B, C, h, w), SAM's


@dataclass(frozen=True)
class Case:
    family: str
    upstream: str
    name: str
    sizes: tuple[Size, ...]  # native, another square, not square, not divided by the patch, one patch wide
    model: Callable[[], nn.Module]
    load: Callable[[Path, Positions], BackboneModule]
    save: Callable[[nn.Module, Path], None]
    run: Callable[[nn.Module, Tensor, list[int]], Outputs]
    policy: Positions  # the one that is the upstream's
    multiple: int  # of pixels that both sides pad to
    channels: int = 3


def errors(ours: BackboneModule, case: Case, theirs: nn.Module, size: Size, batch: int = 1) -> dict[str, float]:
    """max |a - b| / max |b| of every part that the model has; of the layers, the largest of any."""
    spec = ours.spec
    layers = list(range(spec.depth))
    x = images(size, batch, case.channels)
    with torch.inference_mode():
        want = case.run(theirs, F.pad(x, (0, -size[1] % case.multiple, 0, -size[0] % case.multiple)), layers)
        got = ours(x)
        raw = ours.forward_layers(x, layers, norm=False)
        found = {
            "patches": relative_error(got.tokens, want.tokens[:, spec.num_prefix :]),
            "layers": max(
                relative_error(features.tokens, want.layers[layer][:, spec.num_prefix :])
                for layer, features in zip(layers, raw, strict=True)
                if layer in want.layers
            ),
            "pooled": relative_error(got.pooled, want.pooled),
        }
        if got.cls is not None:
            found["cls"] = relative_error(got.cls, want.tokens[:, 0])
        if spec.num_registers:
            found["registers"] = relative_error(got.registers, want.tokens[:, 1 : spec.num_prefix])
        if want.neck is not None and isinstance(ours, ViT) and ours.neck is not None:
            found["neck"] = relative_error(ours.neck(got.patches), want.neck)
    return found


# ---- timm ---------------------------------------------------------------------------------------------------------

# native, another square, not square, not divided by the patch, one patch wide
P16: tuple[Size, ...] = ((224, 224), (384, 384), (160, 352), (230, 301), (272, 16))
P32: tuple[Size, ...] = ((224, 224), (384, 384), (160, 352), (230, 301), (288, 32))
P14: tuple[Size, ...] = ((518, 518), (224, 224), (168, 350), (231, 300), (238, 14))
EVA: tuple[Size, ...] = ((224, 224), (336, 336), (168, 350), (231, 300), (238, 14))
DINOV3: tuple[Size, ...] = ((256, 256), (224, 224), (160, 352), (230, 301), (272, 16))

TIMM: dict[str, tuple[str, tuple[Size, ...]]] = {
    "vit_tiny_patch16_224.augreg_in21k": ("ViT", P16),
    "vit_small_patch32_224.augreg_in21k_ft_in1k": ("ViT", P32),
    "vit_tiny_patch16_384.augreg_in21k_ft_in1k": ("ViT", ((384, 384), (224, 224), (160, 352), (230, 301))),
    "deit_tiny_patch16_224.fb_in1k": ("DeiT", P16),
    "deit_tiny_distilled_patch16_224.fb_in1k": ("DeiT, distilled", P16),
    "deit3_small_patch16_224.fb_in1k": ("DeiT III", P16),
    "beit_base_patch16_224.in22k_ft_in22k_in1k": ("BEiT", P16),
    "beitv2_base_patch16_224.in1k_ft_in1k": ("BEiT v2", P16),
    "vit_base_patch16_224.mae": ("MAE", P16),
    "vit_small_patch16_224.dino": ("DINO", P16),
    "vit_small_patch14_dinov2.lvd142m": ("DINOv2", P14),
    "vit_small_patch14_reg4_dinov2.lvd142m": ("DINOv2 with registers", P14),
    "vit_small_patch16_dinov3.lvd1689m": ("DINOv3", DINOV3),
    "vit_small_plus_patch16_dinov3_qkvb.lvd1689m": ("DINOv3, SwiGLU", DINOV3),
    "vit_base_patch32_clip_quickgelu_224.openai": ("CLIP, OpenAI", P32),
    "vit_base_patch32_clip_224.laion2b": ("CLIP, OpenCLIP", P32),
    "vit_base_patch16_siglip_224.webli": ("SigLIP", P16),
    "vit_base_patch32_siglip_256.v2_webli": ("SigLIP 2", ((256, 256), (384, 384), (160, 352), (230, 301))),
    "vit_base_patch14_reg1_tipsv2.webli": ("TIPSv2", ((448, 448), (224, 224), (168, 350), (231, 300), (238, 14))),
    "eva02_tiny_patch14_224.mim_in22k": ("EVA-02", EVA),
    "eva02_base_patch14_224.mim_in22k": ("EVA-02, norm in the MLP", EVA),
    "samvit_base_patch16.sa1b": ("SAM", ((1024, 1024), (512, 512), (224, 416), (230, 301), (272, 16))),
}


@functools.lru_cache(maxsize=2)
def timm_model(name: str) -> nn.Module:
    config = ZOO[name].config
    architecture = name.split(".")[0]
    flexible = {"dynamic_img_size": True}
    options = {
        "timm_beit": {},  # takes a new size by `set_input_size`
        "timm_sam": {},  # takes any
    }.get(ZOO[name].format, flexible)
    classes = config.projection_dim or ZOO[name].num_classes
    return randomise(timm.create_model(architecture, pretrained=False, num_classes=classes, **options))


def save_timm(model: nn.Module, folder: Path) -> None:
    save_file(model.state_dict(), folder / "model.safetensors")


def run_timm(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    if isinstance(model, timm.models.Beit):
        model = copy.deepcopy(model)
        model.set_input_size(x.shape[-2:])
    prefixed = bool(getattr(model, "num_prefix_tokens", 0))
    options = {"return_prefix_tokens": True} if prefixed else {}
    found = model.forward_intermediates(x, indices=layers, norm=False, intermediates_only=True, **options)
    raw = {
        layer: torch.cat([part[1], part[0].flatten(2).mT], dim=1) if prefixed else part.flatten(2).mT
        for layer, part in zip(layers, found, strict=True)
    }
    last = model.forward_features(x)
    if isinstance(model, timm.models.VisionTransformerSAM):
        return Outputs(raw[max(layers)], raw, model.forward_head(last, pre_logits=True), neck=last)
    clip = isinstance(model, timm.models.VisionTransformer) and not isinstance(model.norm_pre, nn.Identity)
    return Outputs(last, raw, model.forward_head(last, pre_logits=not clip))  # CLIP's projection is timm's head


def timm_case(name: str) -> Case:
    family, sizes = TIMM[name]

    patch = ZOO[name].config.patch_size
    model = functools.partial(timm_model, name)
    return Case(
        family, "timm", name, sizes, model, functools.partial(load_timm, name), save_timm, run_timm, "timm", patch
    )


def load_timm(name: str, folder: Path, positions: Positions) -> BackboneModule:
    return load_backbone(name, weights=folder / "model.safetensors", positions=positions)


# ---- timm, through the adapter ------------------------------------------------------------------------------------

#    timm's name                                family          multiple, sizes
ADAPTED: dict[str, tuple[str, int, tuple[Size, ...]]] = {
    "swin_tiny_patch4_window7_224.ms_in1k": ("Swin", 4, P16),
    "swinv2_tiny_window8_256.ms_in1k": ("Swin V2", 4, ((256, 256), (384, 384), (160, 352), (230, 301))),
    "vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k": ("hybrid of ResNet and ViT", 32, P16),
    "vit_small_r26_s32_224.augreg_in21k_ft_in1k": ("hybrid of ResNet and ViT", 32, P16),
    "resnet50.a1_in1k": ("ResNet-50", 1, P16),
}
FLEXIBLE = {"swin": {"strict_img_size": False}, "swinv2": {"strict_img_size": False}, "vit": {"dynamic_img_size": True}}


def adapted_model(name: str) -> nn.Module:
    options = FLEXIBLE.get(name.split("_")[0], {})
    return randomise(timm.create_model(name.split(".")[0], pretrained=False, num_classes=0, **options))


def run_adapted(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    prefixed = bool(getattr(model, "num_prefix_tokens", 0))
    options = {"return_prefix_tokens": True} if prefixed else {}
    found = model.forward_intermediates(x, indices=layers, norm=False, intermediates_only=True, **options)
    raw = {
        layer: torch.cat([part[1], part[0].flatten(2).mT], dim=1) if prefixed else part.flatten(2).mT
        for layer, part in zip(layers, found, strict=True)
    }
    last = model.forward_features(x)
    tokens = {"Swin": lambda: last.flatten(1, 2), "ResN": lambda: last.flatten(2).mT}
    tokens = tokens.get(type(model).__name__[:4], lambda: last)()
    return Outputs(tokens, raw, model.forward_head(last, pre_logits=True))


def adapted_case(name: str) -> Case:
    family, multiple, sizes = ADAPTED[name]
    load = functools.partial(load_timm, name)
    model = functools.partial(adapted_model, name)
    return Case(family, "timm", name, sizes, model, load, save_timm, run_adapted, "timm", multiple)


# ---- transformers -------------------------------------------------------------------------------------------------

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


# ---- authors' own files of models that timm has no name for -------------------------------------------------------


def moco_v3_model() -> nn.Module:
    return randomise(timm.create_model("vit_small_patch16_224", num_heads=12, num_classes=0, dynamic_img_size=True))


def save_moco_v3(model: nn.Module, folder: Path) -> None:
    state = {f"module.base_encoder.{key}": value for key, value in model.state_dict().items()}
    extra = ("base_encoder.head.0.weight", "momentum_encoder.norm.weight", "predictor.0.weight")
    save_file(state | {f"module.{key}": torch.zeros(2) for key in extra}, folder / "model.safetensors")


MOCO_V3 = Case(
    "MoCo v3",
    "timm",
    "moco_v3_vit_small",
    P16,
    moco_v3_model,
    functools.partial(load_timm, "moco_v3_vit_small"),
    save_moco_v3,
    run_timm,
    policy="timm",
    multiple=16,
)


# ---- OpenVLA's two encoders as one --------------------------------------------------------------------------------

PARTS = {
    "vision_backbone.featurizer.": "vit_large_patch14_reg4_dinov2",
    "vision_backbone.fused_featurizer.": "vit_so400m_patch14_siglip_224",
}


def openvla_models() -> nn.Module:
    options = {"pretrained": False, "img_size": 224, "num_classes": 0, "dynamic_img_size": True}
    return nn.ModuleList(
        randomise(timm.create_model(name, **options), seed) for seed, name in enumerate(PARTS.values())
    )


def save_openvla(models: nn.Module, folder: Path) -> None:
    """As OpenVLA keeps them: LayerScale by another name."""
    state = {
        part + key.replace("ls1.gamma", "ls1.scale_factor").replace("ls2.gamma", "ls2.scale_factor"): value
        for part, model in zip(PARTS, models, strict=True)
        for key, value in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")


def run_openvla(models: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """The second-to-last block of each without a final norm, as prismatic-vlms takes them."""
    parts = [
        model.get_intermediate_layers(picture, n={len(model.blocks) - 2})[0]
        for model, picture in zip(models, x.split(3, dim=1), strict=True)
    ]
    tokens = torch.cat(parts, dim=2)
    return Outputs(tokens, {0: tokens}, tokens.mean(dim=1))


OPENVLA = Case(
    "OpenVLA's DINOv2 + SigLIP",
    "timm",
    "openvla",
    ((224, 224), (336, 336), (168, 350), (231, 300)),
    openvla_models,
    functools.partial(load_timm, "openvla"),
    save_openvla,
    run_openvla,
    policy="timm",
    multiple=14,
    channels=6,
)

CASES: list[Case] = [*map(timm_case, TIMM), *map(adapted_case, ADAPTED), MOCO_V3, OPENVLA, *map(hf_case, HF)]


# ---- resampling policies ------------------------------------------------------------------------------------------
#
# The oracle is timm at the new size, its tables resampled beforehand by the formula of the implementation.

Formula = Callable[[Tensor, tuple[int, int]], Tensor]  # (1, D, h, w) and the new grid
ABSOLUTE: dict[str, Formula] = {
    "dino, dinov2": lambda t, g: F.interpolate(
        t, scale_factor=((g[0] + 0.1) / t.shape[2], (g[1] + 0.1) / t.shape[3]), mode="bicubic"
    ),
    "size": lambda t, g: F.interpolate(t, size=g, mode="bicubic", align_corners=False),
    "antialiased": lambda t, g: F.interpolate(t, size=g, mode="bicubic", align_corners=False, antialias=True),
    "bilinear, antialiased": lambda t, g: F.interpolate(t, size=g, mode="bilinear", antialias=True),
}
#    timm's name                                    native          hf
POLICIES = {
    "vit_tiny_patch16_224.augreg_in21k": ("antialiased", "size"),
    "deit_tiny_patch16_224.fb_in1k": ("size", "size"),
    "deit_tiny_distilled_patch16_224.fb_in1k": ("size", "size"),
    "deit3_small_patch16_224.fb_in1k": ("size", "size"),
    "vit_base_patch16_224.mae": ("size", "size"),
    "vit_small_patch16_224.dino": ("dino, dinov2", "size"),
    "vit_small_patch14_dinov2.lvd142m": ("dino, dinov2", "size"),
    "vit_small_patch14_reg4_dinov2.lvd142m": ("antialiased", "antialiased"),
    "vit_base_patch14_reg1_tipsv2.webli": ("bilinear, antialiased", "bilinear, antialiased"),
    "vit_base_patch32_clip_quickgelu_224.openai": ("antialiased", "size"),
    "vit_base_patch16_siglip_224.webli": ("antialiased", "size"),
    "eva02_tiny_patch14_224.mim_in22k": ("size", "size"),
    "beit_base_patch16_224.in22k_ft_in22k_in1k": ("spline", "bilinear"),
}


def spline(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """BEiT's: (2H-1, 2W-1) places in geometric progression, a bicubic spline through them."""

    def places(old: int, new: int) -> np.ndarray:
        low, high = 1.01, 1.5
        while high - low > 1e-6:
            q = (low + high) / 2
            low, high = (low, q) if sum(q**i for i in range(old // 2)) > new // 2 else (q, high)
        side = np.cumsum([q**i for i in range(old // 2)])
        return np.concatenate([-side[::-1], [0], side])

    old = [round(math.sqrt(len(table) - 3))] * 2
    new = [2 * side - 1 for side in grid]
    y, x = (places(a, b) for a, b in zip(old, new, strict=True))
    at = [np.arange(-(side // 2), side // 2 + 1) for side in new]
    maps = [RectBivariateSpline(y, x, column.reshape(old).numpy())(*at) for column in table[:-3].T]
    return torch.cat([torch.tensor(np.stack(maps, -1).reshape(-1, table.shape[1])).float(), table[-3:]])


def bilinear(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """transformers': (2H-1, 2W-1) evenly spaced places."""
    side = round(math.sqrt(len(table) - 3))
    body = table[:-3].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    body = F.interpolate(body, size=[2 * s - 1 for s in grid], mode="bilinear")
    return torch.cat([body.permute(0, 2, 3, 1).flatten(0, 2), table[-3:]])


def timm_at(name: str, size: tuple[int, int], formula: str) -> nn.Module:
    """timm's model for one size, its tables by a formula."""
    model = timm_model(name)
    state = dict(model.state_dict())
    patch = ZOO[name].config.patch_size
    grid = (size[0] // patch, size[1] // patch)
    if "pos_embed" in state:
        table = state["pos_embed"]
        prefix = table.shape[1] - math.isqrt(table.shape[1]) ** 2
        side = math.isqrt(table.shape[1])
        body = table[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        body = ABSOLUTE[formula](body, grid).permute(0, 2, 3, 1).flatten(1, 2)
        state["pos_embed"] = torch.cat([table[:, :prefix], body], dim=1)
    for key in [key for key in state if key.endswith("relative_position_bias_table")]:
        state[key] = {"spline": spline, "bilinear": bilinear}[formula](state[key], grid)
    classes = ZOO[name].config.projection_dim or ZOO[name].num_classes
    at = timm.create_model(name.split(".")[0], pretrained=False, img_size=size, num_classes=classes)
    at.load_state_dict(state)
    return at.eval()
