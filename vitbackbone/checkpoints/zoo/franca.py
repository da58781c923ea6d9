"""Franca (Venkataramanan et al. 2025): DINOv2 with a gated MLP at every size, by the names of the authors' hub.

The files hold the teacher, with the heads of pretraining. The files of ViT-L and ViT-g exist for two data sets.
"""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface import PLAIN
from vitbackbone.checkpoints.zoo.entry import Entry, evaluation
from vitbackbone.checkpoints.zoo.timm import SIZE_OFFSET
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import ViTConfig, vit_config

_FILES = "https://github.com/valeoai/Franca/releases/download/v1.0.0"
#    name                       size  px   hidden file
_FRANCA = {
    "franca_vitb14": ("B", 518, 2048, "franca_vitb14_In21K.pth"),
    "franca_vitl14": ("L", 224, 2736, "franca_vitl14_In21K.pth"),
    "franca_vitl14_laion": ("L", 224, 2736, "franca_vitl14_Laion600M.pth"),
    "franca_vitg14": ("g", 224, 4096, "franca_vitg14_In21K_chunked.tar.gz.part_aa to _ac"),
    "franca_vitg14_laion": ("g", 224, 4096, "franca_vitg14_Laion600M_chunked.tar.gz.part_aa to _ac"),
}
_GIANT = ViTConfig((224, 224), 14, dim=1536, depth=40, num_heads=24)


def _franca(size: str, side: int, mlp_dim: int, file: str) -> Entry:
    base = _GIANT if size == "g" else vit_config(f"{size}/14", side)
    config = replace(base, mlp="swiglu", mlp_dim=mlp_dim, layer_scale=True, resampling=SIZE_OFFSET)
    preprocess = evaluation(side, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    return Entry(config, "dinov2", preprocess, "research-only-rail", f"{_FILES}/{file}", PLAIN, on_hub=False)


FRANCA: dict[str, Entry] = {name: _franca(*row) for name, row in _FRANCA.items()}
