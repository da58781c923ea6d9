"""The models known by name: configuration, key layout, preprocessing, resampling policies, source and licence.

Data only. Names are those people know: timm's, torch hub's for DINOv2's own files, and `hf:` with a Hugging Face
repository. Settings are those of timm's `pretrained_cfg` and of the repositories' own files.
"""

from dataclasses import dataclass, replace

from vitbackbone.config import Resampling, ViTConfig, vit_config
from vitbackbone.huggingface import ANTIALIASED, DEIT_EVAL, DINOV2_EVAL, PLAIN, VIT_EVAL
from vitbackbone.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocess

TIMM_RESAMPLING = ANTIALIASED  # of every family: timm/layers/pos_embed.py
DINO_RESAMPLING = Resampling("bicubic", antialias=False, offset=0.1)  # dino and dinov2, interpolate_pos_encoding


@dataclass(frozen=True)
class Entry:
    """One named model. `config.resampling` is the native policy: what the authors of the weights run."""

    config: ViTConfig
    format: str  # a key of formats.FORMATS
    preprocess: Preprocess
    licence: str
    source: str  # what to say where the weights come from: a Hub repository, or a URL for a download by hand
    hf: Resampling  # transformers' policy for this family
    on_hub: bool = True  # whether `source` is a Hub repository
    num_classes: int = 0  # of the head that comes with the weights

    @property
    def policies(self) -> dict[str, Resampling]:
        return {"native": self.config.resampling, "timm": TIMM_RESAMPLING, "hf": self.hf}


