"""`config.json` to and from the configuration of a network: what each `model_type` of transformers says of itself.

A writer stands behind its reader and writes what it can; `export.save_pretrained` reads that again, and refuses where
something else comes back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vitbackbone.config import MlpKind, Resampling, Rotary, ViTConfig
from vitbackbone.huggingface.fields import Json, get, sides
from vitbackbone.huggingface.processor import (
    CLIP_EVAL,
    DEIT_EVAL,
    DINOV2_EVAL,
    DINOV3_EVAL,
    SAM_EVAL,
    SIGLIP_EVAL,
    SWIN_EVAL,
    VIT_EVAL,
)
from vitbackbone.huggingface.swin import read_swin, read_swinv2
from vitbackbone.preprocess import Preprocess
from vitbackbone.timm_adapter import TimmConfig

# How transformers resamples positions (modeling_vit.py, modeling_dinov2.py; modeling_dinov2_with_registers.py).
PLAIN = Resampling("bicubic", antialias=False, relative="bilinear")
ANTIALIASED = Resampling("bicubic", antialias=True, relative="bilinear")


def _shared(config: Json, gated: bool = False, **defaults: Any) -> dict[str, Any]:
    """What every model type has. `defaults`: where a type's are not ViT's, since older files leave them out."""

    def own(key: str, default: Any) -> Any:
        return get(config, key, defaults.get(key, default))

    height, width = sides(own("patch_size", 16))
    if height != width:
        raise ValueError(f"config.json has patch_size={config['patch_size']}; only square patches are supported")
    activation = own("hidden_act", "gelu")
    if not gated and activation not in ACTIVATIONS:
        raise ValueError(f"config.json has hidden_act={activation!r}; want one of {', '.join(ACTIVATIONS)}")
    rows, columns = (side // height for side in sides(own("image_size", 224)))
    return {
        "image_size": (rows * height, columns * height),  # that positions are for: SigLIP's 384 has 27 patches of 14
        "patch_size": height,
        "dim": own("hidden_size", 768),
        "depth": own("num_hidden_layers", 12),
        "num_heads": own("num_attention_heads", 12),
        "mlp_dim": own("intermediate_size", 3072),
        "mlp": "swiglu" if gated else ACTIVATIONS[activation],
        "qkv_bias": "qkv" if own("qkv_bias", True) else "none",
        "norm_eps": own("layer_norm_eps", 1e-12),
        "resampling": PLAIN,
    }


ACTIVATIONS: dict[str, MlpKind] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
HIDDEN_ACT = {**{ours: theirs for theirs, ours in ACTIVATIONS.items()}, "swiglu": "silu"}


def _write_shared(config: ViTConfig) -> dict[str, Any]:
    return {
        "image_size": config.image_size[0],  # a square: transformers resamples no other table of positions
        "patch_size": config.patch_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "hidden_act": HIDDEN_ACT[config.mlp],
        "layer_norm_eps": config.norm_eps,
    }


def _write_plain(config: ViTConfig) -> dict[str, Any]:
    """What all but DINOv2 and SAM share."""
    return {**_write_shared(config), "intermediate_size": config.mlp_dim}


def _vit(config: Json) -> ViTConfig:
    return ViTConfig(**_shared(config))


def _write_vit(config: ViTConfig) -> dict[str, Any]:
    return {**_write_plain(config), "qkv_bias": config.qkv_bias != "none"}


def _deit(config: Json) -> ViTConfig:
    return replace(_vit(config), num_registers=1)


def _mae(config: Json) -> ViTConfig:
    return replace(_vit(config), position="sincos2d")


def _write_mae(config: ViTConfig) -> dict[str, Any]:
    return {**_write_vit(config), "mask_ratio": 0.0}  # features of the whole image, where pretraining hides most of it


def _ijepa(config: Json) -> ViTConfig:
    return replace(_vit(config), cls=False, pool="mean")


def _dinov2(config: Json) -> ViTConfig:
    gated = get(config, "use_swiglu_ffn", False)
    shared = _shared(config, gated, layer_norm_eps=1e-6)
    shared["mlp_dim"] = int(shared["dim"] * get(config, "mlp_ratio", 4))
    if gated:
        shared |= {"mlp_dim": (int(shared["mlp_dim"] * 2 / 3) + 7) // 8 * 8}
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
    registers = get(config, "num_register_tokens", 4)
    return replace(_dinov2(config), resampling=ANTIALIASED, num_registers=registers)


def _write_dinov2_with_registers(config: ViTConfig) -> dict[str, Any]:
    return {**_write_dinov2(config), "num_register_tokens": config.num_registers}


def _dinov3(config: Json) -> ViTConfig:
    small: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    gated = get(config, "use_gated_mlp", False)
    if gated and get(config, "hidden_act", "gelu") != "silu":
        given = config.get("hidden_act")
        raise ValueError(f"config.json has use_gated_mlp=True with hidden_act={given!r}; want 'silu'")
    shared = _shared(config, gated, **small, layer_norm_eps=1e-5)
    biases = tuple(get(config, f"{part}_bias", part != "key") for part in ("query", "key", "value"))
    kinds = {(True, True, True): "qkv", (True, False, True): "qv", (False, False, False): "none"}
    if biases not in kinds or not get(config, "proj_bias", True) or not get(config, "mlp_bias", True):
        raise ValueError("config.json leaves out biases that this ViT has: want proj_bias, mlp_bias, and query, value")
    return ViTConfig(
        **{**shared, "qkv_bias": kinds[biases]},
        position="none",
        rotary=Rotary(get(config, "rope_theta", 100.0), "centred", "halves"),
        num_registers=get(config, "num_register_tokens", 0),
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
    own, shared = (get(config, f"use_{kind}relative_position_bias", False) for kind in ("", "shared_"))
    if own and shared:
        raise ValueError("config.json has relative positions per block and shared ones at once; want one of them")
    pretraining = config.get("architectures") == ["BeitForMaskedImageModeling"]
    mean = get(config, "use_mean_pooling", True)
    return ViTConfig(
        **{**_shared(config), "qkv_bias": "qv"},
        position="learned" if get(config, "use_absolute_position_embeddings", False) else "none",
        relative_position="table" if own or shared else "none",
        layer_scale=get(config, "layer_scale_init_value", 0.1) > 0,
        final_norm=pretraining or not mean,
        fc_norm=mean and not pretraining,
        pool="mean" if mean else "cls",
    )


def _write_beit(config: ViTConfig) -> dict[str, Any]:
    return {
        **_write_plain(config),
        "use_absolute_position_embeddings": config.position != "none",
        "use_relative_position_bias": config.relative_position != "none",  # a table per block, which may be the same
        "layer_scale_init_value": 0.1 if config.layer_scale else 0.0,
        "use_mean_pooling": config.pool == "mean",
    }


def _clip(config: Json) -> ViTConfig:
    tower = get(config, "vision_config", config)
    defaults: dict[str, Any] = {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    projected = config.get("architectures") in (["CLIPModel"], ["CLIPVisionModelWithProjection"])
    return ViTConfig(
        **_shared(tower, **defaults),
        patch_bias=False,
        pre_norm=True,
        projection_dim=get(config, "projection_dim", 512) if projected else 0,
    )


def _write_clip(config: ViTConfig) -> dict[str, Any]:
    projection = {"projection_dim": config.projection_dim} if config.projection_dim else {}
    return {**_write_plain(config), **projection}


def _siglip(config: Json) -> ViTConfig:
    tower = get(config, "vision_config", config)
    shared = _shared(tower, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    return ViTConfig(**shared, cls=False, pool="map" if get(tower, "vision_use_head", True) else "mean")


def _write_siglip(config: ViTConfig) -> dict[str, Any]:
    return {**_write_plain(config), "vision_use_head": config.pool == "map"}


def _sam(config: Json) -> ViTConfig:
    tower = get(config, "vision_config", config)
    shared = _shared(tower, image_size=1024, layer_norm_eps=1e-6)
    if not (get(tower, "use_abs_pos", True) and get(tower, "use_rel_pos", True)):
        raise ValueError("config.json leaves out absolute or relative positions, which this encoder has")
    return ViTConfig(
        **{**shared, "mlp_dim": get(tower, "mlp_dim", int(shared["dim"] * get(tower, "mlp_ratio", 4.0)))},
        cls=False,
        relative_position="decomposed",
        window=get(tower, "window_size", 14),
        global_blocks=tuple(get(tower, "global_attn_indexes", (2, 5, 8, 11))),
        final_norm=False,
        neck_dim=get(tower, "output_channels", 256),
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


def _beit_layout(config: Json) -> str:
    """The key layout depends on two switches; see `formats.huggingface.BEIT`."""
    absolute = get(config, "use_absolute_position_embeddings", False)
    return " absolute" * absolute + " shared" * get(config, "use_shared_relative_position_bias", False)


@dataclass(frozen=True)
class ModelType:
    """One `model_type` of transformers: how to read its config, and its image processor's defaults."""

    read: Callable[[Json], ViTConfig | TimmConfig]
    preprocess: Preprocess
    fixed_input: bool  # whether the network's `image_size` is also the input's where no processor file says otherwise
    layout: Callable[[Json], str] = lambda config: ""  # what comes after the class in the name of the key layout


