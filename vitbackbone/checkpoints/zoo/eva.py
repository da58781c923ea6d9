"""timm's names of Perception Encoder, EVA-CLIP, EUPE, LingBot-Vision, InternViT, AIMv2 and MetaCLIP 2, and the authors'
names of Perception Encoder."""

from dataclasses import replace

from vitbackbone.checkpoints.zoo.entry import Entry, evaluation
from vitbackbone.checkpoints.zoo.timm import SIZE, clip_config, dinov3_config
from vitbackbone.images import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, CropMode
from vitbackbone.model import Pool, QkvBias, Resampling, Rotary, ViTConfig, vit_config

# ---- Perception Encoder (Bolya et al. 2025) -----------------------------------------------------------------------
#
# The authors count rows and columns, and resample the table bilinearly; timm rescales them to the pretraining grid.

LINEAR = Resampling("bilinear")
_PE_G = {"dim": 1536, "depth": 50, "num_heads": 16, "mlp_dim": 8960}
#      size, kind, pixels: fields that differ from ViT's, width of the projection, authors' name
_PE: dict[str, tuple[str, int, dict[str, object], int, str]] = {
    "vit_pe_core_tiny_patch16_384.fb": ("Ti/16", 384, {}, 512, "PE-Core-T16-384"),
    "vit_pe_core_small_patch16_384.fb": ("S/16", 384, {}, 512, "PE-Core-S16-384"),
    "vit_pe_core_base_patch16_224.fb": ("B/16", 224, {}, 1024, "PE-Core-B16-224"),
    "vit_pe_core_large_patch14_336.fb": ("L/14", 336, {}, 1024, "PE-Core-L14-336"),
    "vit_pe_core_gigantic_patch14_448.fb": ("g/14", 448, {**_PE_G, "cls": False}, 1280, "PE-Core-G14-448"),
    "vit_pe_lang_large_patch14_448.fb": ("L/14", 448, {"depth": 23, "layer_scale": True}, 0, "PE-Lang-L14-448"),
    "vit_pe_lang_large_patch14_448.fb_tiling": (
        "L/14",
        448,
        {"depth": 23, "layer_scale": True},
        0,
        "PE-Lang-L14-448-Tiling",
    ),
    "vit_pe_lang_gigantic_patch14_448.fb": (
        "g/14",
        448,
        {**_PE_G, "depth": 47, "cls": False, "layer_scale": True},
        0,
        "PE-Lang-G14-448",
    ),
    "vit_pe_lang_gigantic_patch14_448.fb_tiling": (
        "g/14",
        448,
        {**_PE_G, "depth": 47, "cls": False, "layer_scale": True},
        0,
        "PE-Lang-G14-448-Tiling",
    ),
    "vit_pe_spatial_tiny_patch16_512.fb": ("Ti/16", 512, {}, 0, "PE-Spatial-T16-512"),
    "vit_pe_spatial_small_patch16_512.fb": ("S/16", 512, {}, 0, "PE-Spatial-S16-512"),
    "vit_pe_spatial_base_patch16_512.fb": ("B/16", 512, {}, 0, "PE-Spatial-B16-512"),
    "vit_pe_spatial_large_patch14_448.fb": ("L/14", 448, {}, 0, "PE-Spatial-L14-448"),
    "vit_pe_spatial_gigantic_patch14_448.fb": (
        "g/14",
        448,
        {**_PE_G, "cls": False, "layer_scale": True},
        0,
        "PE-Spatial-G14-448",
    ),
}


def pe_config(variant: str, side: int, fields: dict[str, object], projection_dim: int) -> ViTConfig:
    """Return a Perception Encoder. A projection makes it a core model, with a final norm and attention pooling."""
    plain = vit_config(variant, side, **fields, pool="mean")
    core = projection_dim > 0
    return replace(
        plain,
        norm_eps=1e-5,
        patch_bias=False,
        pre_norm=True,
        rotary=Rotary(10000.0, "index", "halves", offset=float(plain.cls)),
        resampling=LINEAR,
        final_norm=core,
        pool="map" if core else "mean",
        pool_heads=8 if core else 0,
        pool_mlp_dim=4 * plain.dim if core else 0,
        pool_prefix=core,
        projection_dim=projection_dim,
    )