def _eval(side: int, crop_pct: float, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Preprocess:
    return Preprocess((side, side), crop_pct, "center", "bicubic", mean, std)


# ---- the built-in backbone; its card is weights/README.md ----------------------------------------------------------

NANO = Entry(
    config=ViTConfig(
        image_size=(32, 32),
        patch_size=4,
        dim=192,
        depth=5,
        num_heads=3,
        mlp_dim=768,
        stem=((64, 1), (64, 2), (128, 1), (128, 2), (192, 1)),
    ),
    format="native",
    preprocess=_eval(32, 1.0, IMAGENET_MEAN, IMAGENET_STD),
    licence="apache-2.0",
    source="built in",
    hf=PLAIN,
    on_hub=False,
)

# ---- ViT: "How to train your ViT?" (Steiner et al. 2022), in timm's files -----------------------------------------

#      name                                        variant  px   classes
_VIT = {
    "vit_tiny_patch16_224.augreg_in21k": ("Ti/16", 224, 21843),
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": ("Ti/16", 224, 1000),
    "vit_tiny_patch16_384.augreg_in21k_ft_in1k": ("Ti/16", 384, 1000),
    "vit_small_patch32_224.augreg_in21k": ("S/32", 224, 21843),
    "vit_small_patch32_224.augreg_in21k_ft_in1k": ("S/32", 224, 1000),
    "vit_small_patch16_224.augreg_in21k": ("S/16", 224, 21843),
    "vit_small_patch16_224.augreg_in21k_ft_in1k": ("S/16", 224, 1000),
    "vit_small_patch16_384.augreg_in21k_ft_in1k": ("S/16", 384, 1000),
    "vit_base_patch32_224.augreg_in21k": ("B/32", 224, 21843),
    "vit_base_patch32_224.augreg_in21k_ft_in1k": ("B/32", 224, 1000),
    "vit_base_patch16_224.augreg_in21k": ("B/16", 224, 21843),
    "vit_base_patch16_224.augreg_in21k_ft_in1k": ("B/16", 224, 1000),
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": ("B/16", 224, 1000),
    "vit_base_patch16_384.augreg_in21k_ft_in1k": ("B/16", 384, 1000),
    "vit_base_patch8_224.augreg_in21k": ("B/8", 224, 21843),
    "vit_base_patch8_224.augreg_in21k_ft_in1k": ("B/8", 224, 1000),
    "vit_large_patch16_224.augreg_in21k": ("L/16", 224, 21843),
    "vit_large_patch16_224.augreg_in21k_ft_in1k": ("L/16", 224, 1000),
    "vit_large_patch16_384.augreg_in21k_ft_in1k": ("L/16", 384, 1000),
    "vit_huge_patch14_224.orig_in21k": ("H/14", 224, 0),
}


def _vit(name: str, variant: str, side: int, num_classes: int) -> Entry:
    config = vit_config(variant, side, resampling=TIMM_RESAMPLING)
    preprocess = _eval(side, 0.9 if side == 224 else 1.0, HALF, HALF)
    return Entry(config, "timm", preprocess, "apache-2.0", f"timm/{name}", PLAIN, num_classes=num_classes)


# ---- DeiT (Touvron et al. 2021), in timm's files ------------------------------------------------------------------

#      name                                  variant  px  distilled
_DEIT = {
    "deit_tiny_patch16_224.fb_in1k": ("Ti/16", 224, False),
    "deit_small_patch16_224.fb_in1k": ("S/16", 224, False),
    "deit_base_patch16_224.fb_in1k": ("B/16", 224, False),
    "deit_base_patch16_384.fb_in1k": ("B/16", 384, False),
    "deit_tiny_distilled_patch16_224.fb_in1k": ("Ti/16", 224, True),
    "deit_small_distilled_patch16_224.fb_in1k": ("S/16", 224, True),
    "deit_base_distilled_patch16_224.fb_in1k": ("B/16", 224, True),
    "deit_base_distilled_patch16_384.fb_in1k": ("B/16", 384, True),
}


def _deit(name: str, variant: str, side: int, distilled: bool) -> Entry:
    config = vit_config(variant, side, num_registers=int(distilled), resampling=PLAIN)  # deit, main.py
    preprocess = _eval(side, 0.9 if side == 224 else 1.0, IMAGENET_MEAN, IMAGENET_STD)
    layout = "timm_distilled" if distilled else "timm"
    return Entry(config, layout, preprocess, "apache-2.0", f"timm/{name}", PLAIN, num_classes=1000)


# ---- DINO (Caron et al. 2021), in timm's files --------------------------------------------------------------------

_DINO = {
    "vit_small_patch16_224.dino": "S/16",
    "vit_small_patch8_224.dino": "S/8",
    "vit_base_patch16_224.dino": "B/16",
    "vit_base_patch8_224.dino": "B/8",
}


def _dino(name: str, variant: str) -> Entry:
    config = vit_config(variant, resampling=DINO_RESAMPLING)
    return Entry(config, "timm", _eval(224, 0.9, IMAGENET_MEAN, IMAGENET_STD), "apache-2.0", f"timm/{name}", PLAIN)


# ---- DINOv2 (Oquab et al. 2023; registers: Darcet et al. 2023), in timm's and in the authors' files ---------------

#    name                                      size registers layout
_DINOV2_TIMM = {
    "vit_small_patch14_dinov2.lvd142m": ("S", 0, "timm"),
    "vit_base_patch14_dinov2.lvd142m": ("B", 0, "timm"),
    "vit_large_patch14_dinov2.lvd142m": ("L", 0, "timm"),
    "vit_giant_patch14_dinov2.lvd142m": ("g", 0, "timm"),
    "vit_small_patch14_reg4_dinov2.lvd142m": ("S", 4, "timm_registers"),
    "vit_base_patch14_reg4_dinov2.lvd142m": ("B", 4, "timm_registers"),
    "vit_large_patch14_reg4_dinov2.lvd142m": ("L", 4, "timm_registers"),
    "vit_giant_patch14_reg4_dinov2.lvd142m": ("g", 4, "timm_registers"),
}
#    name                size registers file
_DINOV2_AUTHORS = {
    "dinov2_vits14": ("S", 0, "dinov2_vits14/dinov2_vits14_pretrain.pth"),
    "dinov2_vitb14": ("B", 0, "dinov2_vitb14/dinov2_vitb14_pretrain.pth"),
    "dinov2_vitl14": ("L", 0, "dinov2_vitl14/dinov2_vitl14_pretrain.pth"),
    "dinov2_vitg14": ("g", 0, "dinov2_vitg14/dinov2_vitg14_pretrain.pth"),
    "dinov2_vits14_reg": ("S", 4, "dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"),
    "dinov2_vitb14_reg": ("B", 4, "dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"),
    "dinov2_vitl14_reg": ("L", 4, "dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth"),
    "dinov2_vitg14_reg": ("g", 4, "dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"),
}
_GIANT = ViTConfig((518, 518), 14, dim=1536, depth=40, num_heads=24, mlp="swiglu", mlp_dim=4096, layer_scale=True)


def _dinov2_config(size: str, registers: int, resampling: Resampling) -> ViTConfig:
    base = _GIANT if size == "g" else vit_config(f"{size}/14", 518, layer_scale=True)
    return replace(base, num_registers=registers, resampling=resampling)


def _dinov2(size: str, registers: int, layout: str, source: str, on_hub: bool) -> Entry:
    config = _dinov2_config(size, registers, ANTIALIASED if registers else DINO_RESAMPLING)
    hf = ANTIALIASED if registers else PLAIN
    return Entry(config, layout, _eval(518, 1.0, IMAGENET_MEAN, IMAGENET_STD), "apache-2.0", source, hf, on_hub)


# ---- Hugging Face repositories. Any other of a known model type loads too; these are known without a network ------

#    name                                         variant px  architecture                classes processor
_HF_VIT = {
    "google/vit-base-patch16-224": ("B/16", 224, "ViTForImageClassification", 1000),
    "google/vit-base-patch16-224-in21k": ("B/16", 224, "ViTModel", 0),
    "google/vit-base-patch16-384": ("B/16", 384, "ViTForImageClassification", 1000),
    "google/vit-large-patch16-224": ("L/16", 224, "ViTForImageClassification", 1000),
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


def _hf_vit(name: str, variant: str, side: int, architecture: str, num_classes: int) -> Entry:
    config = vit_config(variant, side, norm_eps=1e-12, resampling=PLAIN)
    preprocess = replace(VIT_EVAL, image_size=(side, side))
    return Entry(config, architecture, preprocess, "apache-2.0", name, PLAIN, num_classes=num_classes)


def _hf_deit(name: str, variant: str) -> Entry:
    config = vit_config(variant, norm_eps=1e-12, num_registers=1, resampling=PLAIN)
    layout = "DeiTForImageClassificationWithTeacher"
    return Entry(config, layout, DEIT_EVAL, "apache-2.0", name, PLAIN, num_classes=1000)


def _hf_dino(name: str, variant: str) -> Entry:
    config = vit_config(variant, norm_eps=1e-12, resampling=PLAIN)
    preprocess = replace(VIT_EVAL, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Entry(config, "ViTModel", preprocess, "apache-2.0", name, PLAIN)


def _hf_dinov2(name: str, size: str, registers: int) -> Entry:
    policy = ANTIALIASED if registers else PLAIN
    architecture = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
    return Entry(_dinov2_config(size, registers, policy), architecture, DINOV2_EVAL, "apache-2.0", name, policy)


DINOV2_FILES = "https://dl.fbaipublicfiles.com/dinov2"

ZOO: dict[str, Entry] = {
    "nano": NANO,
    **{name: _vit(name, *row) for name, row in _VIT.items()},
    **{name: _deit(name, *row) for name, row in _DEIT.items()},
    **{name: _dino(name, variant) for name, variant in _DINO.items()},
    **{name: _dinov2(*row, f"timm/{name}", on_hub=True) for name, row in _DINOV2_TIMM.items()},
    **{
        name: _dinov2(size, registers, "dinov2", f"{DINOV2_FILES}/{file}", on_hub=False)
        for name, (size, registers, file) in _DINOV2_AUTHORS.items()
    },
    **{f"hf:{name}": _hf_vit(name, *row) for name, row in _HF_VIT.items()},
    **{f"hf:{name}": _hf_deit(name, variant) for name, variant in _HF_DEIT.items()},
    **{f"hf:{name}": _hf_dino(name, variant) for name, variant in _HF_DINO.items()},
    **{f"hf:{name}": _hf_dinov2(name, *row) for name, row in _HF_DINOV2.items()},
}
