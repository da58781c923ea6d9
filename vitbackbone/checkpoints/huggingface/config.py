"""Converting `config.json` to and from the configuration of a network, for each `model_type` of transformers.

Each writer follows its reader and writes the settings that the class has. `export.save_pretrained` reads them again,
and refuses if the result differs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vitbackbone.checkpoints.huggingface.clip_kin import CLIP_KIN
from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.idefics import IDEFICS_EVAL, read_idefics
from vitbackbone.checkpoints.huggingface.language import LANGUAGE
from vitbackbone.checkpoints.huggingface.levels import (
    CONVNEXT_EVAL,
    HIERA_EVAL,
    SAM2_EVAL,
    read_dinov3_convnext,
    read_hiera,
    read_sam2,
)
from vitbackbone.checkpoints.huggingface.pixio import PIXIO_EVAL, read_pixio
from vitbackbone.checkpoints.huggingface.processor_classes import (
    CLIP_EVAL,
    DEIT_EVAL,
    DINOV2_EVAL,
    DINOV3_EVAL,
    SAM_EVAL,
    SIGLIP_EVAL,
    SWIN_EVAL,
    VIT_EVAL,
)
from vitbackbone.checkpoints.huggingface.radio import RADIO_EVAL, read_radio
from vitbackbone.checkpoints.huggingface.records import (
    Beit,
    Clip,
    Dinov2,
    Dinov3,
    File,
    Mae,
    Network,
    Projected,
    Sam,
    Siglip,
    read_settings,
    read_tower,
)
from vitbackbone.checkpoints.huggingface.sam3 import SAM3_EVAL, read_sam3
from vitbackbone.checkpoints.huggingface.sapiens2 import SAPIENS2_EVAL, read_sapiens2
from vitbackbone.checkpoints.huggingface.shared import ANTIALIASED, HIDDEN_ACT, PLAIN
from vitbackbone.checkpoints.huggingface.shared import resampled_always as _always
from vitbackbone.checkpoints.huggingface.shared import shared_fields as _shared
from vitbackbone.checkpoints.huggingface.siglip2 import NAFLEX_EVAL, read_siglip2
from vitbackbone.checkpoints.huggingface.swin import read_swin, read_swinv2
from vitbackbone.checkpoints.huggingface.tipsv2 import TIPSV2_EVAL, read_tipsv2
from vitbackbone.checkpoints.huggingface.vit_kin import DPT_EVAL, YOLOS_EVAL, read_dpt, read_msn, read_yolos
from vitbackbone.checkpoints.huggingface.vitdet import VITDET_EVAL, read_vitdet
from vitbackbone.checkpoints.huggingface.vitpose import VITPOSE_EVAL, read_vitpose
from vitbackbone.checkpoints.huggingface.vjepa import VJEPA_EVAL, read_vjepa2
from vitbackbone.files import SHORT
from vitbackbone.images import Preprocess
from vitbackbone.model import Rotary, ViTConfig
from vitbackbone.networks import TimmConfig


def _write_shared(config: ViTConfig) -> dict[str, Any]:
    height, width = config.image_size
    return {
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "hidden_act": HIDDEN_ACT[config.mlp],
        "layer_norm_eps": config.norm_eps,
    }


def _write_plain(config: ViTConfig) -> dict[str, Any]:
    """Return the settings that all classes but DINOv2 and SAM share."""
    return {**_write_shared(config), "intermediate_size": config.mlp_dim}


def _vit(config: Json) -> ViTConfig:
    return ViTConfig(**_shared(read_settings(config, Network)))


def _write_vit(config: ViTConfig) -> dict[str, Any]:
    return {**_write_plain(config), "qkv_bias": config.qkv_bias != "none"}


def _deit(config: Json) -> ViTConfig:
    return replace(_vit(config), num_registers=1)


def _mae(config: Json) -> ViTConfig:
    return ViTConfig(**_shared(read_settings(config, Mae)), position="sincos2d")


def _write_mae(config: ViTConfig) -> dict[str, Any]:
    return {**_write_vit(config), "mask_ratio": 0.0}  # pretraining masks most of the image; features need all of it


def _ijepa(config: Json) -> ViTConfig:
    return replace(_vit(config), cls=False, pool="mean")


def _dinov2(config: Json) -> ViTConfig:
    settings = read_settings(config, Dinov2)
    gated = settings.use_swiglu_ffn
    shared = _shared(settings, gated)
    width = int(settings.hidden_size * settings.mlp_ratio)
    shared["mlp_dim"] = (int(width * 2 / 3) + 7) // 8 * 8 if gated else width
    shared["resampling"] = _always(PLAIN, shared["image_size"], shared["patch_size"])
    return ViTConfig(**shared, layer_scale=True)


def _write_dinov2(config: ViTConfig) -> dict[str, Any]:
    gated = config.mlp == "swiglu"
    return {
        **_write_shared(config),
        "mlp_ratio": round(config.mlp_dim * (1.5 if gated else 1) / config.dim),
        "use_swiglu_ffn": gated,
        "qkv_bias": config.qkv_bias != "none",
    }


def _dinov2_with_registers(config: Json) -> ViTConfig:
    registers = read_settings(config, Dinov2).num_register_tokens
    plain = _dinov2(config)
    how = replace(ANTIALIASED, as_square=plain.resampling.as_square)
    return replace(plain, resampling=how, num_registers=registers)


def _write_dinov2_with_registers(config: ViTConfig) -> dict[str, Any]:
    return {**_write_dinov2(config), "num_register_tokens": config.num_registers}


def _dinov3(config: Json) -> ViTConfig:
    settings = read_settings(config, Dinov3)
    gated = settings.use_gated_mlp
    if gated and settings.hidden_act != "silu":
        raise NotNative(
            f"config.json has use_gated_mlp=True with hidden_act={SHORT.repr(settings.hidden_act)}; want 'silu'"
        )
    biases = (settings.query_bias, settings.key_bias, settings.value_bias)
    kinds = {(True, True, True): "qkv", (True, False, True): "qv", (False, False, False): "none"}
    if biases not in kinds or not settings.proj_bias or not settings.mlp_bias:
        raise NotNative(
            "config.json switches off biases that this ViT has: want proj_bias and mlp_bias, and both or none of "
            "query_bias and value_bias"
        )
    return ViTConfig(
        **{**_shared(settings, gated), "qkv_bias": kinds[biases]},
        position="none",
        rotary=Rotary(settings.rope_theta, "centred", "halves"),
        num_registers=settings.num_register_tokens,
        layer_scale=True,
    )


def _write_dinov3(config: ViTConfig) -> dict[str, Any]:
    return {
        **_write_plain(config),
        "query_bias": config.qkv_bias != "none",
        "key_bias": config.qkv_bias == "qkv",
        "value_bias": config.qkv_bias != "none",
        "use_gated_mlp": config.mlp == "swiglu",
        "num_register_tokens": config.num_registers,
        "rope_theta": config.rotary.theta if config.rotary else None,
    }


def _beit(config: Json) -> ViTConfig:
    settings = read_settings(config, Beit)
    own, shared = settings.use_relative_position_bias, settings.use_shared_relative_position_bias
    if own and shared:
        raise NotNative(
            "config.json has use_relative_position_bias and use_shared_relative_position_bias at once; want one of them"
        )
    mean, absolute, ours = settings.use_mean_pooling, settings.use_absolute_position_embeddings, _shared(settings)
    if absolute:
        ours["resampling"] = _always(PLAIN, ours["image_size"], ours["patch_size"])
    return ViTConfig(
        **{**ours, "qkv_bias": "qv"},
        position="learned" if absolute else "none",
        relative_position="table" if own or shared else "none",
        layer_scale=settings.layer_scale_init_value > 0,
        final_norm=not mean,
        fc_norm=mean,
        pool="mean" if mean else "cls",
    )


def _write_beit(config: ViTConfig) -> dict[str, Any]:
    return {
        **_write_plain(config),
        "use_absolute_position_embeddings": config.position != "none",
        "use_relative_position_bias": config.relative_position
        != "none",  # one table per block; the tables may be equal
        "layer_scale_init_value": 0.1 if config.layer_scale else 0.0,
        "use_mean_pooling": config.pool == "mean",
    }


def _clip(config: Json, schema: type[Clip] = Clip) -> ViTConfig:
    return ViTConfig(
        **_shared(read_tower(config, schema)),
        patch_bias=False,
        pre_norm=True,
        projection_dim=read_settings(config, Projected).projection_dim,
    )


def _write_clip(config: ViTConfig) -> dict[str, Any]:
    projection = {"projection_dim": config.projection_dim} if config.projection_dim else {}
    return {**_write_plain(config), **projection}


def _siglip(config: Json) -> ViTConfig:
    settings = read_tower(config, Siglip)
    return ViTConfig(**_shared(settings), cls=False, pool="map" if settings.vision_use_head else "mean")


def _write_siglip(config: ViTConfig) -> dict[str, Any]:
    return {**_write_plain(config), "vision_use_head": config.pool == "map"}


def _sam(config: Json) -> ViTConfig:
    settings = read_tower(config, Sam)
    if not (settings.use_abs_pos and settings.use_rel_pos):
        raise NotNative("config.json has use_abs_pos=False or use_rel_pos=False; this encoder has both positions")
    return ViTConfig(
        **{**_shared(settings), "mlp_dim": settings.mlp_dim or int(settings.hidden_size * settings.mlp_ratio)},
        cls=False,
        relative_position="decomposed",
        window=settings.window_size,
        global_blocks=settings.global_attn_indexes,
        final_norm=False,
        neck_dim=settings.output_channels,
        pool="neck",
    )


def _write_sam(config: ViTConfig) -> dict[str, Any]:
    return {
        **_write_shared(config),
        "mlp_dim": config.mlp_dim,
        "qkv_bias": config.qkv_bias != "none",
        "window_size": config.window,
        "global_attn_indexes": list(config.global_blocks),
        "output_channels": config.neck_dim,
    }


@dataclass(frozen=True)
class ModelType:
    """A `model_type` of transformers: how to read its config and its weights, and the defaults of its image processor.

    The rest of a checkpoint does not matter: `towers` finds the settings in a composite `config.json`, and the tower's
    keys among all keys.
    """

    read: Callable[[Json], ViTConfig | TimmConfig]  # reads the settings of this type, wherever they are in the file
    layout: str  # a key of `formats.FORMATS`, whose rules are written in keys relative to the tower
    preprocess: Preprocess
    fixed_input: bool  # whether inputs have the network's `image_size` unless a processor file says otherwise

    def read_whole(self, config: Json) -> tuple[ViTConfig | TimmConfig, Preprocess]:
        """Return the configuration and default preprocessing of settings of this type."""
        network = self.read(config)
        image_size = network.image_size if self.fixed_input else self.preprocess.image_size
        return network, replace(self.preprocess, image_size=image_size)


MODEL_TYPES: dict[str, ModelType] = {
    "vit": ModelType(_vit, "hf_vit", VIT_EVAL, fixed_input=True),
    "vit_mae": ModelType(_mae, "hf_vit", VIT_EVAL, fixed_input=True),
    "ijepa": ModelType(_ijepa, "hf_ijepa", VIT_EVAL, fixed_input=True),
    "deit": ModelType(_deit, "hf_deit", DEIT_EVAL, fixed_input=True),
    "beit": ModelType(_beit, "hf_beit", SIGLIP_EVAL, fixed_input=True),
    "dinov2": ModelType(_dinov2, "hf_dinov2", DINOV2_EVAL, fixed_input=False),
    "dinov2_with_registers": ModelType(_dinov2_with_registers, "hf_dinov2", DINOV2_EVAL, fixed_input=False),
    "dinov3_vit": ModelType(_dinov3, "hf_dinov3", DINOV3_EVAL, fixed_input=False),
    "clip": ModelType(_clip, "hf_clip", CLIP_EVAL, fixed_input=True),
    "clip_vision_model": ModelType(_clip, "hf_clip", CLIP_EVAL, fixed_input=True),
    **{
        name: ModelType(partial(_clip, schema=schema), "hf_clip", CLIP_EVAL, fixed_input=True)
        for name, schema in CLIP_KIN.items()
    },
    "siglip": ModelType(_siglip, "hf_siglip", SIGLIP_EVAL, fixed_input=True),
    "siglip_vision_model": ModelType(_siglip, "hf_siglip", SIGLIP_EVAL, fixed_input=True),
    "swin": ModelType(read_swin, "hf_swin", SWIN_EVAL, fixed_input=True),
    "donut-swin": ModelType(partial(read_swin, final_norm=False), "hf_swin", SWIN_EVAL, fixed_input=True),
    "maskformer-swin": ModelType(read_swin, "hf_swin", SWIN_EVAL, fixed_input=True),
    "swinv2": ModelType(read_swinv2, "hf_swinv2", SWIN_EVAL, fixed_input=True),
    "sam": ModelType(_sam, "hf_sam", SAM_EVAL, fixed_input=True),
    "sam_vision_model": ModelType(_sam, "hf_sam", SAM_EVAL, fixed_input=True),
    "sam_hq": ModelType(_sam, "hf_sam", SAM_EVAL, fixed_input=True),
    "sam_hq_vision_model": ModelType(_sam, "hf_sam", SAM_EVAL, fixed_input=True),
    "sam3_vit_model": ModelType(read_sam3, "hf_sam3", SAM3_EVAL, fixed_input=True),
    "vit_msn": ModelType(read_msn, "hf_vit_msn", VIT_EVAL, fixed_input=True),
    "dpt": ModelType(read_dpt, "hf_vit", DPT_EVAL, fixed_input=True),
    "yolos": ModelType(read_yolos, "hf_yolos", YOLOS_EVAL, fixed_input=True),
    "data2vec-vision": ModelType(_beit, "hf_beit", SIGLIP_EVAL, fixed_input=True),
    "tipsv2_vision_model": ModelType(read_tipsv2, "hf_tipsv2", TIPSV2_EVAL, fixed_input=True),
    "radio": ModelType(read_radio, "hf_radio", RADIO_EVAL, fixed_input=False),
    "siglip2": ModelType(read_siglip2, "hf_siglip2", NAFLEX_EVAL, fixed_input=False),
    "siglip2_vision_model": ModelType(read_siglip2, "hf_siglip2", NAFLEX_EVAL, fixed_input=False),
    "idefics2_vision": ModelType(read_idefics, "hf_siglip", IDEFICS_EVAL, fixed_input=True),
    "idefics3_vision": ModelType(read_idefics, "hf_siglip", IDEFICS_EVAL, fixed_input=True),
    "smolvlm_vision": ModelType(read_idefics, "hf_siglip", IDEFICS_EVAL, fixed_input=True),
    "pixio": ModelType(read_pixio, "hf_pixio", PIXIO_EVAL, fixed_input=False),
    "vitdet": ModelType(read_vitdet, "hf_vitdet", VITDET_EVAL, fixed_input=True),
    "hiera": ModelType(read_hiera, "hf_hiera", HIERA_EVAL, fixed_input=True),
    "sam2_hiera_det_model": ModelType(read_sam2, "hf_sam2", SAM2_EVAL, fixed_input=True),
    "dinov3_convnext": ModelType(read_dinov3_convnext, "hf_dinov3_convnext", CONVNEXT_EVAL, fixed_input=True),
    "sapiens2": ModelType(read_sapiens2, "hf_sapiens2", SAPIENS2_EVAL, fixed_input=True),
    "vjepa2": ModelType(read_vjepa2, "hf_vjepa2", VJEPA_EVAL, fixed_input=True),
    "vitpose_backbone": ModelType(read_vitpose, "hf_vitpose", VITPOSE_EVAL, fixed_input=True),
    "metaclip_2": ModelType(_clip, "hf_clip", CLIP_EVAL, fixed_input=True),
    "metaclip_2_vision_model": ModelType(_clip, "hf_clip", CLIP_EVAL, fixed_input=True),
    **{name: ModelType(*row) for name, row in LANGUAGE.items()},
}


# The classes that a directory can be written for: their model type, and the function that writes their settings. Models
# with a text tower or a decoder are not among them.
CLASSES: dict[str, tuple[str, Callable[[ViTConfig], dict[str, Any]]]] = {
    "ViTModel": ("vit", _write_vit),
    "ViTForImageClassification": ("vit", _write_vit),
    "ViTMAEModel": ("vit_mae", _write_mae),
    "IJepaModel": ("ijepa", _write_vit),
    "IJepaForImageClassification": ("ijepa", _write_vit),
    "DeiTModel": ("deit", _write_vit),
    "DeiTForImageClassification": ("deit", _write_vit),
    "DeiTForImageClassificationWithTeacher": ("deit", _write_vit),
    "BeitModel": ("beit", _write_beit),
    "BeitForImageClassification": ("beit", _write_beit),
    "Dinov2Model": ("dinov2", _write_dinov2),
    "Dinov2ForImageClassification": ("dinov2", _write_dinov2),
    "Dinov2WithRegistersModel": ("dinov2_with_registers", _write_dinov2_with_registers),
    "Dinov2WithRegistersForImageClassification": ("dinov2_with_registers", _write_dinov2_with_registers),
    "DINOv3ViTModel": ("dinov3_vit", _write_dinov3),
    "CLIPVisionModel": ("clip_vision_model", _write_clip),
    "CLIPVisionModelWithProjection": ("clip_vision_model", _write_clip),
    "SiglipVisionModel": ("siglip_vision_model", _write_siglip),
    "SamVisionModel": ("sam_vision_model", _write_sam),
}


def write_config(config: ViTConfig, architecture: str) -> dict[str, Any]:
    """Return a `config.json` for one of `CLASSES`, with the settings that this class has."""
    model_type, settings = CLASSES[architecture]
    shared = {"architectures": [architecture], "model_type": model_type, "num_channels": config.channels}
    return {**shared, **settings(config)}


def read_config(config: Json) -> tuple[ViTConfig | TimmConfig, Preprocess]:
    """Return the configuration and default preprocessing of a `config.json`.

    Raises `ValueError` that names the key if the model type is unknown, if a value does not fit its schema in
    `records.py`, or if this ViT lacks a setting.
    """
    return _model_type(config).read_whole(config)


def read_architecture(config: Json) -> str:
    """Return the class that saved the weights, or "" if the file names none or several."""
    architectures = read_settings(config, File).architectures
    return architectures[0] if len(architectures) == 1 else ""


def written_layout(config: Json) -> str:
    """Return the key layout of the class that a `config.json` of `write_config` names. BEiT's depends on a switch."""
    (architecture,) = read_settings(config, File).architectures
    absolute = architecture.startswith("Beit") and read_settings(config, Beit).use_absolute_position_embeddings
    return architecture + " absolute" * absolute


def _model_type(config: Json) -> ModelType:
    name = read_settings(config, File).model_type
    if name not in MODEL_TYPES:
        raise ValueError(f"config.json has model_type={SHORT.repr(name)}; want one of {', '.join(MODEL_TYPES)}")
    return MODEL_TYPES[name]


def read_labels(config: Json) -> tuple[str, ...]:
    """Return the class names in order, or () if there are none. Raises `ValueError` if they are not numbered from 0."""
    given = read_settings(config, File).id2label
    names = {int(index): name for index, name in given.items() if index.isdecimal()}
    if sorted(names) != list(range(len(given))):
        raise ValueError(f"config.json has id2label with {len(given)} classes that are not numbered from 0")
    return tuple(names[index] for index in sorted(names))


def write_labels(labels: tuple[str, ...], count: int) -> dict[str, Any]:
    """Return the part of a `config.json` about the classes, which may have no names."""
    if not labels:
        return {"num_labels": count}
    names = {str(index): name for index, name in enumerate(labels)}
    return {"id2label": names, "label2id": {name: index for index, name in enumerate(labels)}}
