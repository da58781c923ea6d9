"""C-RADIO (NVIDIA): several CLS tokens, and a large table of positions that is cropped from a square."""

from typing import Annotated

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Epsilon, Network, Ratio, Side, Tokens, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import shared_fields
from vitbackbone.images import Preprocess
from vitbackbone.model import Resampling, ViTConfig

RADIO_RESAMPLING = Resampling("bilinear", fit="square")
# The network normalises by itself; see `formats.radio`
RADIO_EVAL = Preprocess((512, 512), 1.0, "squash", "bicubic", (0, 0, 0), (1, 1, 1), crop_rounding="down")


class Radio(Network):
    """C-RADIO. The mean and std of its input are read from the weights."""

    hidden_size: Width = 1280
    num_hidden_layers: Annotated[int, Field(ge=1, le=1000)] = 32
    num_attention_heads: Annotated[int, Field(ge=1, le=1000)] = 16
    layer_norm_eps: Epsilon = 1e-6
    mlp_ratio: Ratio = 4.0
    use_swiglu_ffn: bool = False
    max_img_size: Side = 2048
    num_cls_tokens: Annotated[int, Field(ge=1, le=1000)] = 3
    num_registers: Tokens = 7
    summary_idxs: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = (0, 1)


def read_radio(config: Json) -> ViTConfig:
    """Return the configuration of a `radio`. Raises `ValueError` on a summary of tokens that are no CLS tokens."""
    settings = read_settings(config, Radio)
    if not settings.summary_idxs or max(settings.summary_idxs) >= settings.num_cls_tokens:
        raise ValueError(
            f"config.json has summary_idxs={list(settings.summary_idxs)} with num_cls_tokens="
            f"{settings.num_cls_tokens}; want indices of CLS tokens"
        )
    if settings.use_swiglu_ffn:
        raise NotNative("config.json has use_swiglu_ffn=True; no C-RADIO has it, and only False is supported")
    side = settings.max_img_size // settings.patch_size[0]
    return ViTConfig(
        **{
            **shared_fields(settings),
            "mlp_dim": int(settings.hidden_size * settings.mlp_ratio),
            "resampling": RADIO_RESAMPLING,
        },
        position_grid=(side, side),
        num_registers=settings.num_cls_tokens + settings.num_registers - 1,
        final_norm=False,
        pool="tokens",
        pool_tokens=settings.summary_idxs,
    )
