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
from vitbackbone.model.packing import Grid, Layout
from vitbackbone.model.pooling import ChannelNorm
from vitbackbone.model.position import rotary_table
from vitbackbone.model.text import (
    PROMPT,
    Cleaning,
    Padding,
    TextConfig,
    TextTokenizer,
    TextTower,
    TextTransformer,
    fill,
)
from vitbackbone.model.vit import Tokens, ViT

__all__ = [
    "PROMPT",
    "AsSquare",
    "Block",
    "ChannelNorm",
    "Cleaning",
    "ConvStem",
    "DecomposedTables",
    "Grid",
    "Indivisible",
    "LayerScale",
    "Layout",
    "Mlp",
    "MlpKind",
    "Padding",
    "Pool",
    "QkvBias",
    "RelativeTable",
    "Resampling",
    "Rotary",
    "SelfAttention",
    "SwiGLU",
    "TextConfig",
    "TextTokenizer",
    "TextTower",
    "TextTransformer",
    "Tokens",
    "ViT",
    "ViTConfig",
    "WindowAttention",
    "check_kinds",
    "fill",
    "rotary_table",
    "vit_config",
]
