"""Pixio (Meta 2025): MAE with several CLS tokens."""

from typing import Annotated

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.records import (
    Depth,
    Epsilon,
    Heads,
    Network,
    Pair,
    Ratio,
    Width,
    read_settings,
)
from vitbackbone.checkpoints.huggingface.shared import PLAIN, resampled_always, shared_fields
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.model import ViTConfig

PIXIO_EVAL = Preprocess((256, 256), 1.0, "squash", "bicubic", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")


class Pixio(Network):
    """Pixio, with the defaults of ViT-H/16."""

    image_size: Pair = (256, 256)
    hidden_size: Width = 1280
    num_hidden_layers: Depth = 32
    num_attention_heads: Heads = 16
    mlp_ratio: Ratio = 4
    layer_norm_eps: Epsilon = 1e-6
    n_cls_tokens: Annotated[int, Field(ge=2, le=1000)] = 8


def read_pixio(config: Json) -> ViTConfig:
    """Return the configuration of a `pixio`. Its pooling is the mean of all CLS tokens."""
    settings = read_settings(config, Pixio)
    fields = shared_fields(settings)
    fields["mlp_dim"] = int(settings.hidden_size * settings.mlp_ratio)
    fields["resampling"] = resampled_always(PLAIN, fields["image_size"], fields["patch_size"])
    return ViTConfig(**fields, num_registers=settings.n_cls_tokens - 1, pool="prefix")
