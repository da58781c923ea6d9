"""Networks behind another backbone: what they take from it, and what they leave to it."""

import pytest
import torch

from tests.helpers import tiny_vit
from vitbackbone.networks import TextHeadBackbone, TextHeadConfig


def test_attention_is_left_to_the_backbone() -> None:
    vit = tiny_vit()
    behind = TextHeadBackbone(vit, TextHeadConfig(depth=1, mlp_dim=8), "behind").eval()
    images = torch.randn(1, 3, *vit.spec.image_size)
    with pytest.raises(ValueError, match="behind has no attention of its own; call its `backbone.attention`"):
        behind.attention(images, [0])
    (attention,) = behind.backbone.attention(images, [-1])
    assert attention.cls_to_patches.shape[-2:] == behind(images).grid


def test_the_settings_of_both_are_told() -> None:
    vit = tiny_vit()
    behind = TextHeadBackbone(vit, TextHeadConfig(depth=1, mlp_dim=8))
    assert vit.spec.settings in behind.spec.settings
    assert "mlp_dim=8" in behind.spec.settings
    assert (behind.preprocess, behind.channels) == (vit.preprocess, vit.channels)
