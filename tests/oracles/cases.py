"""The upstreams as oracles: models with every parameter randomised, what they return, and how far ours is from it.

A case is a row of a table. The tests hold every case to 1e-5, and `make parity` writes down what it measures.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from vitbackbone import BackboneModule, ViT, load_backbone
from vitbackbone.checkpoints.zoo import ZOO, Positions

Size = tuple[int, int]


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


LIMIT = 1e-5  # largest error that a test accepts


def check_parity(case: Case, folder: Path, sizes: Sequence[Size] | None = None) -> BackboneModule:
    """Save the case's model, load it, and compare both at each size. Return the loaded backbone."""
    model = case.model()
    case.save(model, folder)
    ours = case.load(folder, case.policy)
    for size in case.sizes if sizes is None else sizes:
        found = errors(ours, case, model, size, batch=2)
        assert max(found.values()) <= LIMIT, (size, found)
    return ours


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


def timm_layers(model: nn.Module, x: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """Return the tokens of each block without the final norm, those before the patches first."""
    prefixed = bool(getattr(model, "num_prefix_tokens", 0))
    options = {"return_prefix_tokens": True} if prefixed else {}
    found = model.forward_intermediates(x, indices=layers, norm=False, intermediates_only=True, **options)
    return {
        layer: torch.cat([part[1], part[0].flatten(2).mT], dim=1) if prefixed else part.flatten(2).mT
        for layer, part in zip(layers, found, strict=True)
    }


def run_timm(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    if isinstance(model, timm.models.Beit):
        model = copy.deepcopy(model)
        model.set_input_size(x.shape[-2:])
    raw = timm_layers(model, x, layers)
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
    raw = timm_layers(model, x, layers)
    last = model.forward_features(x)
    tokens = {"Swin": lambda: last.flatten(1, 2), "ResN": lambda: last.flatten(2).mT}
    tokens = tokens.get(type(model).__name__[:4], lambda: last)()
    return Outputs(tokens, raw, model.forward_head(last, pre_logits=True))


def adapted_case(name: str) -> Case:
    family, multiple, sizes = ADAPTED[name]
    load = functools.partial(load_timm, name)
    model = functools.partial(adapted_model, name)
    return Case(family, "timm", name, sizes, model, load, save_timm, run_adapted, "timm", multiple)


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

TIMM_CASES: list[Case] = [*map(timm_case, TIMM), *map(adapted_case, ADAPTED), MOCO_V3, OPENVLA]
