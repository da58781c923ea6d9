"""Pixtral (Agrawal et al. 2024), the vision tower of Pixtral and Mistral 3."""

from typing import Annotated, Any

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.processor_classes import CLIP_EVAL
from vitbackbone.checkpoints.huggingface.records import Depth, Heads, Pair, Square, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import gate, rope_theta
from vitbackbone.images import Preprocess
from vitbackbone.model import Rotary, ViTConfig

PIXTRAL_EVAL = Preprocess((1024, 1024), 1.0, "squash", "bicubic", CLIP_EVAL.mean, CLIP_EVAL.std, crop_rounding="down")


class Pixtral(Square):
    """The vision tower of Pixtral."""

    image_size: Pair = (1024, 1024)
    hidden_size: Width = 1024
    num_hidden_layers: Depth = 24
    num_attention_heads: Heads = 16
    intermediate_size: Width = 4096
    head_dim: Annotated[int, Field(ge=4, le=1 << 12)] | None = None
    rope_parameters: dict[str, Any] = Field(default_factory=dict)
    rope_theta: Annotated[float, Field(gt=0)] | None = None  # as version 4 wrote it


def read_pixtral(config: Json) -> ViTConfig:
    """Return the configuration of a `pixtral`, which has rotary positions alone."""
    settings = read_settings(config, Pixtral)
    if settings.head_dim not in (None, settings.hidden_size // settings.num_attention_heads):
        raise NotNative(
            f"config.json has head_dim={settings.head_dim}; want hidden_size / num_attention_heads = "
            f"{settings.hidden_size // settings.num_attention_heads}"
        )
    patch = settings.patch_size[0]
    side = settings.image_size[0] // patch * patch
    return ViTConfig(
        image_size=(side, side),
        patch_size=patch,
        channels=settings.num_channels,
        dim=settings.hidden_size,
        depth=settings.num_hidden_layers,
        num_heads=settings.num_attention_heads,
        mlp_dim=settings.intermediate_size,
        mlp=gate(settings.hidden_act),
        patch_bias=False,
        pre_norm=True,
        cls=False,
        position="none",
        rotary=Rotary(rope_theta(settings.rope_parameters, settings.rope_theta), "index", "halves", interleaved=True),
        qkv_bias="none",
        proj_bias=False,
        mlp_bias=False,
        norm="rms",
        norm_eps=1e-5,
        final_norm=False,
        pool="mean",
    )
