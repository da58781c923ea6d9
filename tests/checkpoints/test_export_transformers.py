"""Weights written for transformers: its classes run them, and they come back the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.checkpoints.exported import LIMIT, assert_same, from_timm, images, timm_model
from tests.checkpoints.sampling import covering, first_of_each
from tests.helpers import TINY, photo, randomise, relative_error, tiny_vit
from vitbackbone import (
    Preprocess,
    Resampling,
    ViT,
    ViTConfig,
    export_weights,
    load_backbone,
    load_checkpoint,
    save_pretrained,
)
from vitbackbone.checkpoints.huggingface import CLASSES, DEIT_EVAL, DINOV2_EVAL, PLAIN, VIT_EVAL, write_config
from vitbackbone.model.config import Rotary

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
    for side in (32,) if case == "sam" else (32, 48):  # transformers' SAM takes only its own size
        want, got = hf_outputs(model, side), hf_outputs(written, side)
        assert want.keys() == got.keys()
        for key in want:
            if key == POOLER and model.config.model_type in ("vit", "deit"):
                assert not got[key].any()  # the tanh layer on CLS is not part of the backbone
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
