"""MoonViT (Kimi team 2025), the vision tower of Kimi K2.5: SigLIP's shape, a table and rotary positions."""

from typing import Annotated, Any

from pydantic import AliasChoices, Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.processor_classes import SIGLIP_EVAL
from vitbackbone.checkpoints.huggingface.records import Depth, Heads, Network, Pair, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import PLAIN, rope_theta, ungated
from vitbackbone.images import Preprocess
from vitbackbone.model import Rotary, ViTConfig

KIMI_EVAL = Preprocess((448, 448), 1.0, "squash", "bicubic", SIGLIP_EVAL.mean, SIGLIP_EVAL.std, crop_rounding="down")


def _side(name: str) -> Any:
    """Return a side of the table, which MoonViT's own files name otherwise."""
    return Field(default=64, validation_alias=AliasChoices(f"pos_emb_{name}", f"init_pos_emb_{name}"))


class Kimi(Network):
    """The vision tower of Kimi K2.5."""

    image_size: Pair = (896, 896)  # no file has it
    patch_size: Pair = (14, 14)
    hidden_size: Width = 1152
    num_hidden_layers: Depth = 27
    num_attention_heads: Heads = 16
    intermediate_size: Width = 4304
    hidden_act: str = "gelu_pytorch_tanh"
    pos_emb_height: Annotated[int, Field(ge=1, le=1 << 12)] = _side("height")
    pos_emb_width: Annotated[int, Field(ge=1, le=1 << 12)] = _side("width")
    rope_parameters: dict[str, Any] = Field(default_factory=dict)


def read_kimi(config: Json) -> ViTConfig:
    """Return the configuration of a `kimi_k25_vision` or a `moonvit`. Its features are the unmerged patches."""
    settings = read_settings(config, Kimi)
    patch = settings.patch_size[0]
    if settings.pos_emb_height != settings.pos_emb_width:
        raise NotNative(
            f"config.json has pos_emb_height={settings.pos_emb_height} and pos_emb_width={settings.pos_emb_width}; "
            "transformers reads this table as a square, want equal sides"
        )
    return ViTConfig(
        image_size=(settings.pos_emb_height * patch, settings.pos_emb_width * patch),
        patch_size=patch,
        channels=settings.num_channels,
        dim=settings.hidden_size,
        depth=settings.num_hidden_layers,
        num_heads=settings.num_attention_heads,
        mlp_dim=settings.intermediate_size,
        mlp=ungated(settings.hidden_act),
        cls=False,
        resampling=PLAIN,
        rotary=Rotary(rope_theta(settings.rope_parameters), "index", "halves"),
        norm_eps=1e-5,
        pool="mean",
    )
