"""An exported backbone loads whole in timm and transformers, gives the same features there, and comes back unchanged.

Every parameter is randomised. The upstream models are small ones of the real classes.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.checkpoints.sampling import covering, first_of_each
from tests.helpers import TINY, photo, randomise, relative_error, tiny_vit
from vitbackbone import (
    ConversionError,
    Preprocess,
    Resampling,
    ViT,
    ViTConfig,
    export_weights,
    load_backbone,
    load_checkpoint,
    save_pretrained,
)
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.huggingface import CLASSES, DEIT_EVAL, DINOV2_EVAL, PLAIN, VIT_EVAL, write_config
from vitbackbone.checkpoints.rules import HEADS, bind, convert
from vitbackbone.model.config import Rotary

LIMIT = 1e-5


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


# ---- transformers -------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8, "image_size": 32}
MLP = {"intermediate_size": 96}
LABELLED = {"num_labels": 5}
BEIT = {**MLP, "use_relative_position_bias": True}

HF: dict[str, tuple[str, dict[str, object]]] = {  # case: (model class, settings)
    "vit": ("ViTModel", MLP),
    "vit without qkv bias": ("ViTModel", {**MLP, "qkv_bias": False, "hidden_act": "gelu_pytorch_tanh"}),
    "vit classifier": ("ViTForImageClassification", {**MLP, **LABELLED}),
    "mae": ("ViTMAEModel", {**MLP, "mask_ratio": 0.0}),
    "ijepa": ("IJepaModel", MLP),
    "ijepa classifier": ("IJepaForImageClassification", {**MLP, **LABELLED}),
    "deit": ("DeiTModel", MLP),
    "deit classifier": ("DeiTForImageClassification", {**MLP, **LABELLED}),
    "deit teacher": ("DeiTForImageClassificationWithTeacher", {**MLP, **LABELLED}),
    "beit": ("BeitModel", BEIT),
    "beit, absolute": ("BeitModel", {**BEIT, "use_absolute_position_embeddings": True}),
    "beit, shared": ("BeitModel", {**MLP, "use_shared_relative_position_bias": True}),
    "beit, absolute and shared": (
        "BeitModel",
        {**MLP, "use_absolute_position_embeddings": True, "use_shared_relative_position_bias": True},
    ),
    "beit, pooled by CLS": ("BeitModel", {**BEIT, "use_mean_pooling": False, "layer_scale_init_value": 0.0}),
    "beit classifier": ("BeitForImageClassification", {**BEIT, **LABELLED}),
    "dinov2": ("Dinov2Model", {}),
    "dinov2 swiglu": ("Dinov2Model", {"use_swiglu_ffn": True, "mlp_ratio": 3}),
    "dinov2 classifier": ("Dinov2ForImageClassification", LABELLED),
    "dinov2 registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 3}),
    "dinov2 of no registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 0}),
    "dinov2 registers classifier": ("Dinov2WithRegistersForImageClassification", LABELLED),
    "dinov3": ("DINOv3ViTModel", {**MLP, "num_register_tokens": 4, "rope_theta": 50.0}),
    "dinov3 swiglu": (
        "DINOv3ViTModel",
        {**MLP, "use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False},
    ),
    "clip": ("CLIPVisionModel", MLP),
    "clip projected": ("CLIPVisionModelWithProjection", {**MLP, "projection_dim": 20, "hidden_act": "gelu"}),
    "siglip": ("SiglipVisionModel", MLP),
    "siglip without head": ("SiglipVisionModel", {**MLP, "vision_use_head": False}),
    "sam": ("SamVisionModel", {"mlp_dim": 96, "window_size": 3, "global_attn_indexes": [1], "output_channels": 12}),
}
POOLER = "pooler_output"


def hf_class(case: str) -> type[transformers.PreTrainedModel]:
    return getattr(transformers, HF[case][0])


def hf_model(case: str) -> transformers.PreTrainedModel:
    model_class = hf_class(case)
    return randomise(model_class(model_class.config_class(**SIZES, **HF[case][1])))


def hf_outputs(model: transformers.PreTrainedModel, side: int) -> dict[str, Tensor]:
    kind = model.config.model_type
    options: dict[str, object] = {}
    if kind in ("vit", "vit_mae", "ijepa", "deit", "clip_vision_model", "siglip_vision_model"):
        options["interpolate_pos_encoding"] = True
    if kind == "vit_mae":
        options["noise"] = torch.arange((side // 8) ** 2).float().expand(2, -1)  # the patches stay in order
    with torch.inference_mode():
        found = model(pixel_values=images(side), **options)
    return {key: found[key] for key in found if found[key] is not None and key not in ("mask", "ids_restore")}


def hf_load(model_class: type[transformers.PreTrainedModel], directory: Path) -> transformers.PreTrainedModel:
    """With nothing missing and nothing left over."""
    model, info = model_class.from_pretrained(directory, output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    return model.eval()


@pytest.mark.parametrize("case", covering([*HF], quick=first_of_each(HF, lambda case: HF[case][0])))
def test_a_directory_goes_there_and_back(case: str, tmp_path: Path) -> None:
    model = hf_model(case)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = load_checkpoint(tmp_path / "theirs")
    save_pretrained(checkpoint.backbone, tmp_path / "ours", HF[case][0], checkpoint.head, checkpoint.labels)

    written = hf_load(hf_class(case), tmp_path / "ours")
    for side in (32,) if case == "sam" else (32, 48):  # transformers' SAM takes its own size alone
        want, got = hf_outputs(model, side), hf_outputs(written, side)
        assert want.keys() == got.keys()
        for key in want:
            if key == POOLER and model.config.model_type in ("vit", "deit"):
                assert not got[key].any()  # the tanh layer on CLS is no part of the backbone
            else:
                assert relative_error(got[key], want[key]) <= LIMIT
    assert written.config.id2label == model.config.id2label

    back = load_checkpoint(tmp_path / "ours")
    assert back.backbone.config == checkpoint.backbone.config
    assert torch.equal(back.backbone.preprocess(photo(50, 70)), checkpoint.backbone.preprocess(photo(50, 70)))
    assert_same(back.backbone.state_dict(), checkpoint.backbone.state_dict())
    assert_same(back.head, checkpoint.head)
    assert back.labels == checkpoint.labels


def test_there_is_a_case_for_every_class_that_can_be_written() -> None:
    assert {name for name, _ in HF.values()} == set(CLASSES)


@pytest.mark.parametrize("architecture", CLASSES)
def test_settings_are_written_under_the_names_of_transformers(architecture: str) -> None:
    """A name that transformers does not know would be read back here, and ignored there."""
    known = getattr(transformers, architecture).config_class().to_dict()
    assert write_config(replace(TINY, projection_dim=8), architecture).keys() <= known.keys()


@pytest.mark.parametrize("case", [case for case in HF if case.startswith("beit") and "classifier" not in case])
def test_every_layout_of_beit_is_written(case: str, tmp_path: Path) -> None:
    """`save_pretrained` writes a table of relative positions per block; the weights alone go into one for all, too."""
    model = hf_model(case)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    backbone = load_backbone(tmp_path)
    layout = "BeitModel" + " absolute" * ("absolute" in case) + " shared" * ("shared" in case)
    exported = export_weights(backbone, layout)
    assert exported.keys() == stored.keys()
    save_file(exported, tmp_path / "model.safetensors", metadata={"format": "pt"})
    written = hf_load(transformers.BeitModel, tmp_path)
    for side in (32, 48):
        want, got = hf_outputs(model, side), hf_outputs(written, side)
        assert all(relative_error(got[key], want[key]) <= LIMIT for key in want)


NATIVE: dict[str, tuple[str, ViTConfig]] = {  # what was made here: (class, configuration)
    "vit": ("ViTModel", TINY),
    "deit": ("DeiTModel", replace(TINY, num_registers=1)),
    "dinov2": ("Dinov2WithRegistersModel", replace(TINY, num_registers=2, layer_scale=True, mlp_dim=64)),
    "dinov3": (
        "DINOv3ViTModel",
        replace(TINY, position="none", rotary=Rotary(100.0, "centred", "halves"), layer_scale=True, num_registers=2),
    ),
    "beit": (
        "BeitModel",
        replace(
            TINY,
            position="none",
            relative_position="table",
            qkv_bias="qv",
            layer_scale=True,
            final_norm=False,
            fc_norm=True,
            pool="mean",
        ),
    ),
    "siglip": ("SiglipVisionModel", replace(TINY, cls=False, pool="map", mlp="gelu_tanh")),
}


@pytest.mark.parametrize("case", NATIVE)
def test_transformers_runs_what_was_made_here(case: str, tmp_path: Path) -> None:
    architecture, config = NATIVE[case]
    policy = Resampling("bicubic", antialias=case == "dinov2", relative="bilinear")
    backbone = randomise(ViT(replace(config, resampling=policy, drop_path=0.2, indivisible="refuse"), VIT_EVAL))
    save_pretrained(backbone, tmp_path, architecture)
    written = hf_load(transformers.AutoModel, tmp_path)
    for side in (32, 48):
        theirs = hf_outputs(written, side)
        with torch.inference_mode():
            features = backbone(images(side))
        prefix = [features.registers, features.tokens]
        ours = torch.cat([features.cls[:, None], *prefix] if features.cls is not None else prefix, dim=1)
        assert relative_error(ours, theirs["last_hidden_state"]) <= LIMIT
        if case in ("dinov2", "beit", "siglip"):
            assert relative_error(features.pooled, theirs[POOLER]) <= LIMIT


@pytest.mark.parametrize(("case", "pool"), [("deit", "prefix"), ("dinov3", "mean")])
def test_what_timm_pools_in_its_own_way_is_written_for_transformers(case: str, pool: str, tmp_path: Path) -> None:
    architecture, config = NATIVE[case]
    backbone = randomise(ViT(replace(config, pool=pool, resampling=PLAIN), VIT_EVAL))
    save_pretrained(backbone, tmp_path, architecture)
    read = load_backbone(tmp_path)
    with torch.inference_mode():
        assert torch.equal(read(images(32)).pooled, backbone(images(32)).cls)


def test_a_timm_dinov2_runs_in_transformers(tmp_path: Path) -> None:
    model = timm_model("vit_small_patch14_dinov2")
    config = replace(TINY, dim=48, depth=2, num_heads=3, mlp_dim=192, layer_scale=True, resampling=PLAIN)
    backbone = from_timm(model, "timm", config, DINOV2_EVAL)
    save_pretrained(backbone, tmp_path, "Dinov2Model")
    theirs = hf_outputs(hf_load(transformers.AutoModel, tmp_path), 32)["last_hidden_state"]
    with torch.inference_mode():
        assert relative_error(theirs, model.forward_features(images(32))) <= LIMIT


def test_a_classifier_brings_its_labels_or_none(tmp_path: Path) -> None:
    backbone = tiny_vit()
    backbone.preprocess = VIT_EVAL
    head = {"head.weight": torch.randn(3, 16), "head.bias": torch.randn(3)}
    save_pretrained(backbone, tmp_path, "ViTForImageClassification", head, ["ant", "bee", "bee"])
    assert load_checkpoint(tmp_path).labels == ("ant", "bee", "bee")
    assert hf_load(transformers.ViTForImageClassification, tmp_path).config.id2label == {0: "ant", 1: "bee", 2: "bee"}
    save_pretrained(backbone, tmp_path, "ViTForImageClassification", head)
    assert load_checkpoint(tmp_path).labels == ()
    assert hf_load(transformers.ViTForImageClassification, tmp_path).config.num_labels == 3


# ---- preprocessing ------------------------------------------------------------------------------------------------

PROCESSORS = {
    "ViTImageProcessor": ViTImageProcessorPil,
    "DeiTImageProcessor": DeiTImageProcessorPil,
    "BitImageProcessor": BitImageProcessorPil,
}


@pytest.mark.parametrize(
    "preprocess",
    [
        VIT_EVAL,
        replace(VIT_EVAL, image_size=(48, 32), interpolation="bicubic", crop_rounding="even"),
        DEIT_EVAL,
        DINOV2_EVAL,
        Preprocess((224, 224), 0.9, "center", "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop_rounding="down"),
        replace(DINOV2_EVAL, crop_pct=1.0),
    ],
    ids=["vit", "a rectangle", "deit", "dinov2", "other colours", "whole"],
)
def test_preprocessing_comes_back_and_is_that_of_transformers(preprocess: Preprocess, tmp_path: Path) -> None:
    backbone = tiny_vit()
    backbone.preprocess = preprocess
    save_pretrained(backbone, tmp_path, "ViTModel")
    back = load_backbone(tmp_path).preprocess
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    processor = PROCESSORS[settings.pop("image_processor_type")](**settings)
    for size in [(259, 400), (90, 141), (640, 427), (256, 256)]:
        want = preprocess(photo(*size))
        assert torch.equal(back(photo(*size)), want)
        assert (processor(photo(*size), return_tensors="pt")["pixel_values"][0] - want).abs().max() < 1e-5
    assert type(transformers.AutoImageProcessor.from_pretrained(tmp_path)).__name__ in PROCESSORS


# ---- timm ---------------------------------------------------------------------------------------------------------

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
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


def timm_model(name: str, **settings: object) -> nn.Module:
    return randomise(timm.create_model(name, pretrained=False, **{**SMALL, **settings}))


def from_timm(model: nn.Module, layout: str, config: ViTConfig, preprocess: Preprocess | None = None) -> ViT:
    vit = ViT(config, preprocess)
    parameters = convert(model.state_dict(), FORMATS[layout], vit.state_dict())
    vit.load_state_dict({key: value for key, value in parameters.items() if not key.startswith(HEADS)})
    return vit.eval()


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
    for side in (32,) if case == "beit" else (32, 48):  # timm's BEiT takes its own size alone
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


# ---- the authors' layouts, and this package's own ------------------------------------------------------------------

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


# ---- what does not fit --------------------------------------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format 'timm_biet', did you mean 'timm_beit'"):
        export_weights(tiny_vit(), "timm_biet")
    with pytest.raises(ValueError, match="unknown architecture 'CLIPModel', did you mean 'CLIPVisionModel'"):
        save_pretrained(tiny_vit(), tmp_path, "CLIPModel")  # a whole model: its text tower is not here
    assert list(tmp_path.iterdir()) == []


def test_every_parameter_without_a_place_is_named() -> None:
    with pytest.raises(ConversionError) as caught:
        export_weights(tiny_vit(num_registers=2, layer_scale=True), "ViTModel")
    for name in ("reg_token", "blocks.0.ls1.gamma", "blocks.2.ls2.gamma"):
        assert f"{name}: the format has no place for it" in str(caught.value)
    with pytest.raises(ConversionError, match=r"head.weight: the format has no place"):
        export_weights(tiny_vit(), "ViTModel", {"head.weight": torch.zeros(2, 16)})
    with pytest.raises(ValueError, match=r"head has norm.weight; want names under head"):
        export_weights(tiny_vit(), "timm", {"norm.weight": torch.zeros(16)})
    with pytest.raises(ConversionError, match="cannot be computed from the model's parameters alone"):
        export_weights(tiny_vit(), "flax")


def test_positions_of_a_rectangle_do_not_become_a_square() -> None:
    backbone = tiny_vit(image_size=(16, 64), **{**SAM, "cls": False, "final_norm": False})  # 2 x 8 patches: as many
    with pytest.raises(ConversionError, match="timm_sam has a square of positions, the model 2 x 8"):
        export_weights(backbone, "timm_sam")


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("ViTModel", {"stem": ((8, 2), (8, 4))}, r"config.stem=\(\(8, 2\), \(8, 4\)\), where it has \(\)"),
        ("ViTModel", {"num_registers": 2}, "config.num_registers=2, where it has 0"),
        ("ViTModel", {"image_size": (32, 64)}, "config.resampling=.*as_square='never'.*, where it has .*'elsewhere'"),
        ("ViTModel", {"qkv_bias": "qv"}, "config.qkv_bias='qv', where it has 'qkv'"),
        ("ViTModel", {"pool": "mean"}, "config.pool='mean', where it has 'cls'"),
        ("Dinov2Model", {"layer_scale": True, "mlp_dim": 40}, "config.mlp_dim=40, where it has 32"),
        ("Dinov2Model", {}, "config.layer_scale=False, where it has True"),
        ("BeitModel", {"mlp": "quick_gelu"}, "config.qkv_bias='qkv', where it has 'qv'"),
        ("DINOv3ViTModel", {"layer_scale": True}, "config.rotary=None, where it has Rotary"),
        (
            "DINOv3ViTModel",
            {"layer_scale": True, "position": "none", "rotary": Rotary(100.0, "centred", "halves", bfloat16=True)},
            "config.rotary=.*bfloat16=True.*, where it has .*bfloat16=False",
        ),
        ("CLIPVisionModel", {"pre_norm": True, "patch_bias": False, "projection_dim": 8}, "config.projection_dim=8"),
        (
            "ViTModel",
            {"resampling": Resampling(offset=0.1)},
            r"config.resampling=.*; load_backbone\(..., positions='hf'\)",
        ),
    ],
)
def test_a_setting_that_a_class_does_not_have_is_named(
    architecture: str, fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    backbone = tiny_vit(**fields)
    backbone.preprocess = VIT_EVAL
    with pytest.raises(ValueError, match=f"{architecture} cannot express this backbone:(\n.*)*{message}"):
        save_pretrained(backbone, tmp_path / "new", architecture)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_mode": "letterbox"}, "preprocess.crop_mode='letterbox', where it has 'center'"),
        ({"crop_mode": "center", "crop_rounding": "even"}, "preprocess.crop_rounding='even'.*crop_rounding='down'"),
    ],
)
def test_preprocessing_that_no_processor_does_is_named(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    backbone = tiny_vit()
    backbone.preprocess = replace(VIT_EVAL, **fields)
    with pytest.raises(ValueError, match=message):
        save_pretrained(backbone, tmp_path, "ViTModel")


@pytest.mark.parametrize(
    ("architecture", "head", "labels", "message"),
    [
        ("ViTForImageClassification", (), (), "has head.bias, head.weight; got none"),
        ("ViTModel", ("head.weight", "head.bias"), (), "has no classifier; got head.bias, head.weight"),
        ("ViTForImageClassification", ("head.weight", "head.bias"), ("ant",), "1 labels for 3 classes"),
        ("ViTModel", (), ("ant",), "1 labels for no classifier"),
    ],
)
def test_a_head_and_labels_that_do_not_go_with_the_class_are_refused(
    architecture: str, head: tuple[str, ...], labels: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    backbone = tiny_vit()
    backbone.preprocess = VIT_EVAL
    with pytest.raises(ValueError, match=message):
        save_pretrained(backbone, tmp_path, architecture, {name: torch.zeros(3) for name in head}, labels)


@pytest.mark.parametrize("moment", ["vitbackbone.checkpoints.export.save_file", "pathlib.Path.chmod"])
def test_an_interrupted_call_leaves_a_directory_as_it_was(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    first, second = tiny_vit(), tiny_vit(depth=1)
    first.preprocess = second.preprocess = VIT_EVAL
    save_pretrained(first, tmp_path, "ViTModel")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(moment, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_pretrained(second, tmp_path, "ViTModel")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_pretrained(second, tmp_path, "ViTModel")
    assert load_backbone(tmp_path).config.depth == 1
    assert set(before) == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_the_file_says_that_it_is_of_torch(tmp_path: Path) -> None:
    """transformers 4 refuses one that does not; 5 no longer looks."""
    backbone = tiny_vit()
    backbone.preprocess = VIT_EVAL
    save_pretrained(backbone, tmp_path, "ViTModel")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
