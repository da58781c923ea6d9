"""Configurations of transformers' models, shrunk by the names of their settings so that a model has a few kilobytes."""

import re
from collections.abc import Mapping
from typing import Any

WIDTH, HEADS, LAYERS, VOCABULARY, SIDE = 32, 2, 2, 320, 4

# The first pattern that matches the whole name of a whole number decides its largest value.
LARGEST: tuple[tuple[str, int], ...] = (
    (r".*(vocab_size|vocab_size_or_.*|num_embeddings_text)", VOCABULARY),
    (r".*token_(id|index)|.*_token_idx", VOCABULARY - 20),
    (
        r".*(num_key_value_heads|num_attention_heads|num_heads|attention_heads|n_heads?|nheads?|n_head|kv_heads|.*_heads)",
        HEADS,
    ),
    (r".*(head_dim|head_width|kv_channels|rotary_dim|qk_rope_head_dim|qk_nope_head_dim|v_head_dim)", WIDTH // HEADS),
    (r".*(intermediate_size|ffn_dim|mlp_dim|ffn_hidden_size|feedforward_dim|inner_dim|n_inner|d_ff)", 2 * WIDTH),
    (r".*(num_hidden_layers|num_layers|_layers|n_layers?|depth|n_layer|num_blocks|layers)", LAYERS),
    (r".*(num_experts_per_tok|top_k|moe_topk|n_group|topk_group|num_experts_per_token)", 1),
    (r".*(experts|num_queries|num_query_tokens|num_latents|num_labels)", 4),
    (
        r".*(hidden_size|d_model|hidden_dim|embed_dim|embedding_dim|width|_dim|dim|channels|_size_per_layer_input|_channel)",
        WIDTH,
    ),
    (r"(max_position_embeddings|max_.*positions|n_positions|.*max_len.*|n_ctx|max_seq_len.*)", 512),
)
STAGES = ("stage_names", "out_features", "out_indices")
DROPPED = {*STAGES, "per_layer_config"}  # they name blocks that are left out
PIXELS = ("image_size", "img_size", "input_size", "image_resolution", "crop_size")
KEPT = {
    "num_channels",
    "in_channels",
    "in_chans",
    "input_channels",
    "in_channel",
    "num_image_channels",
    "channels",
    "out_channels",
    "stem_channels",
    "stage_in_channels",
    "stage_mid_channels",
    "stage_out_channels",
    "pos_emb_width",
    "patch_embed_hidden_size",
}
LISTS = {
    r".*(depths|num_layers|layer_counts|num_blocks|layers|stage_.*blocks|blocks_per_stage)": "depth",
    r".*(heads)": "heads",
    r".*(hidden_sizes|embed_dims?|dims|channels|widths|hidden_channels|neck_hidden_sizes)": "width",
}
INDICES = r".*(indexes|indices|_layers?|layer_ids|layer_idx|layers_block_type)"


# What the names do not tell: settings that must agree with each other, or that have no default.
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
SLIM = {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}
GEMMA4 = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "position_embedding_size": 64,
}
OCR_BLOCKS = {
    f"{direction}_{length}ratio": [1, 1, 0]
    for direction in ("vertical_long_to_small_conv", "horizontal_small_to_long_conv", "symmetric_conv_long")
    for length in ("long", "mid", "short")
}
OCR = {
    "kernel_list": [3, 2, 2],
    "scale_factor_list": [1, 2, 4, 8],
    "intraclass_block_config": {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0], **OCR_BLOCKS},
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "pp_ocrv5_server_det": OCR,
    "pp_ocrv6_medium_det": OCR,
    "qwen4_exp": {"text_config": {"layer_types": ["linear_attention"] * 2, "ple_layer_ids": []}},
    "align": {"vision_config": SLIM},
    "align_vision_model": SLIM,
    "efficientnet": SLIM,
    "cohere_compass": {
        "text_config": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)}
    },
    "gemma4_unified": {"vision_config": {"output_proj_dims": 32}},
    "embedding_gemma2": {"vision_config": GEMMA4},
    "molmo2": {"vision_config": {"num_position_embeddings": 16}},
    "molmo2_vision": {"num_position_embeddings": 16},
    "seggpt": {"merge_index": 0},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"]},
        "vision_config": {"sam_config": {"downsample_channels": [32, 32]}},
    },
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 1, "moe_intermediate_size": 32}},
    "sapiens2": {"num_key_value_heads_per_layer": [2, 2]},
    "gemma3n": {
        "vision_config": {"architecture": "test_efficientnet", "hidden_size": 256, "do_pooling": False},
        "text_config": {"num_kv_shared_layers": 0, "intermediate_size": 64, "activation_sparsity_pattern": [0.0, 0.0]},
    },
    "perception_lm": {"vision_config": {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 192}}},
    "timm_backbone": {"backbone": "resnet10t"},
    "vit_mae": {"mask_ratio": 0.0},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0],
    },
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "apertus1p5": {"text_config": {"vocab_size": 266500}},
    "bit": {"num_groups": 4},
    "bridgetower": {"hidden_size": 64, "vision_config": {"hidden_size": 64}, "text_config": {"hidden_size": 64}},
    "bridgetower_vision_model": {"hidden_size": 64},
    "chameleon": {"vocabulary_map": {"<image>": 9}},
    "donut-swin": {"image_size": 224},  # the last stage must hold a window
    "dots3_note": {"audio_config": {"adapter_input_size": 32}},
    "efficientloftr": {"hidden_size": 256},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}}},
    "llama4": {"vision_config": {"intermediate_size": 128, "projector_input_dim": 32, "projector_output_dim": 32}},
    "llama4_vision_model": {"intermediate_size": 128, "projector_input_dim": 32, "projector_output_dim": 32},
    "muse_spark": {"audio_config": {"num_hidden_layers": 4}},
    "neomme": {"layer_types": None},
    "emu3": {
        "vocabulary_map": {"<image>": 9},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1] * 4, "hidden_size": 32, "attn_resolutions": [3]},
    },
}


