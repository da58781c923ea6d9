"""Networks that are not this package's own Vision Transformer, behind the same contract."""

from vitbackbone.networks.fused import FusedBackbone, FusedConfig, FusedPreprocess, Member, fuse
from vitbackbone.networks.swin_windows import WindowBlock
from vitbackbone.networks.tiling import tile
from vitbackbone.networks.timm import TimmBackbone, TimmConfig, Windows
from vitbackbone.networks.transformers import TransformersBackbone, TransformersConfig

__all__ = [
    "FusedBackbone",
    "FusedConfig",
    "FusedPreprocess",
    "Member",
    "TimmBackbone",
    "TimmConfig",
    "TransformersBackbone",
    "TransformersConfig",
    "WindowBlock",
    "Windows",
    "fuse",
    "tile",
]
