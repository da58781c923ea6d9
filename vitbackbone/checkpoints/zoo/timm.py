"""timm's names: the models of its `vision_transformer`, `deit`, `beit`, `eva` and `vision_transformer_sam`.

The settings come from timm's `pretrained_cfg` and model definitions, the resampling policies from the authors.
"""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface import ANTIALIASED, PLAIN
from vitbackbone.checkpoints.zoo.entry import TIMM_RESAMPLING, Entry, Triple, evaluation
from vitbackbone.images import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, CropMode
from vitbackbone.model import MlpKind, Pool, QkvBias, Resampling, Rotary, ViTConfig, vit_config

SIZE_OFFSET = Resampling("bicubic", offset=0.1)  # dino and dinov2, interpolate_pos_encoding
SIZE = Resampling("bicubic")  # deit, mae, EVA-02: bicubic, no antialias
RESIZED = Resampling("bicubic", antialias=True)  # open_clip

# ---- ViT: "How to train your ViT?" (Steiner et al. 2022) ----------------------------------------------------------

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
    preprocess = evaluation(side, 0.9 if side == 224 else 1.0, HALF, HALF)
    return Entry(config, "timm", preprocess, "apache-2.0", f"timm/{name}", num_classes=num_classes)


# ---- DeiT (Touvron et al. 2021) and DeiT III (Touvron et al. 2022) ------------------------------------------------

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

#      name                                     variant  px  crop
_DEIT3 = {
    "deit3_base_patch16_224.fb_in1k": ("B/16", 224, 0.9),
    "deit3_base_patch16_224.fb_in22k_ft_in1k": ("B/16", 224, 1.0),
    "deit3_base_patch16_384.fb_in1k": ("B/16", 384, 1.0),
    "deit3_base_patch16_384.fb_in22k_ft_in1k": ("B/16", 384, 1.0),
    "deit3_huge_patch14_224.fb_in1k": ("H/14", 224, 0.9),
    "deit3_huge_patch14_224.fb_in22k_ft_in1k": ("H/14", 224, 1.0),
    "deit3_large_patch16_224.fb_in1k": ("L/16", 224, 0.9),
    "deit3_large_patch16_224.fb_in22k_ft_in1k": ("L/16", 224, 1.0),
    "deit3_large_patch16_384.fb_in1k": ("L/16", 384, 1.0),
    "deit3_large_patch16_384.fb_in22k_ft_in1k": ("L/16", 384, 1.0),
    "deit3_medium_patch16_224.fb_in1k": ("M/16", 224, 0.9),
    "deit3_medium_patch16_224.fb_in22k_ft_in1k": ("M/16", 224, 1.0),
    "deit3_small_patch16_224.fb_in1k": ("S/16", 224, 0.9),
    "deit3_small_patch16_224.fb_in22k_ft_in1k": ("S/16", 224, 1.0),
    "deit3_small_patch16_384.fb_in1k": ("S/16", 384, 1.0),
    "deit3_small_patch16_384.fb_in22k_ft_in1k": ("S/16", 384, 1.0),
}


def _deit(name: str, variant: str, side: int, distilled: bool) -> Entry:
    pool: Pool = "prefix" if distilled else "cls"
    config = vit_config(variant, side, num_registers=int(distilled), pool=pool, resampling=SIZE)
    preprocess = evaluation(side, 0.9 if side == 224 else 1.0, IMAGENET_MEAN, IMAGENET_STD)
    layout = "timm_distilled" if distilled else "timm"
    return Entry(config, layout, preprocess, "apache-2.0", f"timm/{name}", num_classes=1000)


