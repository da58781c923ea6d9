"""Models of the zoo equal timm at a small width and depth, on identical, fully randomised weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import relative_error
from tests.oracles.cases import LIMIT, Case, check_parity, images, save_timm
from tests.oracles.small_timm import SMALL, SMALL_CASES, load_small, shrunk, small_model
from vitbackbone import ViT
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import bind, convert


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_equals_timm(case: Case, tmp_path: Path) -> None:
    check_parity(case, tmp_path)


SWAPS = {
    "attn_pool.latent": "attn_pool.probe",
    "attn_pool.proj": "attn_pool.attn.out_proj",
    "attn_pool.norm": "attn_pool.layernorm",
    "patch_embed.proj": "conv1",
    "norm_pre": "ln_pre",
    ".norm1": ".ln_1",
    ".norm2": ".ln_2",
    "gamma_1": "ls_1.gamma",
    "gamma_2": "ls_2.gamma",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "blocks.": "transformer.resblocks.",
}


def as_perception_encoder(state: dict[str, Tensor], core: bool) -> dict[str, Tensor]:
    """The authors' file, from timm's."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        for ours, theirs in SWAPS.items():
            name = name.replace(ours, theirs)
        out[name] = value
    if core:
        out["ln_post.weight"], out["ln_post.bias"] = out.pop("norm.weight"), out.pop("norm.bias")
        for kind in ("weight", "bias"):
            parts = [out.pop(f"attn_pool.{part}.{kind}") for part in ("q", "kv")]
            out[f"attn_pool.attn.in_proj_{kind}"] = torch.cat(parts)
        out["proj"] = out.pop("head.weight").T.contiguous()
        del out["head.bias"]
    out["positional_embedding"] = out.pop("pos_embed")[0]
    if "cls_token" in out:
        out["class_embedding"] = out.pop("cls_token")[0, 0]
    if not core:
        return out
    text = {"positional_embedding": (4, 4), "logit_scale": (), "transformer.resblocks.0.ln_1.weight": (4,)}
    return {f"visual.{key}": value for key, value in out.items()} | {key: torch.zeros(text[key]) for key in text}


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("vit_pe")])
def test_the_authors_perception_encoder_is_timms(name: str) -> None:
    entry, state = shrunk(name), small_model(name).state_dict()
    core, cls = entry.config.projection_dim > 0, entry.config.cls
    layout = ("pe_core" if core else "pe") + "_no_cls" * (not cls)
    ours = ViT(replace(entry.config, projection_bias=False)).state_dict()
    authors = convert(as_perception_encoder(state, core), bind(FORMATS[layout], entry.config), ours)
    theirs = convert(state, bind(FORMATS[entry.format], entry.config), ViT(entry.config).state_dict())
    assert authors.keys() == ours.keys()
    assert all(torch.equal(authors[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", ["vit_pe_core_tiny_patch16_384.fb", "vit_pe_spatial_gigantic_patch14_448.fb"])
def test_perception_encoder_follows_its_authors_at_other_sizes(name: str, tmp_path: Path) -> None:
    """They count rows and columns, +1 where there is a CLS token, and resize the table bilinearly. The oracle is timm,
    with a table that was resized beforehand and the new grid as the reference of its rotary positions."""
    model, p = small_model(name), shrunk(name).config.patch_size
    save_timm(model, tmp_path)
    grid, prefix = (4, 9), model.num_prefix_tokens
    x = images((grid[0] * p, grid[1] * p))
    table = model.pos_embed[:, prefix:].unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=grid, mode="bilinear").flatten(2).mT
    other = timm.create_model(
        name.split(".")[0],
        img_size=x.shape[-2:],
        num_classes=model.num_classes,
        **{**SMALL[name].arguments, "ref_feat_shape": grid},
    ).eval()
    moved = torch.cat([model.pos_embed[:, :prefix], table], dim=1)
    other.load_state_dict({**model.state_dict(), "pos_embed": moved})
    with torch.inference_mode():
        want = other.forward_features(x)
        ours, resized = (load_small(name, tmp_path, policy) for policy in ("native", "timm"))
        assert relative_error(ours(x).tokens, want[:, prefix:]) <= LIMIT
        assert relative_error(resized(x).tokens, want[:, prefix:]) > 1e-3
