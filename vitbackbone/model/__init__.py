"""The Vision Transformer of this package, at any image size."""

from vitbackbone.model.attention import DecomposedTables, RelativeTable, SelfAttention, WindowAttention
from vitbackbone.model.channels import inflate_kernel
from vitbackbone.model.clipped import ClippedLinear
from vitbackbone.model.config import (
    GATED,
    AsSquare,
    BranchNorm,
    Experts,
    Indivisible,
    MlpKind,
    Pool,
    QkvBias,
    Resampling,
    Rotary,
    Tiles,
    Views,
    ViTConfig,
    check_kinds,
    vit_config,
)
from vitbackbone.model.experts import ExpertMlp
from vitbackbone.model.layers import Block, GatedMlp, LayerScale, Mlp
from vitbackbone.model.maps import resize_maps
from vitbackbone.model.masks import Mask
from vitbackbone.model.norms import make_norm
from vitbackbone.model.packing import Grid, Layout
from vitbackbone.model.patches import ConvStem
from vitbackbone.model.pooling import ChannelNorm
from vitbackbone.model.positions.relative import resample_line, resample_relative
from vitbackbone.model.positions.resampling import resample
from vitbackbone.model.positions.rotary import rotary_row_with_cls, rotary_table
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
from vitbackbone.model.tiled_vit import TiledViT, make_vit
from vitbackbone.model.vit import Tokens, ViT

__all__ = [
    "GATED",
    "PROMPT",
    "AsSquare",
    "Block",
    "BranchNorm",
    "ChannelNorm",
    "Cleaning",
    "ClippedLinear",
    "ConvStem",
    "DecomposedTables",
    "ExpertMlp",
    "Experts",
    "GatedMlp",
    "Grid",
    "Indivisible",
    "LayerScale",
    "Layout",
    "Mask",
    "Mlp",
    "MlpKind",
    "Padding",
    "Pool",
    "QkvBias",
    "RelativeTable",
    "Resampling",
    "Rotary",
    "SelfAttention",
    "TextConfig",
    "TextTokenizer",
    "TextTower",
    "TextTransformer",
    "TiledViT",
    "Tiles",
    "Tokens",
    "ViT",
    "ViTConfig",
    "Views",
    "WindowAttention",
    "check_kinds",
    "fill",
    "inflate_kernel",
    "make_norm",
    "make_vit",
    "resample",
    "resample_line",
    "resample_relative",
    "resize_maps",
    "rotary_row_with_cls",
    "rotary_table",
    "vit_config",
]
