"""The vision tower of Llama 3.2 (mllama): tiles, gated positions, and blocks with gates over all tiles."""

from typing import Annotated

from pydantic import Field, model_validator

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.processor_classes import CLIP_EVAL
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Pair, Square, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import shared_fields
from vitbackbone.images import Preprocess
from vitbackbone.model import Tiles, ViTConfig

MLLAMA_EVAL = Preprocess((560, 560), 1.0, "pad", "bilinear", CLIP_EVAL.mean, CLIP_EVAL.std, crop_rounding="down")
Count = Annotated[int, Field(ge=1, le=64)]


class Mllama(Square):
    """The vision tower of mllama."""

    image_size: Pair = (448, 448)
    patch_size: Pair = (14, 14)
    hidden_size: Width = 1280
    num_hidden_layers: Depth = 32
    num_global_layers: Depth = 8
    num_attention_heads: Heads = Field(default=16, validation_alias="attention_heads")
    intermediate_size: Width = 5120
    layer_norm_eps: Epsilon = Field(default=1e-5, validation_alias="norm_eps")
    max_num_tiles: Count = 4
    intermediate_layers_indices: tuple[Annotated[int, Field(ge=0)], ...] = (3, 7, 15, 23, 30)
    # rows and columns of tiles, in the order of the tables
    supported_aspect_ratios: tuple[tuple[Count, Count], ...] = (
        *((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)),
    )

    @model_validator(mode="after")
    def _tiles(self) -> "Mllama":
        if any(rows * columns > self.max_num_tiles for rows, columns in self.supported_aspect_ratios):
            raise ValueError(f"supported_aspect_ratios with more tiles than max_num_tiles={self.max_num_tiles}")
        if any(index >= self.num_hidden_layers for index in self.intermediate_layers_indices):
            raise ValueError(
                f"intermediate_layers_indices={list(self.intermediate_layers_indices)}, beyond num_hidden_layers="
                f"{self.num_hidden_layers}"
            )
        return self


def read_mllama(config: Json) -> ViTConfig:
    """Return the configuration of an `mllama_vision_model`."""
    settings = read_settings(config, Mllama)
    tiles = Tiles(
        settings.supported_aspect_ratios,
        settings.max_num_tiles,
        settings.num_global_layers,
        settings.intermediate_layers_indices,
    )
    return ViTConfig(
        **{**shared_fields(settings), "qkv_bias": "none"},
        patch_bias=False,
        pre_norm=True,
        proj_bias=False,
        final_norm=False,
        pool="mean",
        tiles=tiles,
    )
