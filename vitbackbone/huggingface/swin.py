"""What a Hugging Face Swin or Swin V2 says of itself: `config.json` to a `TimmConfig`."""

from typing import Any

from vitbackbone.huggingface.fields import Json, sides
from vitbackbone.timm_adapter import TimmConfig, Windows

# transformers' defaults (configuration_swin.py, configuration_swinv2.py): files leave out or write null for these
DEFAULTS: Json = {
    "image_size": 224,
    "patch_size": 4,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "pretrained_window_sizes": [0, 0, 0, 0],
    "mlp_ratio": 4.0,
    "qkv_bias": True,
}
# What timm's Swin has no setting for, or transformers does not apply to every norm, and the one value supported
ONLY: Json = {"hidden_act": "gelu", "num_channels": 3, "use_absolute_embeddings": False, "layer_norm_eps": 1e-5}


def read_swin(config: Json) -> TimmConfig:
    """The configuration of a Swin's `config.json`. Raises `ValueError` on a setting that is not supported."""
    return _config("swin_tiny_patch4_window7_224", _settings(config), "sized")


def read_swinv2(config: Json) -> TimmConfig:
    """The same for Swin V2, for whose windows transformers goes by the `image_size` of the configuration alone."""
    settings = _settings(config)
    stages = len(settings["depths"])
    (height, width), coarsest = sides(settings["image_size"]), sides(settings["patch_size"])[0] * 2 ** (stages - 1)
    if height != width or height % coarsest:
        raise ValueError(f"config.json has image_size={height} x {width}; want a square that {coarsest} divides")
    pretrained = ("pretrained_window_sizes", tuple(settings["pretrained_window_sizes"][:stages]))
    return _config("swinv2_tiny_window8_256", settings, "fixed", pretrained)


def _config(architecture: str, settings: Json, windows: Windows, *arguments: tuple[str, Any]) -> TimmConfig:
    """`architecture` is any of the family: the arguments replace all that it sets."""
    image_size, patch_size = sides(settings["image_size"]), sides(settings["patch_size"])
    if patch_size[0] != patch_size[1]:
        raise ValueError(f"config.json has patch_size={settings['patch_size']}; only square patches are supported")
    return TimmConfig(
        architecture=architecture,
        image_size=image_size,
        size_multiple=patch_size[0],
        arguments=(
            ("img_size", image_size),
            ("patch_size", patch_size[0]),
            ("embed_dim", settings["embed_dim"]),
            ("depths", tuple(settings["depths"])),
            ("num_heads", tuple(settings["num_heads"])),
            ("window_size", settings["window_size"]),
            ("mlp_ratio", settings["mlp_ratio"]),
            ("qkv_bias", settings["qkv_bias"]),
            ("strict_img_size", False),
            *arguments,
        ),
        windows=windows,
    )


def _settings(config: Json) -> Json:
    given = {key: value for key, value in config.items() if value is not None}
    for key, wanted in ONLY.items():
        if given.get(key, wanted) != wanted:
            raise ValueError(f"config.json has {key}={given[key]!r}; only {wanted!r} is supported for a Swin")
    return {**DEFAULTS, **given}
