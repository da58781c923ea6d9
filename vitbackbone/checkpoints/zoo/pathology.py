"""Encoders of pathology slides, from the model cards of their repositories. Most are gated: accept the licence first.

Their `config.json` is timm's, and lacks the gated MLP of UNI 2, Virchow and Prov-GigaPath, which is a class in Python.
"""

from dataclasses import replace
from typing import Any

from vitbackbone.checkpoints.zoo.entry import TIMM_RESAMPLING, Entry, Triple
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocess
from vitbackbone.model import ViTConfig, vit_config

_HUGE: dict[str, Any] = {"dim": 1280, "depth": 32, "num_heads": 16, "mlp": "swiglu", "mlp_dim": 3416}
_GIANT: dict[str, Any] = {"dim": 1536, "num_heads": 24, "mlp": "swiglu", "mlp_dim": 4096}
HOPTIMUS_MEAN, HOPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)


def _config(patch_size: int, **fields: Any) -> ViTConfig:
    base = ViTConfig((224, 224), patch_size, layer_scale=True, resampling=TIMM_RESAMPLING)
    return replace(base, **fields)


def _entry(
    config: ViTConfig,
    layout: str,
    licence: str,
    name: str,
    interpolation: Interpolation = "bicubic",
    crop_pct: float = 1.0,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Entry:
    preprocess = Preprocess((224, 224), crop_pct, "center", interpolation, mean, std)
    return Entry(config, layout, preprocess, licence, name)


_UNI = replace(vit_config("L/16"), layer_scale=True, resampling=TIMM_RESAMPLING)
_ENTRIES = {
    # Chen et al. 2024, "Towards a general-purpose foundation model for computational pathology"
    "MahmoodLab/UNI": _entry(_UNI, "timm", "cc-by-nc-nd-4.0", "MahmoodLab/UNI", "bilinear"),
    "MahmoodLab/UNI2-h": _entry(
        _config(14, **_GIANT, depth=24, num_registers=8),
        "timm_no_embed_class",
        "cc-by-nc-nd-4.0",
        "MahmoodLab/UNI2-h",
        "bilinear",
    ),
    # Vorontsov et al. 2024; Zimmermann et al. 2024
    "paige-ai/Virchow": _entry(_config(14, **_HUGE, pool="cls_mean"), "timm_prefix", "apache-2.0", "paige-ai/Virchow"),
    "paige-ai/Virchow2": _entry(
        _config(14, **_HUGE, pool="cls_mean", num_registers=4), "timm_prefix", "cc-by-nc-nd-4.0", "paige-ai/Virchow2"
    ),
    # Xu et al. 2024
    "prov-gigapath/prov-gigapath": _entry(
        _config(16, **_GIANT, depth=40), "timm", "apache-2.0", "prov-gigapath/prov-gigapath", crop_pct=224 / 256
    ),
    # Saillard et al. 2024
    "bioptimus/H-optimus-0": _entry(
        _config(14, **_GIANT, depth=40, num_registers=4),
        "timm_no_embed_class",
        "apache-2.0",
        "bioptimus/H-optimus-0",
        mean=HOPTIMUS_MEAN,
        std=HOPTIMUS_STD,
    ),
    "bioptimus/H-optimus-1": _entry(
        _config(14, **_GIANT, depth=40, num_registers=4),
        "timm_no_embed_class",
        "cc-by-nc-nd-4.0",
        "bioptimus/H-optimus-1",
        mean=HOPTIMUS_MEAN,
        std=HOPTIMUS_STD,
    ),
}
PATHOLOGY: dict[str, Entry] = {f"hf:{name}": entry for name, entry in _ENTRIES.items()}
