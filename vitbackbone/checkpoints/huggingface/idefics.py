"""The vision towers of Idefics 2 and 3 and SmolVLM: SigLIP that picks positions by the fraction of each side."""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.processor_classes import SIGLIP_EVAL
from vitbackbone.checkpoints.huggingface.records import Epsilon, Pair, Square, read_tower
from vitbackbone.checkpoints.huggingface.shared import shared_fields
from vitbackbone.model import Resampling, ViTConfig

IDEFICS_RESAMPLING = Resampling(fit="buckets")
IDEFICS_EVAL = replace(SIGLIP_EVAL, interpolation="lanczos")


class Idefics(Square):
    """The vision tower of Idefics 2 and 3, and of SmolVLM."""

    patch_size: Pair = (32, 32)
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6


def read_idefics(config: Json) -> ViTConfig:
    """Return the configuration of an `idefics2_vision`, an `idefics3_vision` or a `smolvlm_vision`."""
    fields = {**shared_fields(read_tower(config, Idefics)), "resampling": IDEFICS_RESAMPLING}
    return ViTConfig(**fields, cls=False, pool="mean")
