"""The backbones of the contract suite, by name, and the images of several test files. No test changes these."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tests.helpers import tiny_vit
from tests.timm_networks import BACKBONES as TIMM
from vitbackbone import BackboneModule, FusedBackbone, Member, Resampling, ViT, load_backbone
from vitbackbone.model.config import Rotary

NO_CLS = {"cls": False, "pool": "mean"}
HALVES, NEIGHBOURS = Rotary(100.0, "centred", "halves"), Rotary(1e4, "index", "neighbours", (4, 4))
PLAIN = Rotary(1e4, "index", "halves")
CORNERS = Resampling("bilinear", align_corners=True)
SQUARE, TILED = Resampling("bilinear", fit="square", align_corners=True), Resampling(fit="tile")
BUCKETS = Resampling(fit="buckets")
VITS: dict[str, ViT] = {
    "cls": tiny_vit(),
    "registers": tiny_vit(num_registers=3, layer_scale=True),
    "mean": tiny_vit(**NO_CLS),
    "fc_norm": tiny_vit(pool="mean", final_norm=False, fc_norm=True),
    "sincos2d": tiny_vit(position="sincos2d"),
    "sincos1d": tiny_vit(position="sincos1d", num_registers=1),
    "no positions": tiny_vit(position="none"),
    "stem": tiny_vit(stem=((8, 2), (12, 2), (12, 1), (16, 2))),
    "swiglu": tiny_vit(mlp="swiglu", mlp_dim=24, qkv_bias="none"),
    "rectangular": tiny_vit(image_size=(24, 40)),
    "nano": load_backbone("nano"),
    "offset": tiny_vit(resampling=Resampling(offset=0.1)),
    "rotary halves": tiny_vit(position="none", rotary=HALVES, num_registers=2, qkv_bias="qv"),
    "rotary neighbours": tiny_vit(rotary=NEIGHBOURS, mlp="swiglu", mlp_norm=True),
    "relative spline": tiny_vit(position="none", relative_position="table", qkv_bias="qv"),
    "relative bilinear": tiny_vit(relative_position="table", resampling=Resampling(relative="bilinear")),
    "windows": tiny_vit(**NO_CLS, relative_position="decomposed", window=3, global_blocks=(1,), final_norm=False),
    "windows and registers": tiny_vit(window=3, global_blocks=(1,), num_registers=2, final_norm=False),
    "neck": tiny_vit(**{**NO_CLS, "pool": "neck"}, neck_dim=8, final_norm=False),
    "attention pool": tiny_vit(cls=False, pool="map", mlp="gelu_tanh"),
    "rms": tiny_vit(norm="rms", embed_norm=True, qk_norm="full", qkv_bias="none", proj_bias=False, layer_scale=True),
    "qk norm": tiny_vit(position="none", rotary=NEIGHBOURS, qk_norm="head", v_norm=True, mlp="geglu_tanh", head_dim=12),
    "norms after": tiny_vit(branch_norm="after", attn_norm=True, mlp="swiglu", mlp_norm=True, norm="rms"),
    "grouped keys": tiny_vit(num_heads=4, num_kv_heads=2, rotary=PLAIN, qk_norm="head", norm="rms", mlp_bias=False),
    "cls angles": tiny_vit(position="none", rotary=replace(PLAIN, cls_angles=True, interleaved=True), mlp="geglu"),
    "offset rotary": tiny_vit(rotary=replace(PLAIN, offset=1.0, reference=(4, 4)), resampling=CORNERS),
    "axes": tiny_vit(**NO_CLS, position="axes", axis_positions=12, branch_norm="both", layer_scale=True),
    "computed2d": tiny_vit(**NO_CLS, position="computed2d"),
    "cut windows": tiny_vit(
        **NO_CLS, position="none", rotary=PLAIN, window=3, window_edge="cut", global_blocks=(1,), norm="rms"
    ),
    "query pool": tiny_vit(pool="query", pool_heads=4, pool_prefix=True, num_registers=1, resampling=TILED),
    "pool tokens": tiny_vit(pool="tokens", pool_tokens=(0, 2), num_registers=2, resampling=SQUARE, final_norm=False),
    "cls and mean": tiny_vit(pool="cls_mean", num_registers=1, resampling=BUCKETS, projection_dim=12),
    "projection": tiny_vit(pre_norm=True, patch_bias=False, mlp="quick_gelu", projection_dim=12),
}


MEMBERS = [Member(VITS["registers"], -2, False), Member(tiny_vit(patch_size=16, seed=1), 1, False)]
BACKBONES: dict[str, BackboneModule] = {
    **VITS,
    **{name: TIMM[name] for name in ("swin sized", "swinv2 fixed", "hybrid", "r26", "resnet", "convnext")},
    "fused": FusedBackbone(MEMBERS),
}


if importlib.util.find_spec("transformers"):  # the environment of `make test-oldest` lacks it
    from tests.transformers_networks import BACKBONES as HUGGING_FACE

    BACKBONES |= HUGGING_FACE

# One of each kind of position, prefix, pooling and network: the others are slow where a test runs over all.
QUICK = {"registers", "offset", "rotary halves", "relative bilinear", "windows", "neck", "attention pool"}
QUICK |= {"pool tokens", "projection", "nano", "swin sized", "hybrid", "fused", "hf vit"}


def images(*shape: int, seed: int = 0) -> Tensor:
    """Noise of this shape, the same for each seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SIZES = [(32, 40), (16, 24), (40, 32), (9, 70), (32, 40), (17, 23)]  # two of one size, and two of one grid


def batch(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Tensor]:
    """Images of several sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in sizes]
