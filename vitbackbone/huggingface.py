"""What a Hugging Face checkpoint says of itself: `config.json` and `preprocessor_config.json` to our records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vitbackbone.config import Resampling, ViTConfig
from vitbackbone.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocess

Json = Mapping[str, Any]

# How transformers resamples positions (modeling_vit.py, modeling_dinov2.py; modeling_dinov2_with_registers.py).
PLAIN = Resampling("bicubic", antialias=False)
ANTIALIASED = Resampling("bicubic", antialias=True)


def _get(config: Json, key: str, default: Any) -> Any:
    """A setting; older files leave out or write null for what is transformers' default."""
    value = config.get(key)
    return default if value is None else value


def _sides(size: Any) -> tuple[int, int]:
    """(H, W) of a number, a pair, or {height, width}."""
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _shared(config: Json, norm_eps: float) -> dict[str, Any]:
    height, width = _sides(_get(config, "patch_size", 16))
    if height != width:
        raise ValueError(f"config.json has patch_size={config['patch_size']}; only square patches are supported")
    return {
        "image_size": _sides(_get(config, "image_size", 224)),
        "patch_size": height,
        "dim": _get(config, "hidden_size", 768),
        "depth": _get(config, "num_hidden_layers", 12),
        "num_heads": _get(config, "num_attention_heads", 12),
        "qkv_bias": _get(config, "qkv_bias", True),
        "norm_eps": _get(config, "layer_norm_eps", norm_eps),
    }


def _vit(config: Json) -> ViTConfig:
    mlp_dim = _get(config, "intermediate_size", 3072)
    return ViTConfig(**_shared(config, 1e-12), mlp_dim=mlp_dim, resampling=PLAIN)


def _deit(config: Json) -> ViTConfig:
    return replace(_vit(config), num_registers=1)


def _dinov2(config: Json, resampling: Resampling = PLAIN) -> ViTConfig:
    shared = _shared(config, 1e-6)
    hidden = int(shared["dim"] * _get(config, "mlp_ratio", 4))
    swiglu = _get(config, "use_swiglu_ffn", False)
    return ViTConfig(
        **shared,
        mlp="swiglu" if swiglu else "gelu",
        mlp_dim=(int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden,
        layer_scale=True,
        resampling=resampling,
    )


def _dinov2_with_registers(config: Json) -> ViTConfig:
    return replace(_dinov2(config, ANTIALIASED), num_registers=_get(config, "num_register_tokens", 4))


@dataclass(frozen=True)
class ModelType:
    """One `model_type` of transformers: how to read its config, and its image processor's defaults."""

    vit_config: Callable[[Json], ViTConfig]
    preprocess: Preprocess
    fixed_input: bool  # whether the network's `image_size` is also the input's where no processor file says otherwise


VIT_EVAL = Preprocess((224, 224), 1.0, "squash", "bilinear", HALF, HALF, crop_rounding="down")
DEIT_EVAL = Preprocess((224, 224), 224 / 256, "squash", "bicubic", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")
DINOV2_EVAL = replace(DEIT_EVAL, crop_mode="center")

MODEL_TYPES: dict[str, ModelType] = {
    "vit": ModelType(_vit, VIT_EVAL, fixed_input=True),
    "deit": ModelType(_deit, DEIT_EVAL, fixed_input=True),
    "dinov2": ModelType(_dinov2, DINOV2_EVAL, fixed_input=False),
    "dinov2_with_registers": ModelType(_dinov2_with_registers, DINOV2_EVAL, fixed_input=False),
}


def read_config(config: Json) -> tuple[ViTConfig, Preprocess]:
    """The configuration and default preprocessing of a `config.json`.

    Raises `ValueError` on a model type that is not known here, or a setting that this ViT does not have.
    """
    name = config.get("model_type")
    if name not in MODEL_TYPES:
        raise ValueError(f"config.json has model_type={name!r}; want one of {', '.join(MODEL_TYPES)}")
    for key, wanted in {"hidden_act": "gelu", "num_channels": 3}.items():
        if _get(config, key, wanted) != wanted:
            raise ValueError(f"config.json has {key}={config[key]!r}; only {wanted!r} is supported for {name}")
    model_type = MODEL_TYPES[name]
    vit = model_type.vit_config(config)
    image_size = vit.image_size if model_type.fixed_input else model_type.preprocess.image_size
    return vit, replace(model_type.preprocess, image_size=image_size)


def read_format(config: Json) -> str:
    """The name of the checkpoint's key layout: the class that saved it. Raises `ValueError` if it is not named."""
    architectures = config.get("architectures") or []
    if len(architectures) != 1:
        raise ValueError(f"config.json has architectures={architectures}; want the one class that saved the weights")
    return str(architectures[0])


def read_labels(config: Json) -> tuple[str, ...]:
    """Class names in order, or () if there are none."""
    names = {int(index): str(name) for index, name in _get(config, "id2label", {}).items()}
    return tuple(names[index] for index in sorted(names))


# PIL.Image.Resampling, as the files number it
RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read_preprocess(processor: Json, default: Preprocess) -> Preprocess:
    """The settings of a `preprocessor_config.json`; `default` is its model type's.

    `size` is {height, width}, {shortest_edge}, or a number, which means what the model type's processor does with it.
    Raises `ValueError` on a setting that cannot be followed.
    """
    for key, wanted in {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}.items():
        if abs(_get(processor, key, wanted) - wanted) > 1e-6:
            raise ValueError(f"preprocessor_config.json has {key}={processor[key]}; only {wanted} is supported")
    size = _get(processor, "size", None)
    crop_mode = default.crop_mode
    if size is None:
        resized = default.scaled(default.image_size)
    elif isinstance(size, Mapping) and "shortest_edge" in size:
        resized, crop_mode = _sides(size["shortest_edge"]), "center"
    else:
        resized = _sides(size)
        if isinstance(size, Mapping):
            crop_mode = "squash"
    image_size = resized
    if _get(processor, "do_center_crop", default.crop_pct < 1):
        image_size = _sides(_get(processor, "crop_size", default.image_size))
    if image_size[0] * resized[1] != image_size[1] * resized[0] or image_size[0] > resized[0]:
        raise ValueError(
            f"preprocessor_config.json crops {image_size} from {resized}; want the same shape, and smaller"
        )
    resample = _get(processor, "resample", None)
    if resample is not None and resample not in RESAMPLE:
        raise ValueError(f"preprocessor_config.json has resample={resample}; want one of {RESAMPLE}")
    normalise = _get(processor, "do_normalize", True)
    return replace(
        default,
        image_size=image_size,
        crop_pct=image_size[0] / resized[0],
        crop_mode=crop_mode,
        interpolation=default.interpolation if resample is None else RESAMPLE[resample],
        mean=tuple(_get(processor, "image_mean", default.mean)) if normalise else (0.0, 0.0, 0.0),
        std=tuple(_get(processor, "image_std", default.std)) if normalise else (1.0, 1.0, 1.0),
    )
