"""Weights written in the layouts of timm, of the authors and of this package."""

from collections.abc import Mapping

import pytest
import timm
import torch
from torch import Tensor

from tests.checkpoints.exported import LIMIT, SMALL, assert_same, images, timm_model
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import ConversionError, ViT, ViTConfig, export_weights
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import HEADS, bind, convert
from vitbackbone.model.config import Rotary

DYNAMIC = {"dynamic_img_size": True}
OURS = ViTConfig((32, 32), 8, dim=48, depth=2, num_heads=3, mlp_dim=192)
MEAN = {"final_norm": False, "fc_norm": True, "pool": "mean"}
ROTARY = Rotary(1e4, "index", "neighbours", reference=(16, 16))
EVA02 = {**MEAN, "qkv_bias": "qv", "mlp": "swiglu", "mlp_dim": 128, "rotary": ROTARY}
CLIP = {"projection_dim": 5, "projection_bias": True, "qkv_bias": "qv"}
PE = {
    **{"projection_dim": 5, "projection_bias": True, "norm_eps": 1e-5, "patch_bias": False, "pre_norm": True},
    **{"pool": "map", "pool_heads": 8, "pool_prefix": True},
    "rotary": Rotary(1e4, "index", "halves", reference=(4, 4), offset=1.0),
}
AIMV2 = {
    **{"norm": "rms", "norm_eps": 1e-5, "embed_norm": True, "cls": False, "pool": "mean", "mlp": "swiglu"},
    **{"mlp_dim": 132, "qkv_bias": "none", "proj_bias": False, "mlp_bias": False},
}
DINOV3 = {"position": "none", "rotary": Rotary(100.0, "centred", "halves"), "norm_eps": 1e-5, "num_registers": 4}
SAM = {"window": 3, "global_blocks": (1,), "relative_position": "decomposed", "neck_dim": 256, "pool": "neck"}


