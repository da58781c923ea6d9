"""The private parts of timm that this package reads. A failure names the part that a new timm changed."""

import pytest
import timm
from torch import nn

from vitbackbone.networks.timm import private
from vitbackbone.networks.timm.private import CLASSES, COSINE_ATTENTION, SWIN_BLOCK, VIT_ATTENTION, require, timm_class

SMALL = {"img_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 2, "num_classes": 0}


@pytest.mark.parametrize("name", CLASSES)
def test_timm_has_the_class(name: str) -> None:
    assert issubclass(timm_class(name), nn.Module)


def test_timm_has_the_attributes() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=8, depth=1, num_heads=1, num_classes=0)
    assert type(vit.blocks[0]) is timm_class("ViT block")
    assert type(vit.blocks[0].attn) is timm_class("ViT attention")
    require(vit.blocks[0].attn, VIT_ATTENTION)
    swin = timm.create_model("swin_tiny_patch4_window7_224", **SMALL)
    assert isinstance(swin, timm_class("Swin"))
    require(swin.layers[0].blocks[0], SWIN_BLOCK)
    swinv2 = timm.create_model("swinv2_tiny_window8_256", **SMALL)
    assert isinstance(swinv2, timm_class("Swin V2"))
    block = swinv2.layers[0].blocks[0]
    assert isinstance(block, timm_class("Swin V2 block"))
    require(block, SWIN_BLOCK)
    require(block.attn, COSINE_ATTENTION)


def test_a_change_of_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(private.CLASSES, "gone", "timm.models.swin_transformer.Gone")
    monkeypatch.setitem(private.CLASSES, "moved", "timm.models.nowhere.Swin")
    for name in ("gone", "moved"):
        with pytest.raises(RuntimeError, match=rf"timm {timm.__version__} has no {private.CLASSES[name]}"):
            timm_class(name)
    with pytest.raises(RuntimeError, match="has no Linear.window_size, which this package reads"):
        require(nn.Linear(1, 1), ("weight", "window_size"))
