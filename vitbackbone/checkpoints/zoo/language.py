"""Hugging Face repositories of language models whose vision towers are known without a network.

A row is the part of the repository's `config.json` that the tower's reader needs; what it leaves out is the default.
"""

from dataclasses import replace
from typing import Any

from vitbackbone.checkpoints.huggingface.language import LANGUAGE as MODEL_TYPES
from vitbackbone.checkpoints.zoo.entry import Entry

_QWEN3_SMALL = {"hidden_size": 1024, "depth": 24, "intermediate_size": 4096}
_INTERN_300M = {
    **{"image_size": 448, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    **{"intermediate_size": 4096, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm"},
}
_QWEN25 = {"hidden_size": 1280}
_BIG_G = {"hidden_size": 1664, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 8192}
#    repository                                     model type         settings, licence
_ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "OpenGVLab/InternViT-300M-448px-V2_5": ("intern_vit_6b", _INTERN_300M, "mit"),
    "OpenGVLab/InternViT-6B-448px-V2_5": ("intern_vit_6b", {"image_size": 448, "num_hidden_layers": 45}, "mit"),
    "Qwen/Qwen2-VL-2B-Instruct": ("qwen2_vl_vision", {}, "apache-2.0"),
    "Qwen/Qwen2-VL-7B-Instruct": ("qwen2_vl_vision", {}, "apache-2.0"),
    "Qwen/Qwen2.5-VL-3B-Instruct": ("qwen2_5_vl_vision", _QWEN25, "qwen-research"),
    "Qwen/Qwen2.5-VL-7B-Instruct": ("qwen2_5_vl_vision", _QWEN25, "apache-2.0"),
    "Qwen/Qwen3-VL-2B-Instruct": ("qwen3_vl_vision", _QWEN3_SMALL, "apache-2.0"),
    "Qwen/Qwen3-VL-4B-Instruct": ("qwen3_vl_vision", _QWEN3_SMALL, "apache-2.0"),
    "Qwen/Qwen3-VL-8B-Instruct": ("qwen3_vl_vision", {}, "apache-2.0"),
    "mistral-community/pixtral-12b": ("pixtral", {"hidden_act": "silu"}, "apache-2.0"),
    "DeepGlint-AI/mlcd-vit-bigG-patch14-336": ("mlcd_vision_model", _BIG_G, "mit"),
    "DeepGlint-AI/mlcd-vit-bigG-patch14-448": ("mlcd_vision_model", {**_BIG_G, "image_size": 448}, "mit"),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (
        "llama4_vision_model",
        {"image_size": 336, "hidden_size": 1408},
        "llama4",
    ),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": ("mllama_vision_model", {"image_size": 560}, "llama3.2"),
    "meta-llama/Llama-3.2-90B-Vision-Instruct": ("mllama_vision_model", {"image_size": 560}, "llama3.2"),
    "moonshotai/MoonViT-SO-400M": ("moonvit", {}, "mit"),
}


def _entry(name: str, model_type: str, settings: dict[str, Any], licence: str) -> Entry:
    read, layout, preprocess, fixed_input = MODEL_TYPES[model_type]
    config = read(settings)
    if fixed_input:
        preprocess = replace(preprocess, image_size=config.image_size)
    return Entry(config, layout, preprocess, licence, name, config.resampling)


LANGUAGE: dict[str, Entry] = {f"hf:{name}": _entry(name, *row) for name, row in _ROWS.items()}
