"""SigLIP 2 NaFlex (Tschannen et al. 2025) and C-RADIO (Heinrich et al. 2024), of timm's NaFlexVit and transformers."""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface.radio import RADIO_EVAL, RADIO_RESAMPLING
from vitbackbone.checkpoints.huggingface.siglip2 import NAFLEX_EVAL, NAFLEX_RESAMPLING
from vitbackbone.checkpoints.zoo.entry import Entry, evaluation
from vitbackbone.images import CLIP_MEAN, CLIP_STD, HALF
from vitbackbone.model import ViTConfig, vit_config

#    timm's name                               transformers' repository           variant
_SIGLIP2 = {
    "naflexvit_base_patch16_siglip.v2_webli": ("google/siglip2-base-patch16-naflex", "B/16"),
    "naflexvit_so400m_patch16_siglip.v2_webli": ("google/siglip2-so400m-patch16-naflex", "So/16"),
}
_GIANT = ViTConfig((512, 512), 16, dim=1536, depth=40, num_heads=24, mlp_dim=6144)
#    timm's name                                  size registers scale  corners
_RADIO = {
    "naflexvit_base_patch16_radio_v3.c_radio": ("B", 7, True, True),
    "naflexvit_large_patch16_radio_v3.c_radio": ("L", 7, True, False),
    "naflexvit_huge_patch16_radio_v3.c_radio": ("H", 7, False, True),
    "naflexvit_giant_patch16_radio_v3.c_radio": ("g", 7, False, False),
    "naflexvit_so400m_patch16_radio_v4.c_radio": ("So", 9, False, False),
    "naflexvit_huge_patch16_radio_v4.c_radio": ("H", 9, False, False),
}
_HF_RADIO = {"nvidia/C-RADIOv4-SO400M": "So", "nvidia/C-RADIOv4-H": "H"}


def _siglip2(variant: str) -> ViTConfig:
    return vit_config(variant, 256, cls=False, mlp="gelu_tanh", pool="map", resampling=NAFLEX_RESAMPLING)


def _timm_siglip2(name: str, variant: str) -> Entry:
    """Return the entry of timm's file. timm crops a square; `hf:` has the authors' budget of patches."""
    how = NAFLEX_RESAMPLING
    config = replace(_siglip2(variant), image_size=(384, 384), position_grid=(16, 16))
    preprocess = evaluation(384, 1.0, HALF, HALF)
    return Entry(config, "timm_naflex", preprocess, "apache-2.0", f"timm/{name}", hf=how, timm=how)


def _hf_siglip2(name: str, variant: str) -> Entry:
    return Entry(_siglip2(variant), "hf_siglip2", NAFLEX_EVAL, "apache-2.0", name, hf=NAFLEX_RESAMPLING)


def _radio(size: str, registers: int) -> ViTConfig:
    base = _GIANT if size == "g" else vit_config(f"{size}/16", 512)
    return replace(
        base, num_registers=registers, position_grid=(128, 128), resampling=RADIO_RESAMPLING, final_norm=False
    )


def _timm_radio(name: str, size: str, registers: int, layer_scale: bool, align_corners: bool) -> Entry:
    """Return the entry of timm's file. The corners follow the code that NVIDIA published with the weights."""
    how = replace(RADIO_RESAMPLING, align_corners=align_corners)
    config = replace(_radio(size, registers), layer_scale=layer_scale, resampling=how)
    preprocess = evaluation(512, 1.0, CLIP_MEAN, CLIP_STD)
    licence = "nvidia-open-model-license"
    return Entry(config, "timm_naflex", preprocess, licence, f"timm/{name}", hf=RADIO_RESAMPLING, timm=how)


def _hf_radio(name: str, size: str) -> Entry:
    config = replace(_radio(size, 9), pool="tokens", pool_tokens=(0, 1))
    return Entry(config, "hf_radio", RADIO_EVAL, "nvidia-open-model-license", name, hf=RADIO_RESAMPLING)


NAFLEX: dict[str, Entry] = {
    **{name: _timm_siglip2(name, variant) for name, (_, variant) in _SIGLIP2.items()},
    **{name: _timm_radio(name, *row) for name, row in _RADIO.items()},
    **{f"hf:{name}": _hf_siglip2(name, variant) for name, variant in _SIGLIP2.values()},
    **{f"hf:{name}": _hf_radio(name, size) for name, size in _HF_RADIO.items()},
}
