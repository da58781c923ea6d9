"""The models known by name: configuration, key layout, preprocessing, resampling policies, source and licence.

Data only. Names are those people know: timm's, torch hub's for DINOv2's own files, and `hf:` with a Hugging Face
repository. Settings are those of timm's `pretrained_cfg` and of the repositories' own files.
"""

from dataclasses import dataclass, replace

from vitbackbone.config import Resampling, ViTConfig, vit_config
from vitbackbone.huggingface import ANTIALIASED, MODEL_TYPES, PLAIN
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
    revision: str | None = None  # a commit of the repository; None is its newest

    @property
    def policies(self) -> dict[str, Resampling]:
        return {"native": self.config.resampling, "timm": TIMM_RESAMPLING, "hf": self.hf}


def _eval(side: int, crop_pct: float, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Preprocess:
    return Preprocess((side, side), crop_pct, "center", "bicubic", mean, std)


def _augreg(variant: str, side: int, num_classes: int, name: str) -> Entry:
    config = vit_config(variant, side, resampling=TIMM_RESAMPLING)
    preprocess = _eval(side, 0.9 if side == 224 else 1.0, HALF, HALF)
    return Entry(config, "timm", preprocess, "apache-2.0", f"timm/{name}", PLAIN, num_classes=num_classes)


def _deit(variant: str, side: int, distilled: bool, name: str) -> Entry:
    config = vit_config(variant, side, num_registers=int(distilled), resampling=PLAIN)
    preprocess = _eval(side, 0.9 if side == 224 else 1.0, IMAGENET_MEAN, IMAGENET_STD)
    layout = "timm_distilled" if distilled else "timm"
    return Entry(config, layout, preprocess, "apache-2.0", f"timm/{name}", PLAIN, num_classes=1000)


def _dino(variant: str, name: str) -> Entry:
    config = vit_config(variant, resampling=DINO_RESAMPLING)
    return Entry(config, "timm", _eval(224, 0.9, IMAGENET_MEAN, IMAGENET_STD), "apache-2.0", f"timm/{name}", PLAIN)


_GIANT = {"dim": 1536, "depth": 40, "num_heads": 24, "mlp": "swiglu", "mlp_dim": 4096}


def _dinov2_config(size: str, registers: int) -> ViTConfig:
    base = vit_config("B/14" if size == "g" else f"{size}/14", 518, layer_scale=True, num_registers=registers)
    policy = ANTIALIASED if registers else DINO_RESAMPLING
    return replace(base, resampling=policy, **(_GIANT if size == "g" else {}))


def _dinov2(size: str, registers: int, layout: str, source: str, on_hub: bool) -> Entry:
    hf = ANTIALIASED if registers else PLAIN
    preprocess = _eval(518, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(_dinov2_config(size, registers), layout, preprocess, "apache-2.0", source, hf, on_hub)


def _hugging_face(config: ViTConfig, model_type: str, layout: str, name: str, num_classes: int = 0) -> Entry:
    preprocess = MODEL_TYPES[model_type].preprocess
    return Entry(config, layout, preprocess, "apache-2.0", name, config.resampling, num_classes=num_classes)


_HF_VIT = {"norm_eps": 1e-12, "resampling": PLAIN}
_NANO = ViTConfig(
    image_size=(32, 32),
    patch_size=4,
    dim=192,
    depth=5,
    num_heads=3,
    mlp_dim=768,
    stem=((64, 1), (64, 2), (128, 1), (128, 2), (192, 1)),
)

ZOO: dict[str, Entry] = {
    "nano": Entry(_NANO, "native", _eval(32, 1.0, IMAGENET_MEAN, IMAGENET_STD), "apache-2.0", "built in", PLAIN, False),
    **{
        name: _augreg(variant, side, num_classes, name)
        for name, variant, side, num_classes in [
            ("vit_tiny_patch16_224.augreg_in21k", "Ti/16", 224, 21843),
            ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "Ti/16", 224, 1000),
            ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", "Ti/16", 384, 1000),
            ("vit_small_patch32_224.augreg_in21k", "S/32", 224, 21843),
            ("vit_small_patch32_224.augreg_in21k_ft_in1k", "S/32", 224, 1000),
            ("vit_small_patch16_224.augreg_in21k", "S/16", 224, 21843),
            ("vit_small_patch16_224.augreg_in21k_ft_in1k", "S/16", 224, 1000),
            ("vit_small_patch16_384.augreg_in21k_ft_in1k", "S/16", 384, 1000),
            ("vit_base_patch32_224.augreg_in21k", "B/32", 224, 21843),
            ("vit_base_patch32_224.augreg_in21k_ft_in1k", "B/32", 224, 1000),
            ("vit_base_patch16_224.augreg_in21k", "B/16", 224, 21843),
            ("vit_base_patch16_224.augreg_in21k_ft_in1k", "B/16", 224, 1000),
            ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "B/16", 224, 1000),
            ("vit_base_patch16_384.augreg_in21k_ft_in1k", "B/16", 384, 1000),
            ("vit_base_patch8_224.augreg_in21k", "B/8", 224, 21843),
            ("vit_base_patch8_224.augreg_in21k_ft_in1k", "B/8", 224, 1000),
            ("vit_large_patch16_224.augreg_in21k", "L/16", 224, 21843),
            ("vit_large_patch16_224.augreg_in21k_ft_in1k", "L/16", 224, 1000),
            ("vit_large_patch16_384.augreg_in21k_ft_in1k", "L/16", 384, 1000),
            ("vit_huge_patch14_224.orig_in21k", "H/14", 224, 0),
        ]
    },
    **{
        name: _deit(variant, side, distilled, name)
        for name, variant, side, distilled in [
            ("deit_tiny_patch16_224.fb_in1k", "Ti/16", 224, False),
            ("deit_small_patch16_224.fb_in1k", "S/16", 224, False),
            ("deit_base_patch16_224.fb_in1k", "B/16", 224, False),
            ("deit_base_patch16_384.fb_in1k", "B/16", 384, False),
            ("deit_tiny_distilled_patch16_224.fb_in1k", "Ti/16", 224, True),
            ("deit_small_distilled_patch16_224.fb_in1k", "S/16", 224, True),
            ("deit_base_distilled_patch16_224.fb_in1k", "B/16", 224, True),
            ("deit_base_distilled_patch16_384.fb_in1k", "B/16", 384, True),
        ]
    },
    **{
        name: _dino(variant, name)
        for name, variant in [
            ("vit_small_patch16_224.dino", "S/16"),
            ("vit_small_patch8_224.dino", "S/8"),
            ("vit_base_patch16_224.dino", "B/16"),
            ("vit_base_patch8_224.dino", "B/8"),
        ]
    },
    **{
        name: _dinov2(size, registers, layout, f"timm/{name}", on_hub=True)
        for name, size, registers, layout in [
            ("vit_small_patch14_dinov2.lvd142m", "S", 0, "timm"),
            ("vit_base_patch14_dinov2.lvd142m", "B", 0, "timm"),
            ("vit_large_patch14_dinov2.lvd142m", "L", 0, "timm"),
            ("vit_giant_patch14_dinov2.lvd142m", "g", 0, "timm"),
            ("vit_small_patch14_reg4_dinov2.lvd142m", "S", 4, "timm_registers"),
            ("vit_base_patch14_reg4_dinov2.lvd142m", "B", 4, "timm_registers"),
            ("vit_large_patch14_reg4_dinov2.lvd142m", "L", 4, "timm_registers"),
            ("vit_giant_patch14_reg4_dinov2.lvd142m", "g", 4, "timm_registers"),
        ]
    },
    **{
        name: _dinov2(size, registers, "dinov2", f"https://dl.fbaipublicfiles.com/dinov2/{file}", on_hub=False)
        for name, size, registers, file in [
            ("dinov2_vits14", "S", 0, "dinov2_vits14/dinov2_vits14_pretrain.pth"),
            ("dinov2_vitb14", "B", 0, "dinov2_vitb14/dinov2_vitb14_pretrain.pth"),
            ("dinov2_vitl14", "L", 0, "dinov2_vitl14/dinov2_vitl14_pretrain.pth"),
            ("dinov2_vitg14", "g", 0, "dinov2_vitg14/dinov2_vitg14_pretrain.pth"),
            ("dinov2_vits14_reg", "S", 4, "dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"),
            ("dinov2_vitb14_reg", "B", 4, "dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"),
            ("dinov2_vitl14_reg", "L", 4, "dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth"),
            ("dinov2_vitg14_reg", "g", 4, "dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"),
        ]
    },
    **{
        f"hf:{name}": _hugging_face(config, model_type, layout, name, num_classes)
        for name, config, model_type, layout, num_classes in [
            ("google/vit-base-patch16-224", vit_config("B/16", **_HF_VIT), "vit", "ViTForImageClassification", 1000),
            ("google/vit-base-patch16-224-in21k", vit_config("B/16", **_HF_VIT), "vit", "ViTModel", 0),
            ("google/vit-base-patch16-384", vit_config("B/16", 384, **_HF_VIT), "vit", "ViTForImageClassification", 1000),
            ("google/vit-large-patch16-224", vit_config("L/16", **_HF_VIT), "vit", "ViTForImageClassification", 1000),
            (
                "facebook/deit-base-distilled-patch16-224",
                vit_config("B/16", num_registers=1, **_HF_VIT),
                "deit",
                "DeiTForImageClassificationWithTeacher",
                1000,
            ),
            ("facebook/dino-vits16", vit_config("S/16", **_HF_VIT), "vit", "ViTModel", 0),
            ("facebook/dino-vits8", vit_config("S/8", **_HF_VIT), "vit", "ViTModel", 0),
            ("facebook/dino-vitb16", vit_config("B/16", **_HF_VIT), "vit", "ViTModel", 0),
            ("facebook/dino-vitb8", vit_config("B/8", **_HF_VIT), "vit", "ViTModel", 0),
            *(
                (
                    f"facebook/dinov2-{infix}{word}",
                    replace(_dinov2_config(size, registers), resampling=ANTIALIASED if registers else PLAIN),
                    "dinov2_with_registers" if registers else "dinov2",
                    "Dinov2WithRegistersModel" if registers else "Dinov2Model",
                    0,
                )
                for infix, registers in (("", 0), ("with-registers-", 4))
                for word, size in (("small", "S"), ("base", "B"), ("large", "L"), ("giant", "g"))
            ),
        ]
    },
}
