"""V-JEPA 2 and 2.1 (Assran et al. 2025): clips of frames, whose patches span several frames."""

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
from vitbackbone.checkpoints.huggingface.shared import shared_fields
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.model import Rotary, ViTConfig

VJEPA_EVAL = Preprocess(
    (256, 256), 0.875, "center", "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down"
)  # transformers' VJEPA2VideoProcessor, frame by frame
ROTARY = Rotary(10000.0, "index", "neighbours", time=True, repeated=True)


class Vjepa2(Network):
    """V-JEPA 2, with the defaults of ViT-L."""

    image_size: Pair = Field(default=(256, 256), validation_alias="crop_size")
    num_channels: Annotated[int, Field(ge=1, le=1000)] = Field(default=3, validation_alias="in_chans")
    tubelet_size: Annotated[int, Field(ge=1, le=64)] = 2
    hidden_size: Width = 1024
    num_hidden_layers: Depth = 24
    num_attention_heads: Heads = 16
    mlp_ratio: Ratio = 4.0
    layer_norm_eps: Epsilon = 1e-6


def read_vjepa2(config: Json) -> ViTConfig:
    """Return the configuration of the encoder of a `vjepa2`.

    Rows and columns count from the top left at every size, as in the authors' code. transformers computes them from
    `crop_size`, so that it shuffles the positions at other sizes.
    """
    settings = read_settings(config, Vjepa2)
    fields = {**shared_fields(settings), "mlp_dim": int(settings.hidden_size * settings.mlp_ratio)}
    return ViTConfig(**fields, tubelet=settings.tubelet_size, cls=False, position="none", rotary=ROTARY, pool="mean")
