"""The vision tower of Gemma 4: norms of the root mean square before and after each branch, and on queries, keys and
values; vectors for rows and columns as positions, and rotary positions too."""

from typing import Annotated, Any

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.processor_classes import SIGLIP_EVAL
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Network, Pair, read_settings
from vitbackbone.checkpoints.huggingface.shared import gate, rope_theta
from vitbackbone.images import Preprocess
from vitbackbone.model import Rotary, ViTConfig

GEMMA4_EVAL = Preprocess((768, 768), 1.0, "squash", "bicubic", SIGLIP_EVAL.mean, SIGLIP_EVAL.std, crop_rounding="down")


class Gemma4(Network):
    """The vision tower of Gemma 4."""

    image_size: Pair = (768, 768)  # no file has it
    num_hidden_layers: Depth = 16
    num_key_value_heads: Heads = 12
    head_dim: Annotated[int, Field(ge=4, le=1 << 12)] = 64
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: Epsilon = 1e-6
    rope_parameters: dict[str, Any] = Field(default_factory=dict)
    position_embedding_size: Annotated[int, Field(ge=1, le=1 << 20)] = 10240
    use_clipped_linears: bool = False


def read_gemma4(config: Json) -> ViTConfig:
    """Return the configuration of a `gemma4_vision`. Its features are the patches before they are pooled 3 by 3.

    Photos are scaled to [-1, 1] by the preprocessing, which transformers does inside the network.
    """
    settings = read_settings(config, Gemma4)
    patch = settings.patch_size[0]
    side = settings.image_size[0] // patch * patch
    keys = settings.num_key_value_heads
    return ViTConfig(
        image_size=(side, side),
        patch_size=patch,
        channels=settings.num_channels,
        dim=settings.hidden_size,
        depth=settings.num_hidden_layers,
        num_heads=settings.num_attention_heads,
        head_dim=settings.head_dim,
        num_kv_heads=0 if keys == settings.num_attention_heads else keys,
        mlp_dim=settings.intermediate_size,
        mlp=gate(settings.hidden_activation),
        patch_bias=False,
        cls=False,
        position="axes",
        axis_positions=settings.position_embedding_size,
        rotary=Rotary(rope_theta(settings.rope_parameters, default=100.0), "index", "halves"),
        qkv_bias="none",
        proj_bias=False,
        mlp_bias=False,
        clipped=settings.use_clipped_linears,
        qk_norm="head",
        v_norm=True,
        norm="rms",
        branch_norm="both",
        norm_eps=settings.rms_norm_eps,
        final_norm=False,
        pool="mean",
    )
