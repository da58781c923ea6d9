"""What a Hugging Face checkpoint says of itself: `config.json` and `preprocessor_config.json` to our records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitbackbone.config import Resampling, ViTConfig
from vitbackbone.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocess

Json = Mapping[str, Any]

# How transformers resamples positions (modeling_vit.py, modeling_dinov2.py; modeling_dinov2_with_registers.py).
PLAIN = Resampling("bicubic", antialias=False)
ANTIALIASED = Resampling("bicubic", antialias=True)


def _shared(config: Json) -> dict[str, Any]:
    side = config["image_size"]
    return {
        "image_size": (side, side) if isinstance(side, int) else tuple(side),
        "patch_size": config["patch_size"],
        "dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "qkv_bias": config.get("qkv_bias", True),
        "norm_eps": config["layer_norm_eps"],
    }


def _vit(config: Json) -> ViTConfig:
    return ViTConfig(**_shared(config), mlp_dim=config["intermediate_size"], resampling=PLAIN)


def _deit(config: Json) -> ViTConfig:
    return ViTConfig(**_shared(config), mlp_dim=config["intermediate_size"], num_registers=1, resampling=PLAIN)


def _dinov2(config: Json) -> ViTConfig:
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    swiglu = config["use_swiglu_ffn"]
    registers = config.get("num_register_tokens", 0)
    return ViTConfig(
        **_shared(config),
        mlp="swiglu" if swiglu else "gelu",
        mlp_dim=(int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden,
        layer_scale=True,
        num_registers=registers,
        resampling=ANTIALIASED if config["model_type"] == "dinov2_with_registers" else PLAIN,
    )


@dataclass(frozen=True)
class ModelType:
    """One `model_type` of transformers: how to read its config, and how its image processor is set if the checkpoint
    has no `preprocessor_config.json`."""

    vit_config: Callable[[Json], ViTConfig]
    preprocess: Preprocess


_DINOV2_EVAL = Preprocess((224, 224), 224 / 256, "center", "bicubic", IMAGENET_MEAN, IMAGENET_STD)

MODEL_TYPES: dict[str, ModelType] = {
    "vit": ModelType(_vit, Preprocess((224, 224), 1.0, "squash", "bilinear", HALF, HALF)),
    "deit": ModelType(_deit, Preprocess((224, 224), 224 / 256, "squash", "bicubic", IMAGENET_MEAN, IMAGENET_STD)),
    "dinov2": ModelType(_dinov2, _DINOV2_EVAL),
    "dinov2_with_registers": ModelType(_dinov2, _DINOV2_EVAL),
}


def read_config(config: Json) -> tuple[ViTConfig, Preprocess]:
    """The configuration and default preprocessing of a `config.json`.

    Raises `ValueError` on a model type that is not known here, or a setting that this ViT does not have.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"config.json has model_type={model_type!r}; want one of {', '.join(MODEL_TYPES)}")
    for key, wanted in {"hidden_act": "gelu", "num_channels": 3}.items():
        if config.get(key, wanted) != wanted:
            raise ValueError(f"config.json has {key}={config[key]!r}; only {wanted!r} is supported for {model_type}")
    return MODEL_TYPES[model_type].vit_config(config), MODEL_TYPES[model_type].preprocess


def read_format(config: Json) -> str:
    """The name of the checkpoint's key layout: the class that saved it. Raises `ValueError` if it is not named."""
    architectures = config.get("architectures") or []
    if len(architectures) != 1:
        raise ValueError(f"config.json has architectures={architectures}; want the one class that saved the weights")
    return str(architectures[0])


def read_labels(config: Json) -> tuple[str, ...]:
    """Class names in order, or () if there are none."""
    names = {int(index): str(name) for index, name in config.get("id2label", {}).items()}
    return tuple(names[index] for index in sorted(names))


RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling, as the files number it


def read_preprocess(processor: Json) -> Preprocess:
    """The settings of a `preprocessor_config.json`, whose `size` is {height, width}, {shortest_edge} or a number."""
    size, crop = processor["size"], processor.get("crop_size")
    does_crop = processor.get("do_center_crop", False)
    if isinstance(size, Mapping):
        squash = "height" in size
        resized = _sides(size) if squash else (size["shortest_edge"], size["shortest_edge"])
    else:
        squash, resized = not does_crop, _sides(size)
    image_size = _sides(crop) if does_crop and crop else resized
    return Preprocess(
        image_size=image_size,
        crop_pct=image_size[0] / resized[0],
        crop_mode="squash" if squash else "center",
        interpolation=RESAMPLE[processor.get("resample", 2)],  # type: ignore[arg-type]  # the table's values are these
        mean=tuple(processor["image_mean"]),
        std=tuple(processor["image_std"]),
    )


def _sides(size: int | Json) -> tuple[int, int]:
    """(H, W) of {height, width} or of a square's side."""
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])
