"""The encoders of pathology slides hold the networks of their model cards, and pool as these say."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from tests.helpers import randomise, relative_error
from vitbackbone import ViT
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import bind, convert
from vitbackbone.checkpoints.zoo import ZOO

GATED: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "init_values": 1e-5}
VIRCHOW = {**GATED, "mlp_ratio": 5.3375}
GIANT = {**GATED, "mlp_ratio": 2.66667 * 2}
UNI2 = {**GIANT, "embed_dim": 1536, "depth": 24, "num_heads": 24, "reg_tokens": 8, "no_embed_class": True}
# The constructors of the model cards
CARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf:MahmoodLab/UNI": ("vit_large_patch16_224", {"init_values": 1e-5}),
    "hf:MahmoodLab/UNI2-h": ("vit_giant_patch14_224", UNI2),
    "hf:paige-ai/Virchow": ("vit_huge_patch14_224", VIRCHOW),
    "hf:paige-ai/Virchow2": ("vit_huge_patch14_224", {**VIRCHOW, "reg_tokens": 4}),
    "hf:prov-gigapath/prov-gigapath": ("vit_giant_patch14_dinov2", {"img_size": 224, "patch_size": 16}),
    "hf:bioptimus/H-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}),
    "hf:bioptimus/H-optimus-1": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_network_is_that_of_the_card(name: str) -> None:
    architecture, options = CARDS[name]
    entry = ZOO[name]
    with torch.device("meta"):
        theirs = timm.create_model(architecture, num_classes=0, **options)
        ours = ViT(entry.config)
    assert convert(theirs.state_dict(), bind(FORMATS[entry.format], entry.config), ours.state_dict())


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("patches_alone", [True, False])
def test_virchow_pools_cls_and_mean(registers: int, patches_alone: bool) -> None:
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 56, "reg_tokens": registers}
    if registers:
        small["no_embed_class"] = patches_alone
    model = randomise(timm.create_model("vit_huge_patch14_224", num_classes=0, **{**GATED, "mlp_ratio": 4.0}, **small))
    entry = ZOO["hf:paige-ai/Virchow2" if registers else "hf:paige-ai/Virchow"]
    sizes = {"dim": 48, "depth": 2, "num_heads": 3, "mlp_dim": 96, "image_size": (56, 56)}
    vit = ViT(replace(entry.config, **sizes)).eval()
    vit.load_state_dict(convert(model.state_dict(), bind(FORMATS[entry.format], vit.config), vit.state_dict()))
    x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = model.eval().forward_features(x)
        want = torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(dim=1)], dim=1)
        assert relative_error(vit(x).pooled, want) <= 1e-5
