"""Reading the `config.json` of a Hugging Face Swin or Swin V2 into a `TimmConfig`."""

from dataclasses import replace
from typing import Any

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative, get
from vitbackbone.checkpoints.huggingface.records import Swin, read_settings
from vitbackbone.files import SHORT
from vitbackbone.networks import TimmConfig, Windows

# Settings with one supported value: timm's Swin has no setting for them, or transformers does not apply them everywhere
ONLY: Json = {"hidden_act": "gelu", "num_channels": 3, "use_absolute_embeddings": False, "layer_norm_eps": 1e-5}


def read_swin(config: Json, final_norm: bool = True) -> TimmConfig:
    """Return the configuration of a Swin's `config.json`. Raises `ValueError` on a setting that is not supported."""
    return replace(_config("swin_tiny_patch4_window7_224", _settings(config), "sized"), final_norm=final_norm)


def read_swinv2(config: Json) -> TimmConfig:
    """Return the configuration of a Swin V2. transformers derives its windows from `image_size` only."""
    settings = _settings(config)
    stages = len(settings.depths)
    (height, width), coarsest = settings.image_size, settings.patch_size[0] * 2 ** (stages - 1)
    if height != width or height % coarsest:
        raise NotNative(f"config.json has image_size={height} x {width}; want a square that {coarsest} divides")
    pretrained = ("pretrained_window_sizes", settings.pretrained_window_sizes[:stages])
    return _config("swinv2_tiny_window8_256", settings, "fixed", pretrained)


def _config(architecture: str, settings: Swin, windows: Windows, *arguments: tuple[str, Any]) -> TimmConfig:
    """Build a configuration. `architecture` is any of the family, because the arguments replace all its settings."""
    patch_size = settings.patch_size[0]
    return TimmConfig(
        architecture=architecture,
        image_size=settings.image_size,
        size_multiple=patch_size,
        arguments=(
            ("img_size", settings.image_size),
            ("patch_size", patch_size),
            ("embed_dim", settings.embed_dim),
            ("depths", settings.depths),
            ("num_heads", settings.num_heads),
            ("window_size", settings.window_size),
            ("mlp_ratio", settings.mlp_ratio),
            ("qkv_bias", settings.qkv_bias),
            ("strict_img_size", False),
            *arguments,
        ),
        windows=windows,
    )


def _settings(config: Json) -> Swin:
    for key, wanted in ONLY.items():
        given = get(config, key, wanted)
        if given != wanted or type(given) is not type(wanted):
            refused = NotNative if type(given) is type(wanted) else ValueError
            raise refused(f"config.json has {key}={SHORT.repr(given)}; only {wanted!r} is supported for a Swin")
    return read_settings(config, Swin)
