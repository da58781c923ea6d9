"""The Vision Transformer against independent formulas."""

import math
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import TINY, randomise, relative_error, tiny_vit
from vitbackbone import Rotary, ViT, ViTConfig, vit_config
from vitbackbone.model.layers import DropPath


def test_patchify_is_unfold_and_a_linear_layer() -> None:
    vit = tiny_vit()
    x = torch.randn(2, 3, 32, 48)
    unfolded = F.unfold(x, kernel_size=8, stride=8).transpose(1, 2)  # (B, N, 3*8*8)
    weight, bias = vit.patch_embed.proj.weight.flatten(1), vit.patch_embed.proj.bias
    assert relative_error(vit.patch_embed(x).flatten(2).transpose(1, 2), F.linear(unfolded, weight, bias)) < 1e-5


def test_the_forward_is_the_formula_of_the_paper() -> None:
    """Equations 1 to 4 of Dosovitskiy et al. 2021, written out with loops over heads, in float64."""
    vit = randomise(tiny_vit().double())
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    p = vit.state_dict()
    patches = F.unfold(x, 8, stride=8)[0].T @ p["patch_embed.proj.weight"].flatten(1).T + p["patch_embed.proj.bias"]
    z = torch.cat([p["cls_token"][0], patches + p["pos_embed.table"]])

    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        centred = z - z.mean(1, keepdim=True)
        return (
            centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]
        )

    for i in range(vit.config.depth):
        b = f"blocks.{i}"
        q, k, v = (norm(z, f"{b}.norm1") @ p[f"{b}.attn.qkv.weight"].T + p[f"{b}.attn.qkv.bias"]).chunk(3, dim=1)
        width = q.shape[1] // 2
        heads = [slice(0, width), slice(width, 2 * width)]
        mixed = [torch.softmax(q[:, h] @ k[:, h].T / math.sqrt(width), dim=1) @ v[:, h] for h in heads]
        z = z + torch.cat(mixed, 1) @ p[f"{b}.attn.proj.weight"].T + p[f"{b}.attn.proj.bias"]
        hidden = norm(z, f"{b}.norm2") @ p[f"{b}.mlp.fc1.weight"].T + p[f"{b}.mlp.fc1.bias"]
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        z = z + gelu @ p[f"{b}.mlp.fc2.weight"].T + p[f"{b}.mlp.fc2.bias"]
    z = norm(z, "norm")
    features = vit(x)
    assert relative_error(features.cls[0], z[0]) < 1e-12
    assert relative_error(features.tokens[0], z[1:]) < 1e-12
    assert torch.equal(features.pooled, features.cls)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("Ti/16", "vit_tiny_patch16_224"),
        ("S/16", "vit_small_patch16_224"),
        ("S/32", "vit_small_patch32_224"),
        ("B/8", "vit_base_patch8_224"),
        ("B/16", "vit_base_patch16_224"),
        ("B/32", "vit_base_patch32_224"),
        ("L/16", "vit_large_patch16_224"),
        ("H/14", "vit_huge_patch14_224"),
    ],
)
def test_parameter_counts_equal_timms(variant: str, name: str) -> None:
    with torch.device("meta"):
        ours, theirs = ViT(vit_config(variant)), timm.create_model(name, num_classes=0)
    # The position of CLS is folded into the token here.
    assert count(ours) == count(theirs) - ours.config.dim


@pytest.mark.parametrize(("variant", "millions"), [("B/16", 86), ("L/16", 307), ("H/14", 632)])
def test_parameter_counts_are_those_of_the_paper(variant: str, millions: int) -> None:
    """Table 1 of the paper gives one count a size, with a head of 1000 classes; patch sizes move it within 1 %."""
    with torch.device("meta"):
        vit = ViT(vit_config(variant))
    assert count(vit) + 1001 * vit.config.dim == pytest.approx(millions * 1e6, rel=0.01)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_pooling_by_patch_mean_ignores_padding_images() -> None:
    vit = tiny_vit(cls=False, pool="mean")
    features = vit([torch.randn(3, 16, 32), torch.randn(3, 40, 8)])
    by_hand = [features.patches[i][:, features.valid[i]].mean(dim=1) for i in range(2)]
    assert relative_error(features.pooled, torch.stack(by_hand)) < 1e-6


