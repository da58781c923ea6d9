"""Fused backbones of small members: of one stride, of two, and with other preprocessing."""

import torch
from torch import Tensor

from tests.helpers import tiny_vit
from vitbackbone import Preprocess
from vitbackbone.images.preprocess import HALF
from vitbackbone.networks.fused import FusedBackbone, Member

FIRST = Preprocess((32, 32), 1.0)
SECOND = Preprocess((32, 32), 0.9, interpolation="bilinear", mean=HALF, std=(0.4, 0.5, 0.6))


def member(seed: int, layer: int, norm: bool, preprocess: Preprocess, **fields: object) -> Member:
    backbone = tiny_vit(seed, **fields)
    backbone.preprocess = preprocess
    return Member(backbone, layer, norm)


def same_stride() -> list[Member]:
    """As OpenVLA's: one with CLS and registers, one without either; second-to-last blocks, no norm."""
    return [
        member(0, -2, False, FIRST, num_registers=4),
        member(1, -2, False, SECOND, dim=24, num_heads=3, cls=False, pool="mean"),
    ]


def two_strides() -> list[Member]:
    """The coarse one first; both normed, both with CLS."""
    return [
        member(2, -1, True, FIRST, patch_size=16, dim=8),
        member(3, 1, True, SECOND, num_registers=2),
    ]


FUSED = {
    "same stride": FusedBackbone(same_stride(), name="pair"),
    "two strides": FusedBackbone(two_strides(), name="pair"),
    "three": FusedBackbone([*same_stride(), two_strides()[0]], name="three"),
    "one": FusedBackbone(two_strides()[1:], name="one"),
}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
