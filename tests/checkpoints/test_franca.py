"""Franca's files are DINOv2's with a gated MLP at every size: the teacher in chunks of blocks, beside its heads."""

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from vitbackbone import ViT
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import convert
from vitbackbone.checkpoints.towers import take
from vitbackbone.checkpoints.zoo import ZOO

NAMES = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}


@pytest.mark.parametrize(("name", "depth"), [("franca_vitb14", 12), ("franca_vitl14", 24), ("franca_vitg14", 40)])
def test_the_file_fills_the_network(name: str, depth: int) -> None:
    entry = ZOO[name]
    config = entry.config
    gated = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2 * config.mlp_dim / config.dim}
    sizes = {"embed_dim": config.dim, "depth": depth, "num_heads": config.num_heads, "img_size": config.image_size}
    with torch.device("meta"):
        theirs = timm.create_model("vit_base_patch14_dinov2", num_classes=0, **gated, **sizes)
        ours = ViT(config)
    state = {"dino_head.mlp.0.weight": torch.empty(2, device="meta")}
    for key, tensor in theirs.state_dict().items():
        for old, new in NAMES.items():
            key = key.replace(old, new)
        block = key.split(".")[1] if key.startswith("blocks.") else ""
        key = key.replace(f"blocks.{block}.", f"blocks.{int(block) * 4 // depth}.{block}.") if block else key
        state[f"backbone.{key}"] = tensor
    taken = take(state, FORMATS[entry.format], None, None, must=False)
    assert convert(taken.tensors, taken.rules, ours.state_dict()).keys() == ours.state_dict().keys()
    assert "dino_head" in taken.note
