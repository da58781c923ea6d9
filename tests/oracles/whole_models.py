"""Whole models of transformers with a vision tower, saved as their users save them, and the tower inside as oracle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.helpers import randomise, relative_error
from tests.oracles.cases import images
from tests.oracles.transformers_towers import naflex
from vitbackbone import load_backbone

FLAT = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 8}
TOWER = {**FLAT, "image_size": 64}
MLP = {"intermediate_size": 96}
TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
LANGUAGE = {**TEXT, "num_key_value_heads": 2}
NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
STAGES = {"out_features": [f"stage{n}" for n in range(1, 5)], "reshape_hidden_states": False}
DEPTH = {**NECK, "patch_size": 8, "reassemble_hidden_size": 48, "head_hidden_size": 4}
SAM_PARTS = {
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 8},
    "mask_decoder_config": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "mlp_dim": 16,
        "iou_head_hidden_dim": 16,
        "vit_dim": 48,
    },
}
SAM_TOWER = {"output_channels": 16, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 96}


def _model(name: str, config: str, **settings: Any) -> nn.Module:
    return getattr(transformers, name)(getattr(transformers, config)(**settings))


def _config(name: str, **settings: Any) -> Any:
    return getattr(transformers, name)(**settings)


def trocr() -> nn.Module:
    decoder = {
        "d_model": 48,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64,
        "vocab_size": 64,
    }
    both = _config("ViTConfig", **TOWER, **MLP), _config("TrOCRConfig", **decoder)
    return transformers.VisionEncoderDecoderModel(
        transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*both)
    )


# name: the whole model, and the path of its tower
MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "depth anything": (
        lambda: _model(
            "DepthAnythingForDepthEstimation",
            "DepthAnythingConfig",
            backbone_config=_config("Dinov2Config", **TOWER, **STAGES),
            **DEPTH,
        ),
        "backbone",
    ),
    "zoedepth": (
        lambda: _model(
            "ZoeDepthForDepthEstimation",
            "ZoeDepthConfig",
            backbone_config=_config("BeitConfig", **TOWER, **MLP, **STAGES, use_relative_position_bias=True),
            bottleneck_features=8,
            **NECK,
        ),
        "backbone",
    ),
    "dpt": (
        lambda: _model("DPTForDepthEstimation", "DPTConfig", **TOWER, **MLP, **NECK, backbone_out_indices=[0, 1, 2, 3]),
        "dpt",
    ),
    "trocr": (trocr, "encoder"),
    "vitpose": (
        lambda: _model(
            "VitPoseForPoseEstimation", "VitPoseConfig", backbone_config=_config("VitPoseBackboneConfig", **TOWER)
        ),
        "backbone",
    ),
    "vitmatte": (
        lambda: _model(
            "VitMatteForImageMatting",
            "VitMatteConfig",
            backbone_config=_config(
                "VitDetConfig",
                **TOWER,
                num_channels=4,
                window_size=3,
                window_block_indices=[0, 2],
                residual_block_indices=[],
                out_features=["stage4"],
            ),
            hidden_size=48,
            convstream_hidden_sizes=[8, 8, 8],
            fusion_hidden_sizes=[8, 8, 8, 8],
        ),
        "backbone",
    ),
    "vit msn": (lambda: _model("ViTMSNForImageClassification", "ViTMSNConfig", **TOWER, **MLP, num_labels=5), "vit"),
    "data2vec": (
        lambda: _model(
            "Data2VecVisionForImageClassification",
            "Data2VecVisionConfig",
            **TOWER,
            **MLP,
            num_labels=5,
            use_shared_relative_position_bias=True,
        ),
        "data2vec_vision",
    ),
    "sam hq": (
        lambda: _model("SamHQModel", "SamHQConfig", vision_config={**TOWER, **SAM_TOWER}, **SAM_PARTS),
        "vision_encoder",
    ),
    "sam3": (
        lambda: _model(
            "Sam3VisionModel",
            "Sam3VisionConfig",
            backbone_config=_config(
                "Sam3ViTConfig", **TOWER, **MLP, window_size=3, global_attn_indexes=[1], pretrain_image_size=24
            ),
            fpn_hidden_size=16,
        ),
        "backbone",
    ),
    "siglip2": (
        lambda: _model(
            "Siglip2Model",
            "Siglip2Config",
            vision_config={**FLAT, **MLP, "num_patches": 64},
            text_config={**TEXT, "projection_size": 48},
        ),
        "vision_model",
    ),
    "lfm2 vl": (
        lambda: _model(
            "Lfm2VlForConditionalGeneration",
            "Lfm2VlConfig",
            vision_config=_config("Siglip2VisionConfig", **FLAT, **MLP, num_patches=64),
            text_config=_config("Lfm2Config", **LANGUAGE),
        ),
        "model.vision_tower",
    ),
    "idefics3": (
        lambda: _model(
            "Idefics3ForConditionalGeneration",
            "Idefics3Config",
            vision_config={**TOWER, **MLP},
            text_config=_config("LlamaConfig", **LANGUAGE),
            scale_factor=2,
        ),
        "model.vision_model",
    ),
    "smolvlm": (
        lambda: _model(
            "SmolVLMForConditionalGeneration",
            "SmolVLMConfig",
            vision_config={**TOWER, **MLP},
            text_config=_config("LlamaConfig", **LANGUAGE),
            scale_factor=2,
        ),
        "model.vision_model",
    ),
    "tipsv2": (lambda: _model("Tipsv2Model", "Tipsv2Config", vision_config=TOWER, text_config=TEXT), "vision_model"),
}


def tokens_of(tower: nn.Module, x: Tensor) -> Tensor:
    """The tokens (B, N, D) after the last block, without the final norm."""
    if type(tower).__name__.startswith("Siglip2"):
        return naflex(tower, x, [3]).layers[3]
    last = tower(pixel_values=x, output_hidden_states=True).hidden_states[-1]
    if last.ndim == 3:
        return last
    return last.flatten(1, 2) if last.shape[-1] == 48 else last.flatten(2).mT


def whole_error(name: str, folder: Path) -> float:
    """Save a model into a folder, and return how far the tower loaded from there is from the tower inside."""
    make, path = MODELS[name]
    model = randomise(make())
    model.save_pretrained(folder)
    backbone = load_backbone(folder)
    x = images((64, 64), channels=4 if name == "vitmatte" else 3)
    with torch.inference_mode():
        want = tokens_of(model.get_submodule(path), x)
        got = backbone.forward_layers(x, [-1], norm=False)[0].tokens
    return relative_error(got, want[:, want.shape[1] - got.shape[1] :])
