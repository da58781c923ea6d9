"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: rotary positions that are plain rows and columns.

The patches are in raster order here, and before the merger. The order of transformers is by squares of
`spatial_merge_size`, or by windows.
"""

import math
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.processor_classes import CLIP_EVAL, SIGLIP_EVAL
from vitbackbone.checkpoints.huggingface.records import Depth, Heads, Network, Pair, Ratio, Width, read_tower
from vitbackbone.checkpoints.huggingface.shared import gate, rope_theta, ungated
from vitbackbone.images import Preprocess
from vitbackbone.model import Resampling, Rotary, ViTConfig

QWEN2_VL_EVAL = Preprocess((448, 448), 1.0, "squash", "bicubic", CLIP_EVAL.mean, CLIP_EVAL.std, crop_rounding="down")
QWEN3_VL_EVAL = Preprocess(
    (768, 768), 1.0, "squash", "bicubic", SIGLIP_EVAL.mean, SIGLIP_EVAL.std, crop_rounding="down"
)
CORNERS = Resampling("bilinear", align_corners=True)


class QwenVision(Network):
    """The settings that the three have in common."""

    image_size: Pair = (448, 448)  # no file has it
    patch_size: Pair = (14, 14)
    num_channels: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, validation_alias=AliasChoices("in_channels", "in_chans")
    )
    num_hidden_layers: Depth = Field(default=32, validation_alias="depth")
    num_attention_heads: Heads = Field(default=16, validation_alias="num_heads")
    spatial_merge_size: Annotated[int, Field(ge=1, le=64)] = 2
    rope_parameters: dict[str, Any] = Field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Return the fields of `ViTConfig` that the three have in common."""
        side = self.image_size[0] // self.patch_size[0] * self.patch_size[0]
        return {
            "image_size": (side, side),
            "patch_size": self.patch_size[0],
            "channels": self.num_channels,
            "dim": self.hidden_size,
            "depth": self.num_hidden_layers,
            "num_heads": self.num_attention_heads,
            "cls": False,
            "rotary": Rotary(rope_theta(self.rope_parameters), "index", "halves"),
            "norm_eps": 1e-6,
            "final_norm": False,
            "pool": "mean",
        }


class Qwen2Vl(QwenVision):
    """The vision tower of Qwen2-VL. Its `hidden_size` is the language model's."""

    hidden_size: Width = Field(default=1280, validation_alias="embed_dim")
    hidden_act: str = "quick_gelu"
    mlp_ratio: Ratio = 4


class Qwen25Vl(QwenVision):
    """The vision tower of Qwen2.5-VL."""

    hidden_size: Width = 3584
    hidden_act: str = "silu"
    intermediate_size: Width = 3420
    window_size: Annotated[int, Field(ge=1, le=1 << 14)] = 112
    fullatt_block_indexes: tuple[Annotated[int, Field(ge=0)], ...] = (7, 15, 23, 31)


class Qwen3Vl(QwenVision):
    """The vision tower of Qwen3-VL."""

    image_size: Pair = (768, 768)
    patch_size: Pair = (16, 16)
    hidden_size: Width = 1152
    num_hidden_layers: Depth = Field(default=27, validation_alias="depth")
    hidden_act: str = "gelu_pytorch_tanh"
    intermediate_size: Width = 4304
    num_position_embeddings: Annotated[int, Field(ge=1, le=1 << 20)] = 2304


def read_qwen2_vl(config: Json) -> ViTConfig:
    """Return the configuration of the vision tower of a `qwen2_vl`."""
    settings = read_tower(config, Qwen2Vl)
    return ViTConfig(
        **settings.fields(),
        position="none",
        mlp_dim=int(settings.hidden_size * settings.mlp_ratio),
        mlp=ungated(settings.hidden_act),
        patch_bias=False,
    )


def read_qwen2_5_vl(config: Json) -> ViTConfig:
    """Return the configuration of the vision tower of a `qwen2_5_vl`. Windows over the edge are smaller."""
    settings = read_tower(config, Qwen25Vl)
    merge = settings.spatial_merge_size
    window = settings.window_size // merge // settings.patch_size[0] * merge
    if window < 1:
        raise ValueError(
            f"config.json has window_size={settings.window_size}, less than spatial_merge_size={merge} patches of "
            f"patch_size={settings.patch_size[0]}"
        )
    everywhere = tuple(index for index in settings.fullatt_block_indexes if index < settings.num_hidden_layers)
    return ViTConfig(
        **settings.fields(),
        position="none",
        window=window,
        window_edge="cut",
        global_blocks=everywhere,
        mlp_dim=settings.intermediate_size,
        mlp=gate(settings.hidden_act),
        patch_bias=False,
        norm="rms",
    )


def read_qwen3_vl(config: Json) -> ViTConfig:
    """Return the configuration of the vision tower of a `qwen3_vl`. Raises `ValueError` if its positions are no
    square."""
    settings = read_tower(config, Qwen3Vl)
    side = math.isqrt(settings.num_position_embeddings)
    if side**2 != settings.num_position_embeddings:
        raise ValueError(
            f"config.json has num_position_embeddings={settings.num_position_embeddings}; want the square of a whole "
            "number"
        )
    pixels = side * settings.patch_size[0]
    return ViTConfig(
        **{**settings.fields(), "image_size": (pixels, pixels)},
        resampling=CORNERS,
        mlp_dim=settings.intermediate_size,
        mlp=ungated(settings.hidden_act),
    )