WHOLE = {
    "lightglue",
    "sam2",
    "sam2_vision_model",
    "sam2_hiera_det_model",
    "superglue",
    "superpoint",
    "textnet",
}  # as they are: their sizes agree


def tiny(config_class: Any) -> Any:
    """Return a small config of a class."""
    default = config_class()
    if config_class.model_type in WHOLE:
        return default
    settings = default.to_dict()
    for key, part in getattr(config_class, "sub_configs", {}).items():
        if settings.get(key) is None and key.startswith("vision") and hasattr(part, "model_type"):
            settings[key] = part().to_dict()
    small = _merged(shrink(settings), OVERRIDES.get(config_class.model_type, {}))
    return config_class.from_dict(small)


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def shrink(settings: Mapping[str, Any], patch: int = 0) -> dict[str, Any]:
    """Return the settings of a small model of the same kind. Configurations within it are shrunk, too."""
    patch = _patch(settings)
    small = {key: _shrunk(key, value, patch, settings) for key, value in settings.items() if key not in DROPPED}
    return {**small, **_stages(settings)}


def _stages(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs of a backbone that has a number of equal blocks: as many as before, the first ones."""
    depth = next((key for key in ("num_hidden_layers", "num_layers") if isinstance(settings.get(key), int)), None)
    if "stage_names" not in settings or depth is None:
        return {key: settings[key] for key in STAGES if key in settings}
    count = len(settings.get("out_features") or settings.get("out_indices") or [1])
    layers = max(LAYERS, count)
    return {depth: layers, "out_indices": list(range(layers - count + 1, layers + 1))}


def _patch(settings: Mapping[str, Any]) -> int:
    value = settings.get("patch_size", settings.get("spatial_patch_size", 16))
    value = value[-1] if isinstance(value, list | tuple) else value
    return value if isinstance(value, int) else 16


def _shrunk(key: str, value: Any, patch: int, settings: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        nested = key.endswith("config") or "model_type" in value or key.startswith("rope_")
        return shrink(value) if nested else value
    if key in KEPT or isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return _number(key, value, patch, settings)
    if isinstance(value, list | tuple) and value:
        return _list(key, list(value), patch, settings)
    return value


def _number(key: str, value: int, patch: int, settings: Mapping[str, Any]) -> int:
    if key in PIXELS:
        return _side(value, patch, settings)
    for pattern, largest in LARGEST:
        if re.fullmatch(pattern, key):
            return min(value, largest)
    return value


def _side(value: int, patch: int, settings: Mapping[str, Any]) -> int:
    window, depths = settings.get("window_size"), settings.get("depths")
    if isinstance(window, int) and isinstance(depths, list | tuple):
        return min(value, window * patch * 2 ** (len(depths) - 1))  # the last stage of a Swin must hold a window
    return min(value, SIDE * patch if patch > 7 else 64)


def _list(key: str, value: list[Any], patch: int, settings: Mapping[str, Any]) -> list[Any]:
    if key in PIXELS:
        return [_side(side, patch, settings) if isinstance(side, int) else side for side in value]
    if key == "layer_types" or (key.endswith("layer_types") and isinstance(value[0], str)):
        kinds = list(dict.fromkeys(value))[:LAYERS]  # one block of each kind
        return (kinds * LAYERS)[:LAYERS]
    if key == "mrope_section":  # the halves of a head, by axis
        half = WIDTH // HEADS // 2
        return [half - 2 * (half // 3), half // 3, half // 3]
    numbers = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    if not numbers:
        return value
    for pattern, kind in LISTS.items():
        if re.fullmatch(pattern, key) and len(value) > 1 and value != sorted(range(value[0], value[-1] + 1)):
            if kind == "depth":
                return [min(item, LAYERS) for item in value]
            if kind == "heads":
                return [max(item // min(value), 1) for item in value]
            if kind == "width":
                return [max(16 * item // min(value), 16) // 16 * 16 for item in value]
    if re.fullmatch(INDICES, key) and key != "out_indices":
        depth = LAYERS
        return [item for item in value if item < depth] or [depth - 1]
    return value
