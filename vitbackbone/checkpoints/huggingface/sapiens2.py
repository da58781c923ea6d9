"""Sapiens 2 (Meta 2026): DINOv3's positions with root mean square norms and gated MLPs.

Some blocks share keys and values among heads. Each head gets its own copy when weights are loaded, which changes no
feature. Only attention has a LayerScale, which is multiplied into the projection.
"""

from typing import Annotated

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Network, Tokens, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import gate, shared_fields, ungated
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.model import QkvBias, Rotary, ViTConfig

SAPIENS2_EVAL = Preprocess((1024, 768), 1.0, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")


class Sapiens2(Network):
    """Sapiens 2."""

    hidden_size: Width = 1024
    num_hidden_layers: Depth = 24
    num_attention_heads: Heads = 16
    intermediate_size: Width = 4096
    hidden_act: str = "silu"
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    use_gated_mlp: bool = True
    num_register_tokens: Tokens = 8
    rms_norm_eps: Epsilon = 1e-6
    use_qk_norm: bool = True
    rope_theta: Annotated[float, Field(gt=0)] = 100.0


def read_sapiens2(config: Json) -> ViTConfig:
    """Return the configuration of a `sapiens2`."""
    settings = read_settings(config, Sapiens2)
    biases = (settings.query_bias, settings.key_bias, settings.value_bias)
    kinds: dict[tuple[bool, bool, bool], QkvBias] = {
        **{(True, True, True): "qkv", (True, False, True): "qv", (False, False, False): "none"},
    }
    if biases not in kinds:
        raise NotNative(
            "config.json has query_bias, key_bias and value_bias that do not go together: want all, none, or all but "
            "key_bias"
        )
    kind = (gate if settings.use_gated_mlp else ungated)(settings.hidden_act)
    fields = shared_fields(settings, gated=True)
    return ViTConfig(
        **{**fields, "mlp": kind, "qkv_bias": kinds[biases], "norm_eps": settings.rms_norm_eps},
        position="none",
        rotary=Rotary(settings.rope_theta, "centred", "halves"),
        num_registers=settings.num_register_tokens,
        proj_bias=settings.proj_bias,
        mlp_bias=settings.mlp_bias,
        norm="rms",
        qk_norm="head" if settings.use_qk_norm else "none",
    )