def test_a_norm_after_pooling_applies_to_the_pooled_vector_alone() -> None:
    vit = tiny_vit(pool="mean", final_norm=False, fc_norm=True)
    features = vit(torch.randn(2, 3, 32, 32))
    assert relative_error(features.pooled, vit.fc_norm(features.tokens.mean(dim=1))) < 1e-5


def test_drop_path_drops_whole_images_in_training_alone_and_keeps_the_expectation() -> None:
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    y = drop.train()(x, [2])
    per_image = y.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert set(per_image[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x, [2]), x)
    rates = [block.drop_path.rate for block in ViT(vit_config("Ti/16", depth=5, drop_path=0.2)).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 30, "num_heads": 4}, "dim=30 is not divisible by num_heads=4"),
        ({"image_size": (30, 32)}, "not a multiple of patch_size=8"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"cls": False}, "pool='cls' needs cls=True"),
        ({"fc_norm": True}, "fc_norm=True replaces the final norm"),
        ({"stem": ((8, 2), (16, 2))}, "do not multiply to patch_size=8"),
        ({"position": "sincos2d", "dim": 18, "num_heads": 2}, "needs dim divisible"),
        ({"num_registers": -1}, "num_registers must be 0 or more"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"global_blocks": (1,)}, "global_blocks=.1,. with window=0"),
        ({"window": -1, "cls": False, "pool": "mean"}, "window must be 0 or more"),
        ({"relative_position": "table", "num_registers": 1}, "biases for one prefix token, got 2"),
        ({"relative_position": "decomposed"}, "no place for CLS"),
        ({"rotary": Rotary(100.0, "centred", "halves"), "dim": 18, "num_heads": 3}, "heads of a width divisible by 4"),
        ({"mlp_norm": True}, "mlp_norm=True needs mlp to be one of swiglu"),
        ({"pool": "neck"}, "pool='neck' needs neck_dim"),
        ({"projection_bias": True}, "needs projection_dim"),
        ({"norm_eps": 0.0}, "norm_eps must be above 0"),
    ],
)
def test_contradictory_configurations_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTConfig(**{**vars(TINY), **fields})


def test_unknown_choices_are_refused() -> None:
    """In a process of its own, without the type checks of the tests, which would come first."""
    code = (
        "from functools import partial\n"
        "from vitbackbone import Preprocess, Resampling, Rotary, TimmConfig, ViTConfig\n"
        "for field in ('position', 'pool', 'mlp', 'indivisible'):\n"
        "    try: ViTConfig(**{field: 'reject'})\n"
        "    except ValueError as e: assert f\"{field}='reject'; want one of\" in str(e), e\n"
        "    else: raise SystemExit(f'{field} was taken')\n"
        "rotary = partial(Rotary, theta=1.0, coordinates='index', pairs='halves')\n"
        "others = {Resampling: ('mode', 'relative'), rotary: ('coordinates', 'pairs'),\n"
        "    Preprocess: ('crop_mode', 'crop_rounding', 'interpolation'),\n"
        "    partial(TimmConfig, 'resnet18'): ('windows',)}\n"
        "for record, fields in others.items():\n"
        "    for field in fields:\n"
        "        try: record(**{field: 'reject'})\n"
        "        except ValueError as e: assert field in str(e) and 'want one of' in str(e), e\n"
        "        else: raise SystemExit(f'{field} was taken')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("variant", ["X/16", "B", "B/", "B/x"])
def test_unknown_variants_are_refused(variant: str) -> None:
    with pytest.raises(ValueError, match="unknown variant"):
        vit_config(variant)