MODEL_TYPES: dict[str, ModelType] = {
    "vit": ModelType(_vit, VIT_EVAL, fixed_input=True),
    "vit_mae": ModelType(_mae, VIT_EVAL, fixed_input=True),
    "ijepa": ModelType(_ijepa, VIT_EVAL, fixed_input=True),
    "deit": ModelType(_deit, DEIT_EVAL, fixed_input=True),
    "beit": ModelType(_beit, SIGLIP_EVAL, fixed_input=True, layout=_beit_layout),
    "dinov2": ModelType(_dinov2, DINOV2_EVAL, fixed_input=False),
    "dinov2_with_registers": ModelType(_dinov2_with_registers, DINOV2_EVAL, fixed_input=False),
    "dinov3_vit": ModelType(_dinov3, DINOV3_EVAL, fixed_input=False),
    "clip": ModelType(_clip, CLIP_EVAL, fixed_input=True),
    "clip_vision_model": ModelType(_clip, CLIP_EVAL, fixed_input=True),
    "siglip": ModelType(_siglip, SIGLIP_EVAL, fixed_input=True),
    "siglip_vision_model": ModelType(_siglip, SIGLIP_EVAL, fixed_input=True),
    "swin": ModelType(read_swin, SWIN_EVAL, fixed_input=True),
    "swinv2": ModelType(read_swinv2, SWIN_EVAL, fixed_input=True),
    "sam": ModelType(_sam, SAM_EVAL, fixed_input=True),
    "sam_vision_model": ModelType(_sam, SAM_EVAL, fixed_input=True),
}


