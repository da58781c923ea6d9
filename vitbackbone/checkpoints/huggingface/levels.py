"""Networks with levels that timm's own code runs: Hiera, SAM 2's encoder and DINOv3's ConvNeXt."""

from typing import Annotated, Any

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Depth, Epsilon, Heads, Pair, Ratio, Width, Window, read_settings
from vitbackbone.files import SHORT, Record
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.networks import TimmConfig

HIERA_EVAL = Preprocess((224, 224), 0.9, "center", "bicubic", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")
SAM2_EVAL = Preprocess((1024, 1024), 1.0, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")
CONVNEXT_EVAL = Preprocess((224, 224), 1.0, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")
# timm's layers have these values and no setting for them
EPSILON, STAGES = 1e-6, 4
# A value for each stage
Each = Field(min_length=STAGES, max_length=STAGES)
Depths = Annotated[tuple[Depth, ...], Each]
Widths = Annotated[tuple[Width, ...], Each]
AllHeads = Annotated[tuple[Heads, ...], Each]
Windows = Annotated[tuple[Window, ...], Each]
Channels = Annotated[int, Field(ge=1, le=1000)]


def _only(settings: Record, wanted: dict[str, Any]) -> None:
    """Raise `NotNative` if a setting has another value than timm's code has."""
    for key, value in wanted.items():
        if (given := getattr(settings, key)) != value:
            raise NotNative(f"config.json has {key}={SHORT.repr(given)}; want {value!r}")


def _double(settings: Record, *keys: str) -> None:
    """Raise `NotNative` unless each stage has twice as much as the one before, as in timm's code."""
    for key in keys:
        each = getattr(settings, key)
        if any(value != each[0] * 2**stage for stage, value in enumerate(each)):
            raise NotNative(f"config.json has {key}={list(each)}; want twice as many in each stage")


class Hiera(Record):
    """Hiera (Ryali et al. 2023)."""

    image_size: Pair = (224, 224)
    patch_size: Pair = (7, 7)
    patch_stride: Pair = (4, 4)
    patch_padding: tuple[int, int] = (3, 3)
    num_channels: Channels = 3
    embed_dim: Width = 96
    depths: Depths = (2, 3, 16, 3)
    num_heads: AllHeads = (1, 2, 4, 8)
    embed_dim_multiplier: Ratio = 2.0
    num_query_pool: Annotated[int, Field(ge=0, le=STAGES - 1)] = 3
    query_stride: Pair = (2, 2)
    masked_unit_size: Pair = (8, 8)
    masked_unit_attention: tuple[bool, ...] = (True, True, False, False)
    mlp_ratio: Ratio = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = EPSILON


def read_hiera(config: Json) -> TimmConfig:
    """Return the configuration of a Hiera. At other sizes, transformers resizes its positions without antialiasing."""
    settings = read_settings(config, Hiera)
    _only(settings, {"hidden_act": "gelu", "layer_norm_eps": EPSILON})
    _double(settings, "num_heads")
    return TimmConfig(
        architecture="hiera_tiny_224",
        image_size=settings.image_size,
        arguments=(
            ("img_size", settings.image_size),
            ("embed_dim", settings.embed_dim),
            ("num_heads", settings.num_heads[0]),
            ("stages", settings.depths),
            ("q_pool", settings.num_query_pool),
            ("q_stride", settings.query_stride),
            ("mask_unit_size", settings.masked_unit_size),
            ("mask_unit_attn", settings.masked_unit_attention),
            ("dim_mul", settings.embed_dim_multiplier),
            ("patch_kernel", settings.patch_size),
            ("patch_stride", settings.patch_stride),
            ("patch_padding", settings.patch_padding),
            ("mlp_ratio", settings.mlp_ratio),
        ),
        rebuild=True,
        antialias=False,
        channels=settings.num_channels,
    )


class Sam2(Record):
    """The image encoder of SAM 2 (Ravi et al. 2024), before its pyramid."""

    image_size: Pair = (1024, 1024)
    patch_kernel_size: Pair = (7, 7)
    patch_stride: Pair = (4, 4)
    patch_padding: tuple[int, int] = (3, 3)
    num_channels: Channels = 3
    query_stride: Pair = (2, 2)
    window_positional_embedding_background_size: Pair = (7, 7)
    num_query_pool_stages: Annotated[int, Field(ge=0, le=STAGES - 1)] = 3
    blocks_per_stage: Depths = (1, 2, 7, 2)
    embed_dim_per_stage: Widths = (96, 192, 384, 768)
    num_attention_heads_per_stage: AllHeads = (1, 2, 4, 8)
    window_size_per_stage: Windows = (8, 4, 14, 7)
    global_attention_blocks: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = (5, 7, 9)
    mlp_ratio: Ratio = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = EPSILON


def read_sam2(config: Json) -> TimmConfig:
    """Return the configuration of a `sam2_hiera_det_model`: four levels, without the pyramid after them."""
    settings = read_settings(config, Sam2)
    _only(settings, {"hidden_act": "gelu", "layer_norm_eps": EPSILON, "mlp_ratio": 4.0})
    _double(settings, "embed_dim_per_stage", "num_attention_heads_per_stage")
    firsts = [sum(settings.blocks_per_stage[:stage]) for stage in range(1, settings.num_query_pool_stages + 1)]
    if pooled := sorted({*firsts} & {*settings.global_attention_blocks}):
        raise NotNative(
            f"config.json has global_attention_blocks={list(settings.global_attention_blocks)}: block {pooled[0]} is "
            "the first of a stage, which pools within windows"
        )
    # the window table is laid over the map side by side, and the last stage has 1/32 of the pixels
    unit = settings.patch_stride[0] * settings.window_size_per_stage[0]
    return TimmConfig(
        architecture="sam2_hiera_tiny",
        image_size=settings.image_size,
        size_multiple=unit,
        arguments=(
            ("embed_dim", settings.embed_dim_per_stage[0]),
            ("num_heads", settings.num_attention_heads_per_stage[0]),
            ("stages", settings.blocks_per_stage),
            ("q_pool", settings.num_query_pool_stages),
            ("q_stride", settings.query_stride),
            ("global_pos_size", settings.window_positional_embedding_background_size),
            ("window_spec", settings.window_size_per_stage),
            ("global_att_blocks", settings.global_attention_blocks),
            ("patch_kernel", settings.patch_kernel_size),
            ("patch_stride", settings.patch_stride),
            ("patch_padding", settings.patch_padding),
        ),
        final_norm=False,
        channels=settings.num_channels,
    )


class ConvNext(Record):
    """DINOv3's ConvNeXt."""

    image_size: Pair = (224, 224)
    num_channels: Channels = 3
    hidden_sizes: Widths = (96, 192, 384, 768)
    depths: Depths = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = EPSILON


def read_dinov3_convnext(config: Json) -> TimmConfig:
    """Return the configuration of a `dinov3_convnext`, whose final norm is on the map and on its mean."""
    settings = read_settings(config, ConvNext)
    _only(settings, {"hidden_act": "gelu"})
    return TimmConfig(
        architecture="convnext_tiny",
        image_size=settings.image_size,
        arguments=(
            ("dims", settings.hidden_sizes),
            ("depths", settings.depths),
            ("norm_eps", settings.layer_norm_eps),
        ),
        map_norm=True,
        channels=settings.num_channels,
    )
