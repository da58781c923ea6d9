"""SAM 3's image encoder (Meta 2025): windows with rotary positions, and a small table of positions that is tiled."""

from typing import Annotated

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Pair, Square, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import shared_fields
from vitbackbone.files import Record
from vitbackbone.images import HALF, Preprocess
from vitbackbone.model import Resampling, Rotary, ViTConfig

SAM3_RESAMPLING = Resampling(fit="tile")
SAM3_EVAL = Preprocess(
    (1008, 1008), 1.0, "squash", "bilinear", HALF, HALF, crop_rounding="down", resampling="torchvision"
)


class Axial(Record):
    """The rotary positions of SAM 3."""

    rope_type: str = "axial"
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0


class Sam3(Square):
    """The image encoder of SAM 3. Its positions come from pretraining at another image size."""

    image_size: Pair = (1008, 1008)
    patch_size: Pair = (14, 14)
    hidden_size: Width = 1024
    num_hidden_layers: Depth = 32
    num_attention_heads: Heads = 16
    intermediate_size: Width = 4736
    layer_norm_eps: Epsilon = 1e-6
    pretrain_image_size: Pair = (336, 336)
    window_size: Annotated[int, Field(ge=1, le=1 << 14)] = 24
    global_attn_indexes: tuple[Annotated[int, Field(ge=0)], ...] = (7, 15, 23, 31)
    rope_parameters: Axial = Axial()


def read_sam3(config: Json) -> ViTConfig:
    """Return the configuration of a `sam3_vit_model`. Raises `ValueError` on another kind of rotary positions."""
    settings = read_settings(config, Sam3)
    if settings.rope_parameters.rope_type != "axial":
        raise NotNative(f"config.json has rope_type={settings.rope_parameters.rope_type!r}; want 'axial'")
    fields = shared_fields(settings)
    height, width = (side // fields["patch_size"] for side in settings.pretrain_image_size)
    span = settings.window_size
    return ViTConfig(
        **{**fields, "resampling": SAM3_RESAMPLING},
        patch_bias=False,
        cls=False,
        position_grid=(height, width),
        rotary=Rotary(settings.rope_parameters.rope_theta, "index", "neighbours", reference=(span, span)),
        window=span,
        global_blocks=settings.global_attn_indexes,
        pre_norm=True,
        final_norm=False,
        pool="mean",
    )