# The classes that a directory can be written for: model type, and what writes its settings. No whole model with a text
# tower or a decoder is among them.
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
    """A `config.json` for one of `CLASSES`. What this class has no setting for is left out."""
    model_type, settings = CLASSES[architecture]
    return {"architectures": [architecture], "model_type": model_type, "num_channels": 3, **settings(config)}


def read_config(config: Json) -> tuple[ViTConfig | TimmConfig, Preprocess]:
    """The configuration and default preprocessing of a `config.json`.

    Raises `ValueError` on a model type that is not known here, or a setting that this ViT does not have.
    """
    model_type = _model_type(config)
    if get(config, "num_channels", 3) != 3:
        raise ValueError(f"config.json has num_channels={config['num_channels']}; only 3 are supported")
    network = model_type.read(config)
    image_size = network.image_size if model_type.fixed_input else model_type.preprocess.image_size
    return network, replace(model_type.preprocess, image_size=image_size)


def read_format(config: Json) -> str:
    """The name of the checkpoint's key layout: the class that saved it. Raises `ValueError` if it is not named."""
    architectures = config.get("architectures") or []
    if len(architectures) != 1:
        raise ValueError(f"config.json has architectures={architectures}; want the one class that saved the weights")
    return str(architectures[0]) + _model_type(config).layout(config)


def _model_type(config: Json) -> ModelType:
    name = config.get("model_type")
    if name not in MODEL_TYPES:
        raise ValueError(f"config.json has model_type={name!r}; want one of {', '.join(MODEL_TYPES)}")
    return MODEL_TYPES[name]


def read_labels(config: Json) -> tuple[str, ...]:
    """Class names in order, or () if there are none."""
    names = {int(index): str(name) for index, name in get(config, "id2label", {}).items()}
    return tuple(names[index] for index in sorted(names))


def write_labels(labels: tuple[str, ...], count: int) -> dict[str, Any]:
    """The part of a `config.json` about the classes, which may have no names."""
    if not labels:
        return {"num_labels": count}
    names = {str(index): name for index, name in enumerate(labels)}
    return {"id2label": names, "label2id": {name: index for index, name in enumerate(labels)}}
