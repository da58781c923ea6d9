"""The authors' own files, under the authors' names. All must be downloaded by hand."""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface import ANTIALIASED, PLAIN
from vitbackbone.checkpoints.zoo.entry import TIMM_RESAMPLING, Entry, evaluation
from vitbackbone.checkpoints.zoo.timm import (
    SIZE_OFFSET,
    beit_config,
    clip_config,
    dinov2_config,
    dinov3_config,
    mae_config,
    sam_config,
)
from vitbackbone.images import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import MlpKind, vit_config

# google-research/vision_transformer: ViT-B_16.npz and the like, pretrained on ImageNet-21k with the tanh head
_FLAX = {
    "ViT-B_16": "B/16",
    "ViT-B_32": "B/32",
    "ViT-L_16": "L/16",
    "ViT-L_32": "L/32",
    "ViT-H_14": "H/14",
}
_FLAX_FILES = "https://storage.googleapis.com/vit_models/imagenet21k"

_DINO = {
    "dino_vits16": ("S/16", "dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"),
    "dino_vits8": ("S/8", "dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth"),
    "dino_vitb16": ("B/16", "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"),
    "dino_vitb8": ("B/8", "dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth"),
}
_DINO_FILES = "https://dl.fbaipublicfiles.com/dino"

# facebookresearch/moco-v3, whose ViT-S has 12 heads
#    name                  variant  file
_MOCO_V3 = {
    "moco_v3_vit_small": ("S/16", "vit-s-300ep/vit-s-300ep.pth.tar"),
    "moco_v3_vit_base": ("B/16", "vit-b-300ep/vit-b-300ep.pth.tar"),
}
_MOCO_V3_FILES = "https://dl.fbaipublicfiles.com/moco-v3"

#    name                size registers file
_DINOV2 = {
    "dinov2_vits14": ("S", 0, "dinov2_vits14/dinov2_vits14_pretrain.pth"),
    "dinov2_vitb14": ("B", 0, "dinov2_vitb14/dinov2_vitb14_pretrain.pth"),
    "dinov2_vitl14": ("L", 0, "dinov2_vitl14/dinov2_vitl14_pretrain.pth"),
    "dinov2_vitg14": ("g", 0, "dinov2_vitg14/dinov2_vitg14_pretrain.pth"),
    "dinov2_vits14_reg": ("S", 4, "dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"),
    "dinov2_vitb14_reg": ("B", 4, "dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"),
    "dinov2_vitl14_reg": ("L", 4, "dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth"),
    "dinov2_vitg14_reg": ("g", 4, "dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"),
}
_DINOV2_FILES = "https://dl.fbaipublicfiles.com/dinov2"

_DINOV3 = {
    "dinov3_vits16": "S",
    "dinov3_vits16plus": "S+",
    "dinov3_vitb16": "B",
    "dinov3_vitl16": "L",
    "dinov3_vith16plus": "H+",
    "dinov3_vit7b16": "7B",
}

_MAE = {"mae_vit_base": "B/16", "mae_vit_large": "L/16", "mae_vit_huge": "H/14"}
_MAE_FILES = "https://dl.fbaipublicfiles.com/mae/pretrain"

#    name                                      variant  px crop classes
_BEIT = {
    "beit_base_patch16_224_pt22k_ft22k": ("B/16", 224, 0.9, 21841),
    "beit_base_patch16_224_pt22k_ft22kto1k": ("B/16", 224, 0.9, 1000),
    "beit_base_patch16_384_pt22k_ft22kto1k": ("B/16", 384, 1.0, 1000),
    "beit_large_patch16_224_pt22k_ft22k": ("L/16", 224, 0.9, 21841),
    "beit_large_patch16_224_pt22k_ft22kto1k": ("L/16", 224, 0.9, 1000),
    "beit_large_patch16_384_pt22k_ft22kto1k": ("L/16", 384, 1.0, 1000),
    "beit_large_patch16_512_pt22k_ft22kto1k": ("L/16", 512, 1.0, 1000),
}

# OpenAI's and OpenCLIP's state dicts, by OpenCLIP's names of model and pretraining
#    name                            variant  px   activation projection
_CLIP: dict[str, tuple[str, int, MlpKind, int]] = {
    "ViT-B-32.openai": ("B/32", 224, "quick_gelu", 512),
    "ViT-B-16.openai": ("B/16", 224, "quick_gelu", 512),
    "ViT-L-14.openai": ("L/14", 224, "quick_gelu", 768),
    "ViT-L-14-336.openai": ("L/14", 336, "quick_gelu", 768),
    "ViT-B-32.laion2b_s34b_b79k": ("B/32", 224, "gelu", 512),
    "ViT-B-16.laion2b_s34b_b88k": ("B/16", 224, "gelu", 512),
    "ViT-L-14.laion2b_s32b_b82k": ("L/14", 224, "gelu", 768),
    "ViT-H-14.laion2b_s32b_b79k": ("H/14", 224, "gelu", 1024),
}

