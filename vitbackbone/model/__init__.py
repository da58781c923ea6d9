"""The Vision Transformer of this package, at any image size."""

from vitbackbone.model.attention import DecomposedTables, RelativeTable, SelfAttention, WindowAttention
from vitbackbone.model.config import (
    AsSquare,
    Indivisible,
    MlpKind,
    Pool,
    QkvBias,
    Resampling,
    Rotary,
    ViTConfig,
    check_kinds,
    vit_config,
)
from vitbackbone.model.layers import Block, ConvStem, LayerScale, Mlp, SwiGLU
from vitbackbone.model.maps import resize_maps
from vitbackbone.model.packing import Grid, Layout
from vitbackbone.model.pooling import ChannelNorm
from vitbackbone.model.position import rotary_table
from vitbackbone.model.vit import Tokens, ViT

__all__ = [
    "AsSquare",
    "Block",
    "ChannelNorm",
    "ConvStem",
    "DecomposedTables",
    "Grid",
    "Indivisible",
    "LayerScale",
    "Layout",
    "Mlp",
    "MlpKind",
    "Pool",
    "QkvBias",
    "RelativeTable",
    "Resampling",
    "Rotary",
    "SelfAttention",
    "SwiGLU",
    "Tokens",
    "ViT",
    "ViTConfig",
    "WindowAttention",
    "check_kinds",
    "resize_maps",
    "rotary_table",
    "vit_config",
]
