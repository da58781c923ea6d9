"""The text towers that belong to image towers known by name."""

from vitbackbone.checkpoints.zoo.eva import EVA
from vitbackbone.checkpoints.zoo.timm import TIMM
from vitbackbone.model import TextConfig

# The repository of the whole model, if the image tower has another one (open_clip, pretrained.py)
_LAION = {
    "vit_base_patch32_clip_224.laion2b": "CLIP-ViT-B-32-laion2B-s34B-b79K",
    "vit_base_patch16_clip_224.laion2b": "CLIP-ViT-B-16-laion2B-s34B-b88K",
    "vit_large_patch14_clip_224.laion2b": "CLIP-ViT-L-14-laion2B-s32B-b82K",
    "vit_huge_patch14_clip_224.laion2b": "CLIP-ViT-H-14-laion2B-s32B-b79K",
    "vit_giant_patch14_clip_224.laion2b": "CLIP-ViT-g-14-laion2B-s12B-b42K",
    "vit_gigantic_patch14_clip_224.laion2b": "CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "vit_base_patch32_clip_224.datacompxl": "CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
    "vit_base_patch16_clip_224.datacompxl": "CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    "vit_large_patch14_clip_224.datacompxl": "CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
}
_EVA_CLIP = {
    "eva_giant_patch14_clip_224.laion400m": "eva_giant_patch14_clip_224.laion400m_s11b_b41k",
    "eva_giant_patch14_clip_224.merged2b": "eva_giant_patch14_plus_clip_224.merged2b_s11b_b114k",
    "eva02_base_patch16_clip_224.merged2b": "eva02_base_patch16_clip_224.merged2b_s8b_b131k",
    "eva02_large_patch14_clip_224.merged2b": "eva02_large_patch14_clip_224.merged2b_s4b_b131k",
    "eva02_large_patch14_clip_336.merged2b": "eva02_large_patch14_clip_336.merged2b_s6b_b61k",
    "eva02_enormous_patch14_clip_224.laion2b": "eva02_enormous_patch14_clip_224.laion2b_s4b_b115k",
    "eva02_enormous_patch14_clip_224.laion2b_plus": "eva02_enormous_patch14_plus_clip_224.laion2b_s9b_b144k",
}
_PERCEPTION = {
    "vit_pe_core_tiny_patch16_384.fb": "PE-Core-T-16-384",
    "vit_pe_core_small_patch16_384.fb": "PE-Core-S-16-384",
    "vit_pe_core_base_patch16_224.fb": "PE-Core-B-16",
    "vit_pe_core_large_patch14_336.fb": "PE-Core-L-14-336",
    "vit_pe_core_gigantic_patch14_448.fb": "PE-Core-bigG-14-448",
}
_GOOGLE = {
    "vit_base_patch14_reg1_tipsv2.webli": "tipsv2-b14",
    "vit_large_patch14_reg1_tipsv2.webli": "tipsv2-l14",
    "vit_so400m_patch14_reg1_tipsv2.webli": "tipsv2-so400m14",
    "vit_giant_patch14_reg1_tipsv2.webli": "tipsv2-g14",
    "naflexvit_base_patch16_siglip.v2_webli": "siglip2-base-patch16-naflex",
    "naflexvit_so400m_patch16_siglip.v2_webli": "siglip2-so400m-patch16-naflex",
}
_SIGLIP_SIZES = {
    "base_patch16": "B-16",
    "base_patch32": "B-32",
    "large_patch16": "L-16",
    "so400m_patch14": "SO400M-14",
    "so400m_patch16": "SO400M-16",
    "giantopt_patch16": "gopt-16",
}


def _siglip(name: str) -> str:
    """Return the repository of a SigLIP of timm: `vit_base_patch16_siglip_256.webli` is of `ViT-B-16-SigLIP-256`."""
    architecture, _, tag = name.removeprefix("vit_").partition(".")
    size, _, side = architecture.partition("_siglip_")
    kind = "SigLIP2" if tag == "v2_webli" else "SigLIP"
    if (size, side, kind) == ("so400m_patch14", "378", "SigLIP"):
        side = "384"  # the same weights: 27 patches of 14 pixels
    return f"timm/ViT-{_SIGLIP_SIZES[size]}-{kind}" + ("" if side == "224" else f"-{side}")


_CLIP = {name: entry.source for name, entry in {**TIMM, **EVA}.items() if entry.format == "timm_clip"}
TEXT_REPOSITORIES: dict[str, str] = {
    **_CLIP,  # timm's own repositories hold both towers
    **{name: _siglip(name) for name in TIMM if "_siglip_" in name},
    **{name: f"laion/{repository}" for name, repository in _LAION.items()},
    **{name: f"timm/{repository}" for name, repository in {**_EVA_CLIP, **_PERCEPTION}.items()},
    **{name: f"google/{repository}" for name, repository in _GOOGLE.items()},
}


def _openai(dim: int, num_heads: int, depth: int, quick: bool) -> TextConfig:
    return TextConfig(
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=4 * dim,
        mlp="quick_gelu" if quick else "gelu",
        pool="argmax",
        projection_dim=dim,
    )


# The text towers in the authors' own files, by the names of `zoo.authors`
OPENAI_TEXT: dict[str, TextConfig] = {
    "ViT-B-32.openai": _openai(512, 8, 12, True),
    "ViT-B-16.openai": _openai(512, 8, 12, True),
    "ViT-L-14.openai": _openai(768, 12, 12, True),
    "ViT-L-14-336.openai": _openai(768, 12, 12, True),
    "ViT-B-32.laion2b_s34b_b79k": _openai(512, 8, 12, False),
    "ViT-B-16.laion2b_s34b_b88k": _openai(512, 8, 12, False),
    "ViT-L-14.laion2b_s32b_b82k": _openai(768, 12, 12, False),
    "ViT-H-14.laion2b_s32b_b79k": _openai(1024, 16, 24, False),
}