_SAM = {
    "sam_vit_b": ("B/16", (2, 5, 8, 11), "sam_vit_b_01ec64.pth"),
    "sam_vit_l": ("L/16", (5, 11, 17, 23), "sam_vit_l_0b3195.pth"),
    "sam_vit_h": ("H/16", (7, 15, 23, 31), "sam_vit_h_4b8939.pth"),
}
_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"


def _flax(name: str, variant: str) -> Entry:
    config = vit_config(variant, resampling=TIMM_RESAMPLING)
    source = f"{_FLAX_FILES}/{name}.npz"
    preprocess = evaluation(224, 0.9, HALF, HALF)
    return Entry(config, "flax", preprocess, "apache-2.0", source, on_hub=False, num_classes=21843)


def _dino(variant: str, file: str) -> Entry:
    config = vit_config(variant, resampling=SIZE_OFFSET)
    preprocess = evaluation(224, 0.875, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(config, "dino", preprocess, "apache-2.0", f"{_DINO_FILES}/{file}", on_hub=False)


def _moco_v3(variant: str, file: str) -> Entry:
    config = vit_config(variant, num_heads=12, position="sincos2d", resampling=PLAIN)
    preprocess = evaluation(224, 0.875, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(config, "moco_v3", preprocess, "cc-by-nc-4.0", f"{_MOCO_V3_FILES}/{file}", on_hub=False)


def _dinov2(size: str, registers: int, file: str) -> Entry:
    config, source = dinov2_config(size, registers), f"{_DINOV2_FILES}/{file}"
    preprocess = evaluation(518, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(config, "dinov2", preprocess, "apache-2.0", source, ANTIALIASED if registers else PLAIN, on_hub=False)


def _dinov2_classifier(name: str, size: str, registers: int, file: str) -> Entry:
    """Return the same backbone with a linear layer that its authors trained on ImageNet-1k. They publish the layer as a
    separate file, and torch hub joins the two."""
    source = f"https://github.com/facebookresearch/dinov2, state_dict of {name}_lc(layers=1)"
    preprocess = evaluation(224, 0.875, IMAGENET_MEAN, IMAGENET_STD)
    backbone = _dinov2(size, registers, file)
    return replace(backbone, format="dinov2_classifier", preprocess=preprocess, source=source, num_classes=1000)


def _dinov3(size: str) -> Entry:
    config = dinov3_config(size, "none" if size == "7B" else "qv", rounded=True)
    preprocess = evaluation(256, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    source = "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads"
    return Entry(config, "dinov3", preprocess, "dinov3-license", source, on_hub=False)


def _mae(name: str, variant: str) -> Entry:
    source = f"{_MAE_FILES}/mae_pretrain_{name.removeprefix('mae_')}.pth"
    preprocess = evaluation(224, 0.875, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(mae_config(variant), "mae", preprocess, "cc-by-nc-4.0", source, on_hub=False)


def _beit(variant: str, side: int, crop: float, num_classes: int) -> Entry:
    source = "https://github.com/microsoft/unilm/tree/master/beit"
    preprocess = evaluation(side, crop, HALF, HALF)
    config = beit_config(variant, side)
    return Entry(config, "beit", preprocess, "mit", source, on_hub=False, num_classes=num_classes)


def _clip(name: str, variant: str, side: int, mlp: MlpKind, projection_dim: int) -> Entry:
    source = f"https://github.com/mlfoundations/open_clip, {name}"
    preprocess = evaluation(side, 1.0, CLIP_MEAN, CLIP_STD)
    return Entry(clip_config(variant, side, mlp, projection_dim), "clip", preprocess, "mit", source, on_hub=False)


def _sam(variant: str, global_blocks: tuple[int, ...], file: str) -> Entry:
    preprocess = replace(evaluation(1024, 1.0, IMAGENET_MEAN, IMAGENET_STD), interpolation="bilinear")
    config = sam_config(variant, global_blocks)
    return Entry(config, "sam", preprocess, "apache-2.0", f"{_SAM_FILES}/{file}", on_hub=False)


AUTHORS: dict[str, Entry] = {
    **{name: _flax(name, variant) for name, variant in _FLAX.items()},
    **{name: _dino(*row) for name, row in _DINO.items()},
    **{name: _moco_v3(*row) for name, row in _MOCO_V3.items()},
    **{name: _dinov2(*row) for name, row in _DINOV2.items()},
    **{f"{name}_lc": _dinov2_classifier(name, *row) for name, row in _DINOV2.items()},
    **{name: _dinov3(size) for name, size in _DINOV3.items()},
    **{name: _mae(name, variant) for name, variant in _MAE.items()},
    **{name: _beit(*row) for name, row in _BEIT.items()},
    **{name: _clip(name, *row) for name, row in _CLIP.items()},
    **{name: _sam(*row) for name, row in _SAM.items()},
}
