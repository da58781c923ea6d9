"""Networks that are not this package's own Vision Transformer, behind the same contract."""

from vitbackbone.networks.dinotxt import TextHeadBackbone, TextHeadConfig
from vitbackbone.networks.fused import FusedBackbone, FusedConfig, FusedPreprocess, Member, fuse
from vitbackbone.networks.radio_adaptor import AdaptorBackbone, AdaptorConfig
from vitbackbone.networks.radio_adaptor import Mlp as AdaptorMlp
from vitbackbone.networks.sam2_pyramid import FpnBackbone, FpnConfig
from vitbackbone.networks.sam3_pyramid import ScaledFpnBackbone, ScaledFpnConfig
from vitbackbone.networks.tiling import tile
from vitbackbone.networks.timm.backbone import TimmBackbone, TimmConfig, Windows
from vitbackbone.networks.timm.projection import Projection
from vitbackbone.networks.timm.swin_windows import WindowBlock
from vitbackbone.networks.transformers.backbone import TransformersBackbone, TransformersConfig, build_tower
from vitbackbone.networks.transformers.build import knows, make_config
from vitbackbone.networks.transformers.clips import ClipBackbone, adapt
from vitbackbone.networks.transformers.input import processor_settings
from vitbackbone.networks.transformers.parts import channels_of, fill_buffers, image_size, private, setting
from vitbackbone.networks.transformers.towers import config_of, encoder_config, inner_towers

__all__ = [
    "AdaptorBackbone",
    "AdaptorConfig",
    "AdaptorMlp",
    "ClipBackbone",
    "FpnBackbone",
    "FpnConfig",
    "FusedBackbone",
    "FusedConfig",
    "FusedPreprocess",
    "Member",
    "Projection",
    "ScaledFpnBackbone",
    "ScaledFpnConfig",
    "TextHeadBackbone",
    "TextHeadConfig",
    "TimmBackbone",
    "TimmConfig",
    "TransformersBackbone",
    "TransformersConfig",
    "WindowBlock",
    "Windows",
    "adapt",
    "build_tower",
    "channels_of",
    "config_of",
    "encoder_config",
    "fill_buffers",
    "fuse",
    "image_size",
    "inner_towers",
    "knows",
    "make_config",
    "private",
    "processor_settings",
    "setting",
    "tile",
]
