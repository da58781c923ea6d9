"""MLCD (An et al. 2024): CLIP's vision tower with rotary positions, and learned angles for CLS."""

from typing import Any

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Pair, Square, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import rope_theta, shared_fields
from vitbackbone.model import Rotary, ViTConfig


class Mlcd(Square):
    """The vision tower of MLCD."""

    image_size: Pair = (336, 336)
    patch_size: Pair = (14, 14)
    hidden_size: Width = 1664
    num_hidden_layers: Depth = 48
    num_attention_heads: Heads = 16
    intermediate_size: Width = 8192
    layer_norm_eps: Epsilon = 1e-5
    num_key_value_groups: int = 1
    rope_parameters: dict[str, Any] = Field(default_factory=dict)


def read_mlcd(config: Json) -> ViTConfig:
    """Return the configuration of an `mlcd_vision_model`.

    The final norm is applied to every token here, and upstream only to CLS.
    """
    settings = read_settings(config, Mlcd)
    if settings.num_key_value_groups != 1:
        raise NotNative(f"config.json has num_key_value_groups={settings.num_key_value_groups}; want 1")
    return ViTConfig(
        **shared_fields(settings),
        patch_bias=False,
        pre_norm=True,
        position="none",
        rotary=Rotary(rope_theta(settings.rope_parameters), "index", "halves", cls_angles=True),
    )