def _pe(name: str, variant: str, side: int, fields: dict[str, object], projection_dim: int) -> Entry:
    config = replace(pe_config(variant, side, fields, projection_dim), projection_bias=projection_dim > 0)
    assert config.rotary is not None
    rescaled = replace(config.rotary, reference=config.grid)
    preprocess = evaluation(side, 1.0, HALF, HALF)
    layout = "timm_pe" if config.cls else "timm_pe_no_cls"
    return Entry(config, layout, preprocess, "apache-2.0", f"timm/{name}", timm_rotary=rescaled)


def _pe_of_its_authors(variant: str, side: int, fields: dict[str, object], projection_dim: int, name: str) -> Entry:
    config = pe_config(variant, side, fields, projection_dim)
    assert config.rotary is not None
    preprocess = replace(evaluation(side, 1.0, HALF, HALF), crop_mode="squash", interpolation="bilinear")
    return Entry(
        config,
        ("pe_core" if projection_dim else "pe") + "_no_cls" * (not config.cls),
        preprocess,
        "apache-2.0",
        f"https://huggingface.co/facebook/{name}/resolve/main/{name}.pt",
        on_hub=False,
        timm_rotary=replace(config.rotary, reference=config.grid),
    )


# ---- EVA-CLIP (Sun et al. 2023) -----------------------------------------------------------------------------------

_EVA02_ROTARY = Rotary(10000.0, "index", "neighbours", reference=(16, 16))
_EVA02_CLIP = {
    **{"mlp": "swiglu", "mlp_norm": True, "attn_norm": True, "rotary": _EVA02_ROTARY, "qkv_bias": "qv"},
    "resampling": SIZE,
}
_EVA_E = {"dim": 1792, "depth": 64, "mlp_dim": 15360, "branch_norm": "after", "qkv_bias": "qv", "resampling": SIZE}
#    name                                            variant  px   crop width layout, fields
_EVA_CLIP: dict[str, tuple[str, int, float, int, str, dict[str, object]]] = {
    **{
        f"eva_giant_patch14_clip_224.{data}": (
            "g/14",
            224,
            0.9,
            1024,
            "timm_eva_clip",
            {"qkv_bias": "qv", "resampling": SIZE},
        )
        for data in ("laion400m", "merged2b")
    },
    "eva02_base_patch16_clip_224.merged2b": (
        "B/16",
        224,
        0.9,
        512,
        "timm_eva02_clip",
        {**_EVA02_CLIP, "mlp_dim": 2048},
    ),
    "eva02_large_patch14_clip_224.merged2b": (
        "L/14",
        224,
        0.9,
        768,
        "timm_eva02_clip",
        {**_EVA02_CLIP, "mlp_dim": 2730},
    ),
    "eva02_large_patch14_clip_336.merged2b": (
        "L/14",
        336,
        1.0,
        768,
        "timm_eva02_clip",
        {**_EVA02_CLIP, "mlp_dim": 2730},
    ),
    **{
        f"eva02_enormous_patch14_clip_224.{data}": ("g/14", 224, 0.9, 1024, "timm_eva_clip", _EVA_E)
        for data in ("laion2b", "laion2b_plus")
    },
}


def _eva_clip(
    name: str, variant: str, side: int, crop: float, width: int, layout: str, fields: dict[str, object]
) -> Entry:
    config = vit_config(variant, side, projection_dim=width, projection_bias=True, **fields)
    return Entry(config, layout, evaluation(side, crop, CLIP_MEAN, CLIP_STD), "mit", f"timm/{name}")


# ---- the kin of DINOv3: EUPE (Meta 2026), LingBot-Vision (Fu et al. 2026) -----------------------------------------

_EUPE = {
    "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m": "Ti",
    "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m": "S",
    "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m": "B",
}
_LINGBOT: dict[str, tuple[str, QkvBias]] = {
    "vit_small_patch16_lingbot.robbyant": ("S", "qv"),
    "vit_base_patch16_lingbot.robbyant": ("B", "qv"),
    "vit_large_patch16_lingbot.robbyant": ("L", "qv"),
    "vit_giant_patch16_lingbot.robbyant": ("g", "none"),
}


