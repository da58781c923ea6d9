"""Tiny random models of transformers that have a vision tower somewhere inside, and the path of the tower."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.helpers import randomise, relative_error
from vitbackbone import load_backbone

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
DEEP = {**VISION, "num_hidden_layers": 4}
DINO = {key: value for key, value in DEEP.items() if key != "intermediate_size"}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 64,
}
LLM = {**TEXT, "num_key_value_heads": 2}
SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [2] * 4, "window_size": 4, "image_size": 128}
HIERA = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "image_size": [64, 64]}
STAGES = {"out_features": [f"stage{n}" for n in (1, 2, 3, 4)]}
NECK = {
    "neck_hidden_sizes": [8] * 4,
    "fusion_hidden_size": 8,
    "head_hidden_size": 4,
    "reassemble_hidden_size": 8,
}
HEAD = {"hidden_dim": 32, "encoder_feedforward_dim": 16, "encoder_layers": 1, "decoder_layers": 2}
SAM = {
    "vision_config": {
        **VISION,
        "window_size": 2,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
        "output_channels": 16,
        "mlp_dim": 48,
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4},
    "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
}


@dataclass(frozen=True)
class Composite:
    """A model, the path of the module whose output is compared, and whether that output has the final norm."""

    make: Callable[[], Any]
    path: str
    norm: bool = True


def clip() -> Any:
    return hf.CLIPVisionConfig(**VISION)


def siglip() -> Any:
    return hf.SiglipVisionConfig(**VISION, vision_use_head=False)


def dinov2() -> Any:
    return hf.Dinov2Config(**DINO, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)


def two_towers(name: str, **text: object) -> Any:
    """Return a model that transformers copied from CLIP."""
    return getattr(hf, f"{name}Model")(getattr(hf, f"{name}Config")(vision_config=VISION, text_config={**TEXT, **text}))


def captioner(encoder: Any) -> Any:
    decoder = hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, add_cross_attention=True)
    return hf.VisionEncoderDecoderModel(hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))


def gemma() -> Any:
    text = hf.GemmaConfig(**LLM, head_dim=8)
    return hf.PaliGemmaConfig(vision_config=siglip(), text_config=text, image_token_index=3, projection_dim=16)


IMAGE = {"image_token_index": 3}
COMPOSITES: dict[str, Composite] = {
    "llava": Composite(
        lambda: hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(vision_config=clip(), text_config=hf.LlamaConfig(**LLM), **IMAGE)
        ),
        "model.vision_tower",
        norm=False,
    ),
    "llava next": Composite(
        lambda: hf.LlavaNextForConditionalGeneration(
            hf.LlavaNextConfig(
                vision_config=clip(), text_config=hf.LlamaConfig(**LLM), image_grid_pinpoints=[[32, 32]], **IMAGE
            )
        ),
        "model.vision_tower",
        norm=False,
    ),
    "llava onevision": Composite(
        lambda: hf.LlavaOnevisionForConditionalGeneration(
            hf.LlavaOnevisionConfig(vision_config=siglip(), text_config=hf.Qwen2Config(**LLM), **IMAGE)
        ),
        "model.vision_tower",
    ),
    "paligemma": Composite(lambda: hf.PaliGemmaForConditionalGeneration(gemma()), "model.vision_tower"),
    "colpali": Composite(lambda: hf.ColPaliForRetrieval(hf.ColPaliConfig(vlm_config=gemma())), "vlm.vision_tower"),
    "gemma 3": Composite(
        lambda: hf.Gemma3ForConditionalGeneration(
            hf.Gemma3Config(
                vision_config=siglip(),
                text_config=hf.Gemma3TextConfig(**LLM, head_dim=8),
                mm_tokens_per_image=4,
                **IMAGE,
            )
        ),
        "model.vision_tower",
    ),
    "depth anything": Composite(
        lambda: hf.DepthAnythingForDepthEstimation(
            hf.DepthAnythingConfig(backbone_config=dinov2(), patch_size=8, **NECK)
        ),
        "backbone",
    ),
    "dpt": Composite(
        lambda: hf.DPTForDepthEstimation(
            hf.DPTConfig(**DEEP, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, readout_type="project", **NECK)
        ),
        "dpt",
    ),
    "dpt of dinov2": Composite(
        lambda: hf.DPTForDepthEstimation(hf.DPTConfig(backbone_config=dinov2(), readout_type="project", **NECK)),
        "backbone",
    ),
    "zoedepth": Composite(
        lambda: hf.ZoeDepthForDepthEstimation(
            hf.ZoeDepthConfig(
                backbone_config=hf.BeitConfig(
                    **DEEP, use_relative_position_bias=True, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
                ),
                readout_type="project",
                bottleneck_features=8,
                **NECK,
            )
        ),
        "backbone",
        norm=False,
    ),
    "mask2former": Composite(
        lambda: hf.Mask2FormerForUniversalSegmentation(
            hf.Mask2FormerConfig(
                backbone_config=hf.SwinConfig(**SWIN, **STAGES),
                feature_size=32,
                mask_feature_size=32,
                num_attention_heads=2,
                dim_feedforward=16,
                **HEAD,
            )
        ),
        "model.pixel_level_module.encoder",
        norm=False,
    ),
    "upernet of swin": Composite(
        lambda: hf.UperNetForSemanticSegmentation(
            hf.UperNetConfig(backbone_config=hf.SwinConfig(**SWIN, **STAGES), hidden_size=8, use_auxiliary_head=False)
        ),
        "backbone",
    ),
    "captioner of vit": Composite(lambda: captioner(hf.ViTConfig(**VISION)), "encoder"),
    "captioner of deit": Composite(lambda: captioner(hf.DeiTConfig(**VISION)), "encoder"),
    "captioner of swin": Composite(lambda: captioner(hf.SwinConfig(**SWIN)), "encoder"),
    "donut": Composite(lambda: captioner(hf.DonutSwinConfig(**SWIN)), "encoder", norm=False),
    "dual encoder": Composite(
        lambda: hf.VisionTextDualEncoderModel(
            hf.VisionTextDualEncoderConfig.from_vision_text_configs(hf.ViTConfig(**VISION), hf.BertConfig(**TEXT))
        ),
        "vision_model",
    ),
    "sam": Composite(lambda: hf.SamModel(hf.SamConfig(**SAM)), "vision_encoder", norm=False),
    "clip": Composite(lambda: two_towers("CLIP"), "vision_model", norm=False),
    "siglip": Composite(lambda: two_towers("Siglip"), "vision_model"),
    "clipseg": Composite(lambda: two_towers("CLIPSeg"), "vision_model", norm=False),
    "owl-vit": Composite(lambda: two_towers("OwlViT"), "vision_model", norm=False),
    "chinese clip": Composite(lambda: two_towers("ChineseCLIP"), "vision_model", norm=False),
    "altclip": Composite(lambda: two_towers("AltCLIP", project_dim=16), "vision_model", norm=False),
    "git": Composite(lambda: hf.GitForCausalLM(hf.GitConfig(vision_config=VISION, **TEXT)), "git.image_encoder"),
    "idefics 3": Composite(
        lambda: hf.Idefics3ForConditionalGeneration(
            hf.Idefics3Config(vision_config=VISION, text_config=hf.LlamaConfig(**LLM), scale_factor=2)
        ),
        "model.vision_model",
    ),
    "smolvlm": Composite(
        lambda: hf.SmolVLMForConditionalGeneration(
            hf.SmolVLMConfig(vision_config=VISION, text_config=hf.LlamaConfig(**LLM), scale_factor=2)
        ),
        "model.vision_model",
    ),
    # Sibling classes of one tower
    "vit masked": Composite(lambda: hf.ViTForMaskedImageModeling(hf.ViTConfig(**VISION)), "vit"),
    "deit masked": Composite(lambda: hf.DeiTForMaskedImageModeling(hf.DeiTConfig(**VISION)), "deit"),
    "swin masked": Composite(lambda: hf.SwinForMaskedImageModeling(hf.SwinConfig(**SWIN)), "swin"),
    "beit backbone": Composite(
        lambda: hf.BeitBackbone(hf.BeitConfig(**VISION, use_relative_position_bias=True, out_indices=[2])),
        "",
        norm=False,
    ),
    "hiera backbone": Composite(lambda: hf.HieraBackbone(hf.HieraConfig(**HIERA)), ""),
    "swin backbone": Composite(lambda: hf.SwinBackbone(hf.SwinConfig(**SWIN, out_features=["stage4"])), ""),
    "swin v2 backbone": Composite(
        lambda: hf.Swinv2Backbone(hf.Swinv2Config(**SWIN, out_features=["stage4"])), "", norm=False
    ),
    "dinov2 registers backbone": Composite(
        lambda: hf.Dinov2WithRegistersBackbone(hf.Dinov2WithRegistersConfig(**DINO, out_indices=[4])), ""
    ),
    "dinov3 backbone": Composite(
        lambda: hf.DINOv3ViTBackbone(hf.DINOv3ViTConfig(**VISION, num_register_tokens=2, out_indices=[2])), ""
    ),
}


def own_output(module: nn.Module, x: Tensor) -> Tensor:
    """Return the map or the tokens that a tower itself returns for images."""
    grid = {"patch_attention_mask": torch.ones(1, 4, 4, dtype=torch.bool)}
    result = module(x, **(grid if "VisionTransformer" in type(module).__name__ else {}))
    maps = getattr(result, "feature_maps", None)
    return result.last_hidden_state if maps is None else maps[-1]


def composite_error(name: str, folder: Path) -> float:
    """Save a model into a folder, and return how far the tower loaded from there is from the tower inside."""
    case = COMPOSITES[name]
    model = randomise(case.make())
    model.save_pretrained(folder)
    with torch.inference_mode():
        backbone = load_backbone(folder)
        x = torch.randn(1, 3, *backbone.spec.image_size)
        got = backbone.forward_layers(x, [-1], norm=case.norm and backbone.spec.has_norm)[0]
        want = own_output(model.get_submodule(case.path), x)
        if name == "sam":  # the encoder ends in its neck
            return relative_error(backbone(x).pooled, want.mean(dim=(2, 3)))
        if want.ndim == 4:
            return relative_error(got.patches, want)
        return relative_error(got.tokens, want[:, -got.tokens.shape[1] :])
