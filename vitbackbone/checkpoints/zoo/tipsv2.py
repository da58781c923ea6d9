"""TIPSv2 (Google 2026): DINOv2 with a second CLS token, trained with text; images have values from 0 to 1."""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface.tipsv2 import TIPSV2_EVAL, TIPSV2_RESAMPLING
from vitbackbone.checkpoints.zoo.entry import Entry, evaluation
from vitbackbone.model import ViTConfig, vit_config

#    timm's name                              transformers' repository  size
_TIPSV2 = {
    "vit_base_patch14_reg1_tipsv2.webli": ("google/tipsv2-b14", "B"),
    "vit_large_patch14_reg1_tipsv2.webli": ("google/tipsv2-l14", "L"),
    "vit_so400m_patch14_reg1_tipsv2.webli": ("google/tipsv2-so400m14", "So"),
    "vit_giant_patch14_reg1_tipsv2.webli": ("google/tipsv2-g14", "g"),
}
_GIANT = ViTConfig((448, 448), 14, dim=1536, depth=40, num_heads=24, mlp="swiglu", mlp_dim=4096)


def _config(size: str) -> ViTConfig:
    base = _GIANT if size == "g" else vit_config(f"{size}/14", 448)
    return replace(base, layer_scale=True, num_registers=1, resampling=TIPSV2_RESAMPLING)


def _timm(name: str, size: str) -> Entry:
    preprocess = evaluation(448, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Entry(_config(size), "timm_no_embed_class", preprocess, "apache-2.0", f"timm/{name}", hf=TIPSV2_RESAMPLING)


def _hf(name: str, size: str) -> Entry:
    return Entry(_config(size), "hf_tipsv2", TIPSV2_EVAL, "apache-2.0", name, hf=TIPSV2_RESAMPLING)


TIPSV2: dict[str, Entry] = {
    **{name: _timm(name, size) for name, (_, size) in _TIPSV2.items()},
    **{f"hf:{name}": _hf(name, size) for name, size in _TIPSV2.values()},
}
