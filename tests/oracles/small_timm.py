"""timm's architectures at a small width and depth, for those whose smallest one is large.

A row shrinks a model of the zoo and timm's alike, so that its key layout and its fields are what is tested.
"""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path

import timm
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size, save_timm, timm_layers
from vitbackbone import BackboneModule, ViT
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import bind, convert
from vitbackbone.checkpoints.zoo import ZOO, Entry, Positions
from vitbackbone.model import ViTConfig


@dataclass(frozen=True)
class Small:
    """What shrinks a model: timm's arguments, and fields of `ViTConfig`."""

    family: str
    arguments: dict[str, object] = field(default_factory=dict)
    fields: dict[str, object] = field(default_factory=dict)


WIDTH = {"embed_dim": 48, "depth": 3, "num_heads": 3}
FIELDS = {"dim": 48, "depth": 3, "num_heads": 3}
GELU = {**FIELDS, "mlp_dim": 192}
SIXTEEN, SIX = {**WIDTH, "mlp_ratio": 4.0}, {**WIDTH, "mlp_ratio": 2.0}
PE_CORE = {**GELU, "pool_mlp_dim": 192, "pool_heads": 8}

SMALL: dict[str, Small] = {
    "vit_pe_core_tiny_patch16_384.fb": Small("PE core", {**WIDTH, "ref_feat_shape": (6, 6)}, PE_CORE),
    "vit_pe_core_gigantic_patch14_448.fb": Small("PE core", {**SIXTEEN, "ref_feat_shape": (6, 6)}, PE_CORE),
    "vit_pe_lang_large_patch14_448.fb": Small("PE lang", {**WIDTH, "ref_feat_shape": (6, 6)}, GELU),
    "vit_pe_spatial_tiny_patch16_512.fb": Small("PE spatial", {**WIDTH, "ref_feat_shape": (6, 6)}, GELU),
    "vit_pe_spatial_gigantic_patch14_448.fb": Small("PE spatial", {**SIXTEEN, "ref_feat_shape": (6, 6)}, GELU),
    "eva_giant_patch14_clip_224.laion400m": Small("EVA-CLIP", SIXTEEN, GELU),
    "eva02_base_patch16_clip_224.merged2b": Small("EVA-CLIP", WIDTH, {**FIELDS, "mlp_dim": 128}),
    "eva02_enormous_patch14_clip_224.laion2b": Small("EVA-CLIP, norms after", SIX, {**FIELDS, "mlp_dim": 96}),
    "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m": Small("EUPE", WIDTH, GELU),
    "vit_small_patch16_lingbot.robbyant": Small("LingBot-Vision", WIDTH, GELU),
    "vit_giant_patch16_lingbot.robbyant": Small("LingBot-Vision", WIDTH, {**FIELDS, "mlp_dim": 128}),
    "vit_intern300m_patch14_448.ogvl_dist": Small("InternViT", WIDTH, GELU),
    "aimv2_large_patch14_224.apple_pt": Small("AIMv2", WIDTH, {**FIELDS, "mlp_dim": 132}),
    "vit_huge_patch14_clip_quickgelu_224.metaclip2_worldwide": Small("MetaCLIP 2", WIDTH, GELU),
}


def shrunk(name: str) -> Entry:
    """Return the entry of a small model, at 6 x 6 patches."""
    entry, row = ZOO[name], SMALL[name]
    assert isinstance(entry.config, ViTConfig)
    side, width = 6 * entry.config.patch_size, 20 if entry.config.projection_dim else 0
    fields = {"projection_dim": width, "projection_bias": width > 0, **row.fields}
    config = replace(entry.config, image_size=(side, side), **fields)
    rotary = entry.timm_rotary and replace(entry.timm_rotary, reference=(6, 6))
    return replace(entry, config=config, timm_rotary=rotary)


def small_model(name: str) -> nn.Module:
    config, row = shrunk(name).config, SMALL[name]
    assert isinstance(config, ViTConfig)
    options = {"img_size": config.image_size, "num_classes": config.projection_dim, "dynamic_img_size": True}
    return randomise(timm.create_model(name.split(".")[0], pretrained=False, **options, **row.arguments))


def load_small(name: str, folder: Path, positions: Positions) -> BackboneModule:
    entry = shrunk(name)
    vit = ViT(entry.at_other_sizes(positions), entry.preprocess, name)
    state = load_file(folder / "model.safetensors")
    vit.load_state_dict(convert(state, bind(FORMATS[entry.format], vit.config), vit.state_dict()))
    return vit.eval()


def run_small(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    raw = timm_layers(model, x, layers)
    last = model.forward_features(x)
    return Outputs(last, raw, model.forward_head(last, pre_logits=model.num_classes == 0))


def small_case(name: str) -> Case:
    p = shrunk(name).config.patch_size
    sizes: tuple[Size, ...] = ((6 * p, 6 * p), (8 * p, 8 * p), (4 * p, 9 * p), (5 * p - 3, 3 * p + 2), (7 * p, p))
    model, load = functools.partial(small_model, name), functools.partial(load_small, name)
    return Case(SMALL[name].family, "timm", name, sizes, model, load, save_timm, run_small, "timm", p)


SMALL_CASES: list[Case] = [small_case(name) for name in SMALL]
