"""Directories of transformers with drawn sizes and options equal their own encoders: as this ViT, or in the adapter.

Each family draws its settings from the values that its row lists, by a seed. A setting that this ViT lacks, such as an
activation, must not refuse a directory that transformers runs.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.coverage.tiny_configs import tiny
from benchmarks.coverage.transformers import _compare_at, classes, randomised
from vitbackbone import load_backbone
from vitbackbone.networks.transformers.towers import config_of, find_towers

LIMIT = 1e-5
EITHER = [True, False]
ACTIVATIONS = ["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "gelu_new", "mish"]
SIZES: dict[str, list[Any]] = {
    **{"hidden_size": [48, 60], "num_hidden_layers": [3, 4], "num_attention_heads": [3, 6]},
    **{"intermediate_size": [80, 100], "hidden_act": ACTIVATIONS, "layer_norm_eps": [1e-6, 1e-5, 1e-3]},
}
SQUARE: dict[str, list[Any]] = {**SIZES, "image_size": [48, 72], "patch_size": [12, 8]}
WIDE: dict[str, list[Any]] = {**SIZES, "image_size": [[48, 72], [40, 24]], "patch_size": [8]}
BIAS = {"qkv_bias": EITHER}
HIERA: dict[str, list[Any]] = {
    **{"embed_dim": [16, 24], "image_size": [[64, 64], [96, 96]], "depths": [[1, 1, 2, 1], [2, 1, 1, 1]]},
    **{"num_query_pool": [3, 2], "masked_unit_attention": [[True, True, False, False], [True, True, True, False]]},
    **{"mlp_ratio": [2.0, 4.0], "hidden_act": ["gelu", "relu"]},
}
SAM2: dict[str, list[Any]] = {
    **{"hidden_size": [16], "blocks_per_stage": [[1, 2, 2, 1], [2, 1, 3, 1]], "image_size": [[64, 64]]},
    **{"embed_dim_per_stage": [[16, 32, 64, 128]], "num_attention_heads_per_stage": [[1, 2, 4, 8], [2, 4, 8, 16]]},
    **{"window_size_per_stage": [[8, 4, 4, 2], [8, 4, 6, 3]], "global_attention_blocks": [[4]]},
    "window_positional_embedding_background_size": [[4, 4], [7, 7]],
}
FAMILIES: dict[str, dict[str, list[Any]]] = {
    "vit": {**WIDE, **BIAS},
    "deit": {**WIDE, **BIAS},
    "vit_mae": {**SQUARE, **BIAS, "mask_ratio": [0.0]},
    "ijepa": {**WIDE, **BIAS},
    "vit_msn": {**WIDE, **BIAS},
    "beit": {
        **SQUARE,
        **{"use_relative_position_bias": EITHER, "use_absolute_position_embeddings": EITHER},
        **{"use_mean_pooling": EITHER, "layer_scale_init_value": [0.1, 0.0]},
    },
    "data2vec-vision": {**SQUARE, "use_shared_relative_position_bias": EITHER, "use_mean_pooling": EITHER},
    "dinov2": {**SQUARE, **BIAS, "use_swiglu_ffn": EITHER, "mlp_ratio": [2, 3, 4]},
    "dinov2_with_registers": {**SQUARE, "num_register_tokens": [0, 1, 3], "use_swiglu_ffn": EITHER},
    "dinov3_vit": {
        **SQUARE,
        **{"use_gated_mlp": EITHER, "num_register_tokens": [0, 2], "key_bias": EITHER, "rope_theta": [50.0, 100.0]},
        **{"proj_bias": EITHER, "mlp_bias": EITHER},
    },
    "dpt": {**SQUARE, **BIAS, "is_hybrid": [False]},
    "yolos": {**WIDE, "num_detection_tokens": [3, 7], "use_mid_position_embeddings": EITHER},
    "clip_vision_model": SQUARE,
    "metaclip_2_vision_model": SQUARE,
    "siglip_vision_model": {**SQUARE, "vision_use_head": EITHER},
    "sam_vision_model": {
        **{**SIZES, **BIAS, "image_size": [64, 96], "patch_size": [8], "window_size": [3, 5], "mlp_dim": [100]},
        **{"global_attn_indexes": [[1], [2]], "output_channels": [20], "num_pos_feats": [24], "use_rel_pos": EITHER},
    },
    "tipsv2_vision_model": SQUARE,
    "radio": {
        **{name: values for name, values in SIZES.items() if name != "intermediate_size"},
        **{"patch_size": [8, 12], "max_img_size": [96], "num_cls_tokens": [2, 4], "num_registers": [1, 3]},
        **{"summary_idxs": [[1, 0], [1]], "mlp_ratio": [2.0, 3.0], "use_swiglu_ffn": EITHER},
    },
    "siglip2_vision_model": {**SIZES, "patch_size": [8], "num_patches": [36, 64]},
    "pixio": {**SQUARE, "n_cls_tokens": [2, 5]},
    "vitdet": {
        **{**SIZES, "image_size": [64], "patch_size": [8], "pretrain_image_size": [48], "window_size": [3]},
        **{"window_block_indices": [[0], [1, 2]], "mlp_ratio": [2, 3], "use_relative_position_embeddings": EITHER},
    },
    "hiera": HIERA,
    "sam2_hiera_det_model": SAM2,
    "dinov3_convnext": {"hidden_sizes": [[16, 32, 48, 64]], "depths": [[1, 2, 1, 1]], "layer_norm_eps": [1e-5, 1e-6]},
    "aimv2_vision_model": {
        **{**SQUARE, **BIAS, "use_head": EITHER, "mlp_bias": EITHER, "is_native": EITHER},
        "hidden_act": ["silu", "gelu", "relu"],
    },
    "pixtral": {
        **{**SIZES, "image_size": [96], "patch_size": [8], "head_dim": [16], "num_attention_heads": [3]},
        **{"hidden_size": [48], "hidden_act": ["gelu", "silu", "relu"]},
    },
    "mlcd_vision_model": {**{**SQUARE, "num_attention_heads": [3], "hidden_size": [48], "num_key_value_groups": [1]}},
}
QUICK = {("vit", 0), ("clip_vision_model", 0)}
DRAWS = [
    pytest.param(name, seed, marks=[] if (name, seed) in QUICK else [pytest.mark.slow], id=f"{name}-{seed}")
    for name in FAMILIES
    for seed in (0, 1)
]


def drawn(model_type: str, seed: int) -> dict[str, Any]:
    """Return the settings of a draw."""
    dice = random.Random(f"{model_type}{seed}")
    return {name: dice.choice(values) for name, values in FAMILIES[model_type].items()}


@pytest.mark.parametrize(("model_type", "seed"), DRAWS)
def test_a_drawn_directory_equals_its_encoder(model_type: str, seed: int, tmp_path: Path) -> None:
    kind = CONFIG_MAPPING[model_type]
    config = kind.from_dict({**tiny(kind).to_dict(), **drawn(model_type, seed)})
    torch.manual_seed(0)
    model = randomised(classes(model_type)[0](config))
    model.save_pretrained(tmp_path)
    ours = load_backbone(tmp_path)
    own = getattr(ours.config, "tower", None)
    towers = find_towers(model) if own is None else [own]
    (height, width), side = ours.spec.image_size, max(ours.spec.strides)
    sizes = [(height, width), (height + 3 * side, width + side), (max(height - side, side), width + 4 * side)]
    compared = [each for size in sizes for each in [_error(size, model, towers, ours, model_type)] if each is not None]
    assert compared
    assert max(compared) <= LIMIT


def _error(size: tuple[int, int], model: Any, towers: list[str], ours: Any, model_type: str) -> float | None:
    """Return the error at a size, or None if the encoder or the backbone refuses the size."""
    errors = []
    for path in towers:
        encoder = model.get_submodule(path)
        try:
            errors.append(_compare_at(size, encoder, config_of(model, path), ours, model_type))
        except (ValueError, RuntimeError, AssertionError):  # each encoder has its own for a size that it does not take
            continue
    return min((each for each in errors if each is not None), default=None)
