"""The vision tower of Llama 4: CLIP's, with rotary positions beside the table.

CLS is the first token here, and the last one upstream.
"""

from typing import Any

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.processor_classes import SIGLIP_EVAL
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Pair, Square, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import rope_theta, shared_fields
from vitbackbone.images import Preprocess
from vitbackbone.model import Rotary, ViTConfig

LLAMA4_EVAL = Preprocess((336, 336), 1.0, "squash", "bilinear", SIGLIP_EVAL.mean, SIGLIP_EVAL.std, crop_rounding="down")


class Llama4(Square):
    """The vision tower of Llama 4. Its norms have an epsilon of 1e-5, whatever the file says."""

    image_size: Pair = (448, 448)
    patch_size: Pair = (14, 14)
    num_hidden_layers: Depth = 34
    num_attention_heads: Heads = 16
    intermediate_size: Width = 5632
    layer_norm_eps: Epsilon = 1e-5
    rope_parameters: dict[str, Any] = Field(default_factory=dict)


def read_llama4(config: Json) -> ViTConfig:
    """Return the configuration of a `llama4_vision_model`. Its features are the patches before the adapter.

    transformers runs it only at `image_size`. At other sizes, the table is resampled, and the rotary positions count
    the rows and columns of the larger grid.
    """
    settings = read_settings(config, Llama4)
    # transformers always uses the exact GELU there and ignores `hidden_act`
    fields = {**shared_fields(settings), "norm_eps": 1e-5, "mlp": "gelu"}
    rotary = Rotary(rope_theta(settings.rope_parameters), "index", "halves", offset=1.0)
    return ViTConfig(**fields, patch_bias=False, pre_norm=True, rotary=rotary)