TIMM: dict[str, tuple[str, dict[str, object], str, dict[str, object]]] = {  # case: (name, settings, format, ours)
    "vit": ("vit_small_patch16_224", DYNAMIC, "timm", {}),
    "vit, mean": ("vit_small_patch16_224", {**DYNAMIC, "global_pool": "avg"}, "timm", MEAN),
    "dinov2 swiglu": (
        "vit_giant_patch14_dinov2",
        {**DYNAMIC, "mlp_ratio": 16 / 3},
        "timm",
        {"mlp": "swiglu", "mlp_dim": 128, "layer_scale": True},
    ),
    "dinov2 registers": (
        "vit_small_patch14_reg4_dinov2",
        DYNAMIC,
        "timm_no_embed_class",
        {"num_registers": 4, "layer_scale": True},
    ),
    "siglip": ("vit_base_patch16_siglip_224", DYNAMIC, "timm_no_embed_class", {"cls": False, "pool": "map"}),
    "deit": ("deit_small_distilled_patch16_224", DYNAMIC, "timm_distilled", {"num_registers": 1}),
    "clip": (
        "vit_base_patch16_clip_quickgelu_224",
        DYNAMIC,
        "timm_clip",
        {
            "mlp": "quick_gelu",
            "norm_eps": 1e-5,
            "patch_bias": False,
            "pre_norm": True,
            "projection_dim": 5,
            "projection_bias": True,
        },
    ),
    "beit": (
        "beit_base_patch16_224",
        {},
        "timm_beit",
        {**MEAN, "position": "none", "relative_position": "table", "qkv_bias": "qv", "layer_scale": True},
    ),
    "dinov3": (
        "vit_small_patch16_dinov3_qkvb",
        {},
        "timm_dinov3",
        {**DINOV3, "qkv_bias": "qv", "layer_scale": True},
    ),
    "dinov3 swiglu": (
        "vit_small_plus_patch16_dinov3",
        {},
        "timm_dinov3",
        {**DINOV3, "qkv_bias": "none", "layer_scale": True, "mlp": "swiglu"},
    ),
    "eva02": ("eva02_tiny_patch14_224", DYNAMIC, "timm_eva02", EVA02),
    "eva02, apart": ("eva02_base_patch14_224", DYNAMIC, "timm_eva02_split", {**EVA02, "mlp_norm": True}),
    "perception encoder": (
        "vit_pe_core_tiny_patch16_384",
        {**DYNAMIC, "ref_feat_shape": (4, 4)},
        "timm_pe",
        PE,
    ),
    "perception encoder, no cls": (
        "vit_pe_core_gigantic_patch14_448",
        {**DYNAMIC, "mlp_ratio": 4.0, "ref_feat_shape": (4, 4)},
        "timm_pe_no_cls",
        {**PE, "cls": False, "rotary": Rotary(1e4, "index", "halves", reference=(4, 4))},
    ),
    "eva clip": (
        "eva02_enormous_patch14_clip_224",
        {**DYNAMIC, "mlp_ratio": 4.0},
        "timm_eva_clip",
        {**CLIP, "branch_norm": "after"},
    ),
    "eva02 clip": (
        "eva02_base_patch16_clip_224",
        DYNAMIC,
        "timm_eva02_clip",
        {**CLIP, "mlp": "swiglu", "mlp_dim": 128, "mlp_norm": True, "attn_norm": True, "rotary": ROTARY},
    ),
    "aimv2": ("aimv2_large_patch14_224", DYNAMIC, "timm_aimv2", AIMV2),
    "sam": ("samvit_base_patch16", {"global_attn_indexes": [1], "window_size": 3}, "timm_sam", SAM),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm_loads_what_is_exported(case: str) -> None:
    name, settings, layout, ours = TIMM[case]
    classes = 0 if case == "sam" else 5
    model = timm_model(name, **{**settings, "num_classes": classes})
    expected = ViT(ViTConfig(**{**vars(OURS), **{"cls": case != "sam", "final_norm": case != "sam"}, **ours}))
    rules = bind(FORMATS[layout], expected.config)
    parameters = convert(model.state_dict(), rules, expected.state_dict())
    head = {key: parameters.pop(key) for key in list(parameters) if key.startswith(HEADS)}
    expected.load_state_dict(parameters)

    exported = export_weights(expected.eval(), layout, head)
    assert_same(convert(exported, rules, expected.state_dict()), {**expected.state_dict(), **head})
    other = timm.create_model(name, pretrained=False, **{**SMALL, **settings, "num_classes": classes}).eval()
    other.load_state_dict(exported, strict=True)
    for side in (32,) if case == "beit" else (32, 48):  # timm's BEiT takes only its own size
        with torch.inference_mode():
            x = images(side)
            assert relative_error(other.forward_features(x), model.forward_features(x)) <= LIMIT
            if side == 32:
                assert relative_error(other(x), model(x)) <= LIMIT
                tokens = expected(x).tokens
                if case != "sam":
                    assert relative_error(other.forward_features(x)[:, -tokens.shape[1] :], tokens) <= LIMIT


def test_every_layout_of_timm_is_exported() -> None:
    read_only = {"timm_naflex", "timm_prefix"}
    layouts = {name for name in FORMATS if name.startswith("timm")}
    assert {layout for _, _, layout, _ in TIMM.values()} == layouts - read_only


AUTHORS: dict[str, dict[str, object]] = {
    "mae": {"position": "sincos2d"},
    "dino": {},
    "dinov2": {"num_registers": 2, "layer_scale": True, "mlp": "swiglu"},
    "dinov3": {**DINOV3, "qkv_bias": "qv", "layer_scale": True},
    "beit": {**MEAN, "position": "none", "relative_position": "table", "qkv_bias": "qv", "layer_scale": True},
    "clip": {"patch_bias": False, "pre_norm": True, "projection_dim": 8},
    "sam": {**SAM, "cls": False, "final_norm": False},
}


@pytest.mark.parametrize("layout", AUTHORS)
def test_the_authors_layout_comes_back(layout: str) -> None:
    backbone = randomise(ViT(ViTConfig(**{**vars(OURS), **AUTHORS[layout]})))
    exported = export_weights(backbone, layout)
    assert_same(convert(exported, FORMATS[layout], backbone.state_dict()), backbone.state_dict())
    if layout.startswith("dinov"):
        assert exported["mask_token"].shape == (1, 48)
        assert not exported["mask_token"].any()


@pytest.mark.parametrize(
    "ours",
    [
        {"stem": ((8, 2), (8, 4)), "num_registers": 1},
        *(settings for _, _, _, settings in TIMM.values() if settings is not SAM),
        AUTHORS["sam"],
        {"cls": False, "pool": "map", "mlp": "swiglu", "mlp_norm": True},
    ],
)
def test_the_native_layout_holds_every_parameter_under_its_name(ours: dict[str, object]) -> None:
    state = ViT(ViTConfig(**{**vars(OURS), **ours})).state_dict()
    assert_same(export_weights(_with(state, ours), "native"), state)


def _with(state: Mapping[str, Tensor], ours: dict[str, object]) -> ViT:
    backbone = ViT(ViTConfig(**{**vars(OURS), **ours}))
    backbone.load_state_dict(state)
    return backbone


def test_positions_of_a_rectangle_do_not_become_a_square() -> None:
    backbone = tiny_vit(image_size=(16, 64), **{**SAM, "cls": False, "final_norm": False})  # 2 x 8 patches: as many
    with pytest.raises(ConversionError, match="timm_sam wants a square of positions, and the model has 2 x 8"):
        export_weights(backbone, "timm_sam")