def _deit3(name: str, variant: str, side: int, crop: float) -> Entry:
    config = vit_config(variant, side, layer_scale=True, resampling=SIZE)
    preprocess = evaluation(side, crop, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(config, "timm_no_embed_class", preprocess, "apache-2.0", f"timm/{name}", num_classes=1000)


# ---- BEiT (Bao et al. 2021) and BEiT v2 (Peng et al. 2022) --------------------------------------------------------

#      name                                       variant  px  crop classes
_BEIT = {
    "beit_base_patch16_224.in22k_ft_in22k": ("B/16", 224, 0.9, 21841),
    "beit_base_patch16_224.in22k_ft_in22k_in1k": ("B/16", 224, 0.9, 1000),
    "beit_base_patch16_384.in22k_ft_in22k_in1k": ("B/16", 384, 1.0, 1000),
    "beit_large_patch16_224.in22k_ft_in22k": ("L/16", 224, 0.9, 21841),
    "beit_large_patch16_224.in22k_ft_in22k_in1k": ("L/16", 224, 0.9, 1000),
    "beit_large_patch16_384.in22k_ft_in22k_in1k": ("L/16", 384, 1.0, 1000),
    "beit_large_patch16_512.in22k_ft_in22k_in1k": ("L/16", 512, 1.0, 1000),
}
_BEIT_V2 = {
    "beitv2_base_patch16_224.in1k_ft_in1k": ("B/16", 224, 0.9, 1000),
    "beitv2_base_patch16_224.in1k_ft_in22k": ("B/16", 224, 0.9, 21841),
    "beitv2_base_patch16_224.in1k_ft_in22k_in1k": ("B/16", 224, 0.9, 1000),
    "beitv2_large_patch16_224.in1k_ft_in1k": ("L/16", 224, 0.95, 1000),
    "beitv2_large_patch16_224.in1k_ft_in22k": ("L/16", 224, 0.9, 21841),
    "beitv2_large_patch16_224.in1k_ft_in22k_in1k": ("L/16", 224, 0.95, 1000),
}


def _beit(name: str, variant: str, side: int, crop: float, num_classes: int, mean: Triple, std: Triple) -> Entry:
    preprocess = evaluation(side, crop, mean, std)
    source = f"timm/{name}"
    return Entry(beit_config(variant, side), "timm_beit", preprocess, "apache-2.0", source, num_classes=num_classes)


def beit_config(variant: str, side: int) -> ViTConfig:
    return vit_config(
        variant,
        side,
        position="none",
        relative_position="table",
        qkv_bias="qv",
        layer_scale=True,
        final_norm=False,
        fc_norm=True,
        pool="mean",
    )


# ---- MAE (He et al. 2022) -----------------------------------------------------------------------------------------

_MAE = {
    "vit_base_patch16_224.mae": "B/16",
    "vit_large_patch16_224.mae": "L/16",
    "vit_huge_patch14_224.mae": "H/14",
}


def mae_config(variant: str) -> ViTConfig:
    return vit_config(variant, position="sincos2d", resampling=SIZE)


def _mae(name: str, variant: str) -> Entry:
    preprocess = evaluation(224, 0.9, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(mae_config(variant), "timm", preprocess, "cc-by-nc-4.0", f"timm/{name}")


# ---- DINO (Caron et al. 2021) -------------------------------------------------------------------------------------

_DINO = {
    "vit_small_patch16_224.dino": "S/16",
    "vit_small_patch8_224.dino": "S/8",
    "vit_base_patch16_224.dino": "B/16",
    "vit_base_patch8_224.dino": "B/8",
}


def _dino(name: str, variant: str) -> Entry:
    config = vit_config(variant, resampling=SIZE_OFFSET)
    return Entry(config, "timm", evaluation(224, 0.9, IMAGENET_MEAN, IMAGENET_STD), "apache-2.0", f"timm/{name}")


# ---- DINOv2 (Oquab et al. 2023; registers: Darcet et al. 2023) ----------------------------------------------------

#    name                                      size registers
_DINOV2 = {
    "vit_small_patch14_dinov2.lvd142m": ("S", 0),
    "vit_base_patch14_dinov2.lvd142m": ("B", 0),
    "vit_large_patch14_dinov2.lvd142m": ("L", 0),
    "vit_giant_patch14_dinov2.lvd142m": ("g", 0),
    "vit_small_patch14_reg4_dinov2.lvd142m": ("S", 4),
    "vit_base_patch14_reg4_dinov2.lvd142m": ("B", 4),
    "vit_large_patch14_reg4_dinov2.lvd142m": ("L", 4),
    "vit_giant_patch14_reg4_dinov2.lvd142m": ("g", 4),
}
_GIANT = ViTConfig((518, 518), 14, dim=1536, depth=40, num_heads=24, mlp="swiglu", mlp_dim=4096, layer_scale=True)


def dinov2_config(size: str, registers: int) -> ViTConfig:
    base = _GIANT if size == "g" else vit_config(f"{size}/14", 518, layer_scale=True)
    return replace(base, num_registers=registers, resampling=RESIZED if registers else SIZE_OFFSET)


def _dinov2(name: str, size: str, registers: int) -> Entry:
    layout, hf = ("timm_no_embed_class", ANTIALIASED) if registers else ("timm", PLAIN)
    preprocess = evaluation(518, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(dinov2_config(size, registers), layout, preprocess, "apache-2.0", f"timm/{name}", hf)


# ---- DINOv3 (Siméoni et al. 2025). The names with qkvb have the biases of q and v, which are close to 0 -----------

SATELLITE_MEAN, SATELLITE_STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)

#    name                                            size q and v bias
_DINOV3: dict[str, tuple[str, QkvBias]] = {
    "vit_small_patch16_dinov3.lvd1689m": ("S", "none"),
    "vit_small_patch16_dinov3_qkvb.lvd1689m": ("S", "qv"),
    "vit_small_plus_patch16_dinov3.lvd1689m": ("S+", "none"),
    "vit_small_plus_patch16_dinov3_qkvb.lvd1689m": ("S+", "qv"),
    "vit_base_patch16_dinov3.lvd1689m": ("B", "none"),
    "vit_base_patch16_dinov3_qkvb.lvd1689m": ("B", "qv"),
    "vit_large_patch16_dinov3.lvd1689m": ("L", "none"),
    "vit_large_patch16_dinov3_qkvb.lvd1689m": ("L", "qv"),
    "vit_large_patch16_dinov3.sat493m": ("L", "none"),
    "vit_large_patch16_dinov3_qkvb.sat493m": ("L", "qv"),
    "vit_huge_plus_patch16_dinov3.lvd1689m": ("H+", "none"),
    "vit_huge_plus_patch16_dinov3_qkvb.lvd1689m": ("H+", "qv"),
    "vit_7b_patch16_dinov3.lvd1689m": ("7B", "none"),
    "vit_7b_patch16_dinov3.sat493m": ("7B", "none"),
}
_DINOV3_SIZES = {
    "S": vit_config("S/16", 256),
    "S+": vit_config("S/16", 256, mlp="swiglu"),
    "B": vit_config("B/16", 256),
    "L": vit_config("L/16", 256),
    "H+": vit_config("H/16", 256, num_heads=20, mlp="swiglu"),
    "Ti": vit_config("Ti/16", 256),
    "g": ViTConfig((256, 256), 16, dim=1536, depth=40, num_heads=24, mlp="swiglu", mlp_dim=4096),
    "7B": ViTConfig((256, 256), 16, dim=4096, depth=40, num_heads=32, mlp="swiglu", mlp_dim=8192),
}


def dinov3_config(size: str, qkv_bias: QkvBias, rounded: bool) -> ViTConfig:
    """Return a DINOv3 configuration. `rounded`: the wavelengths are in bfloat16, as in the authors' files; timm and
    transformers do not round them."""
    return replace(
        _DINOV3_SIZES[size],
        norm_eps=1e-5,
        position="none",
        rotary=Rotary(100.0, "centred", "halves", bfloat16=rounded),
        qkv_bias=qkv_bias,
        num_registers=4,
        layer_scale=True,
    )


def _dinov3(name: str, size: str, qkv_bias: QkvBias) -> Entry:
    satellite = name.split(".")[1] == "sat493m"
    mean, std = (SATELLITE_MEAN, SATELLITE_STD) if satellite else (IMAGENET_MEAN, IMAGENET_STD)
    config = replace(dinov3_config(size, qkv_bias, rounded=False), pool="mean")  # timm's default; the authors take CLS
    return Entry(config, "timm_dinov3", evaluation(256, 1.0, mean, std), "dinov3-license", f"timm/{name}")


# ---- CLIP (Radford et al. 2021), OpenCLIP, MetaCLIP ---------------------------------------------------------------
#
# The activation is the one that the weights were trained with. timm runs OpenAI's with the exact GELU unless the name
# says quickgelu; both names are the same file.

CLIP = (CLIP_MEAN, CLIP_STD)

#    name                                                  variant  px   activation   width crop mean, std licence
_CLIP: dict[str, tuple[str, int, MlpKind, int, float, tuple[Triple, Triple], str]] = {
    "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b": ("B/16", 224, "quick_gelu", 512, 1.0, CLIP, "cc-by-nc-4.0"),
    "vit_base_patch16_clip_quickgelu_224.metaclip_400m": ("B/16", 224, "quick_gelu", 512, 1.0, CLIP, "cc-by-nc-4.0"),
    "vit_base_patch16_clip_quickgelu_224.openai": ("B/16", 224, "quick_gelu", 512, 0.9, CLIP, "apache-2.0"),
    "vit_base_patch32_clip_quickgelu_224.laion400m_e32": ("B/32", 224, "quick_gelu", 512, 0.9, CLIP, "mit"),
    "vit_base_patch32_clip_quickgelu_224.metaclip_2pt5b": ("B/32", 224, "quick_gelu", 512, 1.0, CLIP, "cc-by-nc-4.0"),
    "vit_base_patch32_clip_quickgelu_224.metaclip_400m": ("B/32", 224, "quick_gelu", 512, 1.0, CLIP, "cc-by-nc-4.0"),
    "vit_base_patch32_clip_quickgelu_224.openai": ("B/32", 224, "quick_gelu", 512, 0.9, CLIP, "apache-2.0"),
    "vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b": ("H/14", 224, "quick_gelu", 1024, 1.0, CLIP, "cc-by-nc-4.0"),
    "vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b": ("L/14", 224, "quick_gelu", 768, 1.0, CLIP, "cc-by-nc-4.0"),
    "vit_large_patch14_clip_quickgelu_224.metaclip_400m": ("L/14", 224, "quick_gelu", 768, 1.0, CLIP, "cc-by-nc-4.0"),
    "vit_large_patch14_clip_quickgelu_224.openai": ("L/14", 224, "quick_gelu", 768, 1.0, CLIP, "apache-2.0"),
    "vit_large_patch14_clip_quickgelu_336.openai": ("L/14", 336, "quick_gelu", 768, 1.0, CLIP, "apache-2.0"),
    "vit_base_patch16_clip_224.openai": ("B/16", 224, "quick_gelu", 512, 0.9, CLIP, "apache-2.0"),
    "vit_base_patch32_clip_224.openai": ("B/32", 224, "quick_gelu", 512, 0.9, CLIP, "apache-2.0"),
    "vit_large_patch14_clip_224.openai": ("L/14", 224, "quick_gelu", 768, 1.0, CLIP, "apache-2.0"),
    "vit_large_patch14_clip_336.openai": ("L/14", 336, "quick_gelu", 768, 1.0, CLIP, "apache-2.0"),
    "vit_base_patch16_clip_224.laion2b": ("B/16", 224, "gelu", 512, 1.0, CLIP, "apache-2.0"),
    "vit_base_patch32_clip_224.laion2b": ("B/32", 224, "gelu", 512, 0.9, CLIP, "apache-2.0"),
    "vit_giant_patch14_clip_224.laion2b": ("g/14", 224, "gelu", 1024, 1.0, CLIP, "apache-2.0"),
    "vit_gigantic_patch14_clip_224.laion2b": ("G/14", 224, "gelu", 1280, 1.0, CLIP, "apache-2.0"),
    "vit_huge_patch14_clip_224.laion2b": ("H/14", 224, "gelu", 1024, 1.0, CLIP, "apache-2.0"),
    "vit_large_patch14_clip_224.laion2b": ("L/14", 224, "gelu", 768, 1.0, (HALF, HALF), "apache-2.0"),
    "vit_base_patch16_clip_224.laion400m_e32": ("B/16", 224, "gelu", 512, 1.0, CLIP, "mit"),
    "vit_base_patch32_clip_224.laion400m_e32": ("B/32", 224, "gelu", 512, 0.9, CLIP, "mit"),
    "vit_large_patch14_clip_224.laion400m_e32": ("L/14", 224, "gelu", 768, 1.0, CLIP, "mit"),
    "vit_base_patch16_clip_224.datacompxl": ("B/16", 224, "gelu", 512, 1.0, CLIP, "apache-2.0"),
    "vit_base_patch32_clip_224.datacompxl": ("B/32", 224, "gelu", 512, 1.0, CLIP, "apache-2.0"),
    "vit_large_patch14_clip_224.datacompxl": ("L/14", 224, "gelu", 768, 1.0, CLIP, "apache-2.0"),
}


def clip_config(variant: str, side: int, mlp: MlpKind, projection_dim: int) -> ViTConfig:
    return vit_config(
        variant,
        side,
        mlp=mlp,
        norm_eps=1e-5,
        patch_bias=False,
        pre_norm=True,
        projection_dim=projection_dim,
        resampling=RESIZED,
    )


def _clip(
    name: str,
    variant: str,
    side: int,
    mlp: MlpKind,
    projection_dim: int,
    crop: float,
    normalisation: tuple[Triple, Triple],
    licence: str,
) -> Entry:
    config = replace(clip_config(variant, side, mlp, projection_dim), projection_bias=True)
    source = f"timm/{name.replace('_quickgelu', '')}"
    return Entry(config, "timm_clip", evaluation(side, crop, *normalisation), licence, source)


# ---- SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025); the activation is timm's ---------------------

#    name                                        variant  px   activation
_SIGLIP: dict[str, tuple[str, int, MlpKind]] = {
    "vit_base_patch16_siglip_224.webli": ("B/16", 224, "gelu"),
    "vit_base_patch16_siglip_256.webli": ("B/16", 256, "gelu"),
    "vit_base_patch16_siglip_384.webli": ("B/16", 384, "gelu"),
    "vit_base_patch16_siglip_512.webli": ("B/16", 512, "gelu"),
    "vit_large_patch16_siglip_256.webli": ("L/16", 256, "gelu"),
    "vit_large_patch16_siglip_384.webli": ("L/16", 384, "gelu"),
    "vit_so400m_patch14_siglip_224.webli": ("So/14", 224, "gelu"),
    "vit_so400m_patch14_siglip_378.webli": ("So/14", 378, "gelu"),
    "vit_base_patch16_siglip_224.v2_webli": ("B/16", 224, "gelu"),
    "vit_base_patch16_siglip_256.v2_webli": ("B/16", 256, "gelu"),
    "vit_base_patch16_siglip_384.v2_webli": ("B/16", 384, "gelu"),
    "vit_base_patch16_siglip_512.v2_webli": ("B/16", 512, "gelu"),
    "vit_base_patch32_siglip_256.v2_webli": ("B/32", 256, "gelu_tanh"),
    "vit_giantopt_patch16_siglip_256.v2_webli": ("gopt/16", 256, "gelu_tanh"),
    "vit_giantopt_patch16_siglip_384.v2_webli": ("gopt/16", 384, "gelu_tanh"),
    "vit_large_patch16_siglip_256.v2_webli": ("L/16", 256, "gelu"),
    "vit_large_patch16_siglip_384.v2_webli": ("L/16", 384, "gelu"),
    "vit_large_patch16_siglip_512.v2_webli": ("L/16", 512, "gelu_tanh"),
    "vit_so400m_patch14_siglip_224.v2_webli": ("So/14", 224, "gelu"),
    "vit_so400m_patch14_siglip_378.v2_webli": ("So/14", 378, "gelu"),
    "vit_so400m_patch16_siglip_256.v2_webli": ("So/16", 256, "gelu_tanh"),
    "vit_so400m_patch16_siglip_384.v2_webli": ("So/16", 384, "gelu_tanh"),
    "vit_so400m_patch16_siglip_512.v2_webli": ("So/16", 512, "gelu_tanh"),
}


def siglip_config(variant: str, side: int, mlp: MlpKind) -> ViTConfig:
    return vit_config(variant, side, cls=False, mlp=mlp, pool="map", resampling=TIMM_RESAMPLING)


def _siglip(name: str, variant: str, side: int, mlp: MlpKind) -> Entry:
    preprocess = evaluation(side, 0.9, HALF, HALF)
    return Entry(siglip_config(variant, side, mlp), "timm_no_embed_class", preprocess, "apache-2.0", f"timm/{name}")


# ---- EVA-02 (Fang et al. 2023) ------------------------------------------------------------------------------------

#    name                                                 size  px  crop crop mode  classes
_EVA02: dict[str, tuple[str, int, float, CropMode, int]] = {
    "eva02_tiny_patch14_224.mim_in22k": ("Ti", 224, 0.9, "center", 0),
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k": ("Ti", 336, 1.0, "center", 1000),
    "eva02_small_patch14_224.mim_in22k": ("S", 224, 0.9, "center", 0),
    "eva02_small_patch14_336.mim_in22k_ft_in1k": ("S", 336, 1.0, "center", 1000),
    "eva02_base_patch14_224.mim_in22k": ("B", 224, 0.9, "center", 0),
    "eva02_base_patch14_448.mim_in22k_ft_in1k": ("B", 448, 1.0, "center", 1000),
    "eva02_base_patch14_448.mim_in22k_ft_in22k": ("B", 448, 1.0, "squash", 21841),
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k": ("B", 448, 1.0, "squash", 1000),
    "eva02_large_patch14_224.mim_in22k": ("L", 224, 0.9, "center", 0),
    "eva02_large_patch14_224.mim_m38m": ("L", 224, 0.9, "center", 0),
    "eva02_large_patch14_448.mim_in22k_ft_in1k": ("L", 448, 1.0, "center", 1000),
    "eva02_large_patch14_448.mim_in22k_ft_in22k": ("L", 448, 1.0, "squash", 21841),
    "eva02_large_patch14_448.mim_in22k_ft_in22k_in1k": ("L", 448, 1.0, "squash", 1000),
    "eva02_large_patch14_448.mim_m38m_ft_in1k": ("L", 448, 1.0, "center", 1000),
    "eva02_large_patch14_448.mim_m38m_ft_in22k": ("L", 448, 1.0, "squash", 21841),
    "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k": ("L", 448, 1.0, "squash", 1000),
}
#            mlp_dim norm inside, layout
_EVA02_SIZES = {
    "Ti": (512, False, "timm_eva02"),
    "S": (1024, False, "timm_eva02"),
    "B": (2048, True, "timm_eva02_split"),
    "L": (2730, True, "timm_eva02_split"),
}


def _eva02(name: str, size: str, side: int, crop: float, crop_mode: CropMode, num_classes: int) -> Entry:
    mlp_dim, mlp_norm, layout = _EVA02_SIZES[size]
    config = vit_config(
        f"{size}/14",
        side,
        mlp="swiglu",
        mlp_dim=mlp_dim,
        mlp_norm=mlp_norm,
        rotary=Rotary(10000.0, "index", "neighbours", reference=(16, 16)),
        qkv_bias="qv",
        final_norm=False,
        fc_norm=True,
        pool="mean",
        resampling=SIZE,
    )
    preprocess = replace(evaluation(side, crop, CLIP_MEAN, CLIP_STD), crop_mode=crop_mode)
    return Entry(config, layout, preprocess, "mit", f"timm/{name}", num_classes=num_classes)


# ---- SAM's image encoder (Kirillov et al. 2023) -------------------------------------------------------------------

#    name                       variant  blocks without windows
_SAM = {
    "samvit_base_patch16.sa1b": ("B/16", (2, 5, 8, 11)),
    "samvit_large_patch16.sa1b": ("L/16", (5, 11, 17, 23)),
    "samvit_huge_patch16.sa1b": ("H/16", (7, 15, 23, 31)),
}


def sam_config(variant: str, global_blocks: tuple[int, ...]) -> ViTConfig:
    return vit_config(
        variant,
        1024,
        cls=False,
        relative_position="decomposed",
        window=14,
        global_blocks=global_blocks,
        final_norm=False,
        neck_dim=256,
        pool="neck",
        resampling=TIMM_RESAMPLING,
    )


def _sam(name: str, variant: str, global_blocks: tuple[int, ...]) -> Entry:
    config = replace(sam_config(variant, global_blocks), norm_eps=1e-5)  # timm's; the authors have 1e-6
    preprocess = evaluation(1024, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(config, "timm_sam", preprocess, "apache-2.0", f"timm/{name}")


TIMM: dict[str, Entry] = {
    **{name: _vit(name, *row) for name, row in _VIT.items()},
    **{name: _deit(name, *row) for name, row in _DEIT.items()},
    **{name: _deit3(name, *row) for name, row in _DEIT3.items()},
    **{name: _beit(name, *row, HALF, HALF) for name, row in _BEIT.items()},
    **{name: _beit(name, *row, IMAGENET_MEAN, IMAGENET_STD) for name, row in _BEIT_V2.items()},
    **{name: _mae(name, variant) for name, variant in _MAE.items()},
    **{name: _dino(name, variant) for name, variant in _DINO.items()},
    **{name: _dinov2(name, *row) for name, row in _DINOV2.items()},
    **{name: _dinov3(name, *row) for name, row in _DINOV3.items()},
    **{name: _clip(name, *row) for name, row in _CLIP.items()},
    **{name: _siglip(name, *row) for name, row in _SIGLIP.items()},
    **{name: _eva02(name, *row) for name, row in _EVA02.items()},
    **{name: _sam(name, *row) for name, row in _SAM.items()},
}
