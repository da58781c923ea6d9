"""Small networks of timm that several test files share, every parameter randomised."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import randomise
from vitbackbone.networks.timm.backbone import TimmBackbone, TimmConfig

TOLERANCE = 1e-5
STAGES = (("img_size", (64, 64)), ("embed_dim", 24), ("depths", (2, 2)), ("num_heads", (2, 4)), ("window_size", 4))
SWIN = TimmConfig("swin_tiny_patch4_window7_224", (64, 64), 4, (*STAGES, ("strict_img_size", False)), windows="timm")
SWINV2 = TimmConfig("swinv2_tiny_window8_256", (64, 64), 4, SWIN.arguments, windows="timm")
HYBRID = TimmConfig(
    "vit_tiny_r_s16_p8_224",
    (96, 64),
    arguments=(("img_size", (96, 64)), ("embed_dim", 24), ("depth", 3), ("num_heads", 3), ("dynamic_img_size", True)),
)
R26 = TimmConfig(
    "vit_small_r26_s32_224",
    (64, 64),
    arguments=(("img_size", (64, 64)), ("embed_dim", 24), ("depth", 2), ("num_heads", 2), ("dynamic_img_size", True)),
)
CONFIGS = {
    "swin": SWIN,
    "swinv2": SWINV2,
    "swin sized": TimmConfig(**{**vars(SWIN), "windows": "sized"}),
    "swinv2 fixed": TimmConfig(**{**vars(SWINV2), "windows": "fixed"}),
    "hybrid": HYBRID,
    "r26": R26,
    "resnet": TimmConfig("resnet10t", (64, 64), 1),
    "convnext": TimmConfig("test_convnext", (64, 64)),
}


BACKBONES = {name: randomise(TimmBackbone(config, name=name)) for name, config in CONFIGS.items()}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(backbone: TimmBackbone, x: Tensor) -> Tensor:
    """The images as the network is to see them."""
    assert backbone.sizes is not None
    height, width = backbone.sizes.padded((x.shape[2], x.shape[3]))
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
