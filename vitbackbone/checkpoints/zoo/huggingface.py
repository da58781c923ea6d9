"""Hugging Face repositories that are known without a network. Any other of a known model type can be loaded too."""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface import (
    ANTIALIASED,
    CLIP_EVAL,
    DEIT_EVAL,
    DINOV2_EVAL,
    DINOV3_EVAL,
    PLAIN,
    SIGLIP_EVAL,
    VIT_EVAL,
)
from vitbackbone.checkpoints.zoo.entry import Entry
from vitbackbone.checkpoints.zoo.timm import clip_config, dinov2_config, dinov3_config, siglip_config
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import MlpKind, QkvBias, vit_config

#    name                                         variant px classes
_HF_VIT = {
    "google/vit-base-patch16-224": ("B/16", 224, 1000),
    "google/vit-base-patch16-224-in21k": ("B/16", 224, 0),
    "google/vit-base-patch16-384": ("B/16", 384, 1000),
    "google/vit-large-patch16-224": ("L/16", 224, 1000),
}
_HF_DEIT = {
    "facebook/deit-tiny-distilled-patch16-224": "Ti/16",
    "facebook/deit-small-distilled-patch16-224": "S/16",
    "facebook/deit-base-distilled-patch16-224": "B/16",
}
_HF_DINO = {
    "facebook/dino-vits16": "S/16",
    "facebook/dino-vits8": "S/8",
    "facebook/dino-vitb16": "B/16",
    "facebook/dino-vitb8": "B/8",
}
#    name                                        size registers
_HF_DINOV2 = {
    "facebook/dinov2-small": ("S", 0),
    "facebook/dinov2-base": ("B", 0),
    "facebook/dinov2-large": ("L", 0),
    "facebook/dinov2-giant": ("g", 0),
    "facebook/dinov2-with-registers-small": ("S", 4),
    "facebook/dinov2-with-registers-base": ("B", 4),
    "facebook/dinov2-with-registers-large": ("L", 4),
    "facebook/dinov2-with-registers-giant": ("g", 4),
}


def _hf_vit(name: str, variant: str, side: int, num_classes: int) -> Entry:
    config = vit_config(variant, side, norm_eps=1e-12, resampling=PLAIN)
    preprocess = replace(VIT_EVAL, image_size=(side, side))
    return Entry(config, "hf_vit", preprocess, "apache-2.0", name, PLAIN, num_classes=num_classes)


def _hf_deit(name: str, variant: str) -> Entry:
    config = vit_config(variant, norm_eps=1e-12, num_registers=1, resampling=PLAIN)
    return Entry(config, "hf_deit", DEIT_EVAL, "apache-2.0", name, PLAIN, num_classes=1000)


def _hf_dino(name: str, variant: str) -> Entry:
    config = vit_config(variant, norm_eps=1e-12, resampling=PLAIN)
    preprocess = replace(VIT_EVAL, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Entry(config, "hf_vit", preprocess, "apache-2.0", name, PLAIN)


def _hf_dinov2(name: str, size: str, registers: int) -> Entry:
    policy = ANTIALIASED if registers else PLAIN
    config = replace(dinov2_config(size, registers), resampling=policy)
    return Entry(config, "hf_dinov2", DINOV2_EVAL, "apache-2.0", name, policy)


_HF_DINOV3: dict[str, tuple[str, QkvBias]] = {
    "facebook/dinov3-vits16-pretrain-lvd1689m": ("S", "qv"),
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": ("S+", "qv"),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": ("B", "qv"),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": ("L", "qv"),
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": ("H+", "qv"),
    "facebook/dinov3-vit7b16-pretrain-lvd1689m": ("7B", "none"),
}
_HF_CLIP: dict[str, tuple[str, int, MlpKind, int]] = {
    "openai/clip-vit-base-patch32": ("B/32", 224, "quick_gelu", 512),
    "openai/clip-vit-base-patch16": ("B/16", 224, "quick_gelu", 512),
    "openai/clip-vit-large-patch14": ("L/14", 224, "quick_gelu", 768),
    "openai/clip-vit-large-patch14-336": ("L/14", 336, "quick_gelu", 768),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ("B/32", 224, "gelu", 512),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ("H/14", 224, "gelu", 1024),
}
_HF_SIGLIP = {
    "google/siglip-base-patch16-224": ("B/16", 224),
    "google/siglip-base-patch16-256": ("B/16", 256),
    "google/siglip-base-patch16-384": ("B/16", 384),
    "google/siglip-large-patch16-256": ("L/16", 256),
    "google/siglip-large-patch16-384": ("L/16", 384),
    "google/siglip-so400m-patch14-224": ("So/14", 224),
    "google/siglip-so400m-patch14-384": ("So/14", 384),
    "google/siglip2-base-patch16-224": ("B/16", 224),
    "google/siglip2-large-patch16-256": ("L/16", 256),
    "google/siglip2-so400m-patch14-224": ("So/14", 224),
    "google/siglip2-so400m-patch14-384": ("So/14", 384),
    "google/siglip2-so400m-patch16-384": ("So/16", 384),
}


def _hf_dinov3(name: str, size: str, qkv_bias: QkvBias) -> Entry:
    config = replace(dinov3_config(size, qkv_bias, rounded=False), image_size=(224, 224), resampling=PLAIN)
    return Entry(config, "hf_dinov3", DINOV3_EVAL, "dinov3-license", name)


def _hf_clip(name: str, variant: str, side: int, mlp: MlpKind, projection_dim: int) -> Entry:
    config = replace(clip_config(variant, side, mlp, projection_dim), resampling=PLAIN)
    return Entry(config, "hf_clip", replace(CLIP_EVAL, image_size=(side, side)), "mit", name)


def _hf_siglip(name: str, variant: str, side: int) -> Entry:
    preprocess = replace(SIGLIP_EVAL, image_size=(side, side)).in_patches(int(variant.partition("/")[2]))
    config = replace(siglip_config(variant, preprocess.image_size[0], "gelu_tanh"), resampling=PLAIN)
    return Entry(config, "hf_siglip", preprocess, "apache-2.0", name)


HUGGING_FACE: dict[str, Entry] = {
    **{f"hf:{name}": _hf_vit(name, *row) for name, row in _HF_VIT.items()},
    **{f"hf:{name}": _hf_deit(name, variant) for name, variant in _HF_DEIT.items()},
    **{f"hf:{name}": _hf_dino(name, variant) for name, variant in _HF_DINO.items()},
    **{f"hf:{name}": _hf_dinov2(name, *row) for name, row in _HF_DINOV2.items()},
    **{f"hf:{name}": _hf_dinov3(name, *row) for name, row in _HF_DINOV3.items()},
    **{f"hf:{name}": _hf_clip(name, *row) for name, row in _HF_CLIP.items()},
    **{f"hf:{name}": _hf_siglip(name, *row) for name, row in _HF_SIGLIP.items()},
}
