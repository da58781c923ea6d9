"""Hugging Face repositories that are known without a network by the settings of their `config.json`.

A row holds what the tower's reader needs; what it leaves out is the default of the model type.
"""

from dataclasses import replace
from typing import Any

from vitbackbone.checkpoints.huggingface import MODEL_TYPES
from vitbackbone.checkpoints.zoo.entry import Entry
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import ViTConfig

_OWKIN = "owkin-non-commercial"
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_FAIR = "fair-noncommercial-research-license"  # facebookresearch/pixio, LICENSE
#    repository               model type    settings, licence
_ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    # Filiot et al. 2023 and 2024, encoders of pathology slides
    "owkin/phikon": ("vit", {}, _OWKIN),
    "owkin/phikon-v2": ("dinov2", {**_LARGE, "image_size": 224, "patch_size": 16}, _OWKIN),
    "facebook/pixio-vitb16": ("pixio", _BASE, _FAIR),
    "facebook/pixio-vitl16": ("pixio", _LARGE, _FAIR),
    "facebook/pixio-vith16": ("pixio", {}, _FAIR),
    "facebook/sam3": ("sam3_vit_model", {}, "sam-license"),
    "facebook/sapiens2-pretrain-0.4b": ("sapiens2", {"image_size": [1024, 768]}, "sapiens2-license"),
}
_COLOURS = {"owkin/phikon": (IMAGENET_MEAN, IMAGENET_STD)}  # where the processor's file is not its type's default


def _entry(name: str, model_type: str, settings: dict[str, Any], licence: str) -> Entry:
    known = MODEL_TYPES[model_type]
    config, preprocess = known.read_whole(settings)
    assert isinstance(config, ViTConfig)
    mean, std = _COLOURS.get(name, (preprocess.mean, preprocess.std))
    preprocess = replace(preprocess, mean=mean, std=std)
    return Entry(config, known.layout, preprocess, licence, name, config.resampling)


REPOSITORIES: dict[str, Entry] = {f"hf:{name}": _entry(name, *row) for name, row in _ROWS.items()}