def _eupe(name: str, size: str) -> Entry:
    config = replace(dinov3_config(size, "qv", rounded=False), pool="mean")  # timm's default; the authors take CLS
    preprocess = evaluation(256, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(config, "timm_dinov3", preprocess, "fair-noncommercial-research-license", f"timm/{name}")


def _lingbot(name: str, size: str, qkv_bias: QkvBias) -> Entry:
    config = replace(dinov3_config(size, qkv_bias, rounded=False), image_size=(512, 512))
    plain = evaluation(512, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    preprocess = replace(plain, crop_mode="squash", interpolation="bilinear")
    return Entry(config, "timm_dinov3", preprocess, "apache-2.0", f"belfner/{name}")


# ---- InternViT (Chen et al. 2024), AIMv2 (Fini et al. 2024), MetaCLIP 2 (Chuang et al. 2025) ----------------------

INTERN_300M = vit_config("L/14", 448, layer_scale=True, final_norm=False, resampling=SIZE)
_INTERN = ("vit_intern300m_patch14_448.ogvl_dist", "vit_intern300m_patch14_448.ogvl_2pt5")
AIMV2_SIZES = {"large": (1024, 8, 2816), "huge": (1536, 12, 4096), "1b": (2048, 16, 5632), "3b": (3072, 24, 8192)}


def aimv2_config(size: str, side: int, pool: Pool = "mean") -> ViTConfig:
    dim, heads, mlp_dim = AIMV2_SIZES[size]
    return ViTConfig(
        (side, side),
        14,
        dim,
        24,
        heads,
        mlp_dim=mlp_dim,
        mlp="swiglu",
        embed_norm=True,
        cls=False,
        qkv_bias="none",
        proj_bias=False,
        mlp_bias=False,
        norm="rms",
        norm_eps=1e-5,
        pool=pool,
        resampling=SIZE,
    )


def _intern(name: str) -> Entry:
    preprocess = evaluation(448, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(INTERN_300M, "timm", preprocess, "mit", f"timm/{name}")


def _aimv2(name: str, size: str, side: int) -> Entry:
    preprocess = evaluation(side, 1.0, CLIP_MEAN, CLIP_STD)
    licence = "apple-amlr"  # Apple's since 2025, only for research (apple/aimv2-*); timm's copies name the one before
    return Entry(aimv2_config(size, side), "timm_aimv2", preprocess, licence, f"timm/{name}")


_AIMV2 = {
    **{f"aimv2_{size}_patch14_{side}.apple_pt": (size, side) for side in (224, 336, 448) for size in AIMV2_SIZES},
    **{f"aimv2_large_patch14_{side}.apple_pt_dist": ("large", side) for side in (224, 336)},
}
#    name                                                         variant  px   width  crop mode
_METACLIP2: dict[str, tuple[str, int, int, CropMode]] = {
    "vit_huge_patch14_clip_quickgelu_224.metaclip2_worldwide": ("H/14", 224, 1024, "center"),
    "vit_huge_patch14_clip_378.metaclip2_worldwide": ("H/14", 378, 1024, "squash"),
    "vit_gigantic_patch14_clip_224.metaclip2_worldwide": ("G/14", 224, 1280, "center"),
    "vit_gigantic_patch14_clip_378.metaclip2_worldwide": ("G/14", 378, 1280, "squash"),
}


def _metaclip2(name: str, variant: str, side: int, width: int, crop_mode: CropMode) -> Entry:
    quick = "quickgelu" in name
    config = clip_config(variant, side, "quick_gelu" if quick else "gelu", width)
    preprocess = replace(evaluation(side, 1.0, CLIP_MEAN, CLIP_STD), crop_mode=crop_mode)
    source = f"timm/{name.replace('_quickgelu', '')}"
    return Entry(replace(config, projection_bias=True), "timm_clip", preprocess, "cc-by-nc-4.0", source)


EVA: dict[str, Entry] = {
    **{name: _pe(name, *row[:4]) for name, row in _PE.items()},
    **{row[4]: _pe_of_its_authors(*row) for row in _PE.values()},
    **{name: _eva_clip(name, *row) for name, row in _EVA_CLIP.items()},
    **{name: _eupe(name, size) for name, size in _EUPE.items()},
    **{name: _lingbot(name, *row) for name, row in _LINGBOT.items()},
    **{name: _intern(name) for name in _INTERN},
    **{name: _aimv2(name, *row) for name, row in _AIMV2.items()},
    **{name: _metaclip2(name, *row) for name, row in _METACLIP2.items()},
}
