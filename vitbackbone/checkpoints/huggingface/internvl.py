"""InternViT (Chen et al. 2024), the vision tower of InternVL: 300 million parameters with layer norms, and 6 billion
with norms of the root mean square, on queries and keys too."""

from typing import Literal

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.processor_classes import SWIN_EVAL
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Network, Pair, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import shared_fields
from vitbackbone.images import Preprocess
from vitbackbone.model import ViTConfig

INTERNVL_EVAL: Preprocess = SWIN_EVAL  # photos squashed to a square, ImageNet's mean; tiles of a photo alike


class InternVl(Network):
    """InternViT, with the defaults of the one with 300 million parameters."""

    image_size: Pair = (448, 448)
    patch_size: Pair = (14, 14)
    hidden_size: Width = 1024
    num_hidden_layers: Depth = 24
    num_attention_heads: Heads = 16
    intermediate_size: Width = 4096
    layer_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    use_qk_norm: bool = False
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    use_absolute_position_embeddings: bool = True
    use_mean_pooling: bool = True


class InternVit(Network):
    """InternViT in its authors' own repositories, with the defaults of the one with 6 billion parameters."""

    patch_size: Pair = (14, 14)
    hidden_size: Width = 3200
    num_hidden_layers: Depth = 48
    num_attention_heads: Heads = 25
    intermediate_size: Width = 12800
    layer_norm_eps: Epsilon = 1e-6
    qkv_bias: bool = False
    qk_normalization: bool = True
    norm_type: Literal["layer_norm", "rms_norm"] = "rms_norm"


def read_intern_vit(config: Json) -> ViTConfig:
    """Return the configuration of an `intern_vit_6b`, as the authors name InternViT of every size. They pool by CLS."""
    settings = read_settings(config, InternVit)
    root_mean_square = settings.norm_type == "rms_norm"
    if settings.qk_normalization and not root_mean_square:
        raise ValueError("config.json has qk_normalization=True with norm_type='layer_norm'; want 'rms_norm'")
    return ViTConfig(
        **shared_fields(settings),
        norm="rms" if root_mean_square else "layer",
        qk_norm="full" if settings.qk_normalization else "none",
        layer_scale=True,
        final_norm=False,
    )


def read_internvl(config: Json) -> ViTConfig:
    """Return the configuration of an `internvl_vision`. Raises `ValueError` on a mix of norms that this ViT lacks."""
    settings = read_settings(config, InternVl)
    root_mean_square = settings.norm_type == "rms_norm"
    if settings.use_qk_norm and (not root_mean_square or settings.layer_norm_eps != 1e-6):
        raise NotNative(
            f"config.json has use_qk_norm=True with norm_type={settings.norm_type!r} and layer_norm_eps="
            f"{settings.layer_norm_eps}; want 'rms_norm' and 1e-06, as queries and keys have"
        )
    if root_mean_square and not settings.use_mean_pooling:
        raise NotNative(
            "config.json has norm_type='rms_norm' with use_mean_pooling=False, whose final norm is a layer norm; this "
            "ViT has norms of one kind"
        )
    return ViTConfig(
        **{**shared_fields(settings), "qkv_bias": "qkv" if settings.attention_bias else "none"},
        position="learned" if settings.use_absolute_position_embeddings else "none",
        norm="rms" if root_mean_square else "layer",
        qk_norm="full" if settings.use_qk_norm else "none",
        layer_scale=True,
        final_norm=not settings.use_mean_pooling,
        pool="mean" if settings.use_mean_pooling else "cls",
    )
