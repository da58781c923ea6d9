"""Every family equals its upstream on identical, fully randomised weights: native, another square, a non-square size.

The error is max |a - b| / max |b| in float32.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from heads.classification import checkpoint_head
from tests.helpers import randomise, relative_error
from vitbackbone import ViT, load_backbone, load_checkpoint
from vitbackbone.zoo import ZOO

LIMIT = 1e-5

Oracle = Callable[[Tensor], tuple[Tensor, Tensor]]  # images to (prefix tokens, patch tokens)


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def check(backbone: ViT, oracle: Oracle, sizes: list[tuple[int, int]]) -> None:
    for height, width in sizes:
        x = images(height, width)
        with torch.inference_mode():
            prefix, patches = oracle(x)
            features = backbone(x)
        assert relative_error(features.tokens, patches) <= LIMIT
        assert relative_error(torch.cat([features.cls[:, None], features.registers], dim=1), prefix) <= LIMIT


# ---- timm ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timm:
    name: str
    sizes: list[tuple[int, int]]


PATCH_16 = [(224, 224), (384, 384), (160, 352)]
PATCH_14 = [(518, 518), (224, 224), (168, 350)]

TIMM = [
    Timm("vit_tiny_patch16_224.augreg_in21k", PATCH_16),
    Timm("vit_small_patch32_224.augreg_in21k_ft_in1k", [(224, 224), (384, 384), (160, 352)]),
    Timm("vit_tiny_patch16_384.augreg_in21k_ft_in1k", [(384, 384), (224, 224), (160, 352)]),
    Timm("deit_tiny_patch16_224.fb_in1k", PATCH_16),
    Timm("deit_tiny_distilled_patch16_224.fb_in1k", PATCH_16),
    Timm("vit_small_patch16_224.dino", PATCH_16),
    Timm("vit_small_patch14_dinov2.lvd142m", PATCH_14),
    Timm("vit_small_patch14_reg4_dinov2.lvd142m", PATCH_14),
]


@functools.cache
def timm_model(name: str) -> nn.Module:
    return randomise(timm.create_model(name.split(".")[0], pretrained=False, dynamic_img_size=True))


def timm_oracle(model: nn.Module) -> Oracle:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = model.forward_features(x)
        return tokens[:, : model.num_prefix_tokens], tokens[:, model.num_prefix_tokens :]

    return run


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[nn.Module], Path]:
    def save(model: nn.Module) -> Path:
        path = tmp_path / "weights.pth"
        torch.save(model.state_dict(), path)
        return path

    return save


@pytest.mark.parametrize("case", TIMM, ids=lambda case: case.name)
def test_equals_timm(case: Timm, saved: Callable[[nn.Module], Path]) -> None:
    model = timm_model(case.name)
    backbone = load_backbone(case.name, weights=saved(model), positions="timm")
    check(backbone, timm_oracle(model), case.sizes)


def test_vit_b16_equals_timm_as_loaded_by_default(saved: Callable[[nn.Module], Path]) -> None:
    model = timm_model("vit_base_patch16_224.augreg_in21k")
    check(load_backbone("vit_base_patch16_224.augreg_in21k", weights=saved(model)), timm_oracle(model), PATCH_16)


@pytest.mark.parametrize("case", TIMM, ids=lambda case: case.name)
def test_intermediate_layers_equal_timm(case: Timm, saved: Callable[[nn.Module], Path]) -> None:
    model = timm_model(case.name)
    backbone = load_backbone(case.name, weights=saved(model), positions="timm")
    x = images(*case.sizes[-1])
    for norm in (False, True):
        with torch.inference_mode():
            theirs = model.get_intermediate_layers(x, n=[2, 5, 11], reshape=True, return_prefix_tokens=True, norm=norm)
            ours = backbone.forward_layers(x, [2, 5, 11], norm=norm)
        for (patches, prefix), features in zip(theirs, ours, strict=True):
            assert relative_error(features.patches, patches) <= LIMIT
            assert relative_error(features.cls, prefix[:, 0]) <= LIMIT


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224.augreg_in21k_ft_in1k", "deit_tiny_distilled_patch16_224.fb_in1k"]
)
def test_the_classifier_equals_timms(name: str, saved: Callable[[nn.Module], Path]) -> None:
    model = timm_model(name)
    checkpoint = load_checkpoint(name, weights=saved(model))
    x = images(224, 224)
    with torch.inference_mode():
        assert relative_error(checkpoint_head(checkpoint)(checkpoint.backbone(x)), model(x)) <= LIMIT


def test_indivisible_sizes_equal_timms_padding(saved: Callable[[nn.Module], Path]) -> None:
    model = randomise(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, dynamic_img_pad=True))
    backbone = load_backbone("vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights=saved(model))
    check(backbone, timm_oracle(model), [(230, 301), (17, 95)])


# ---- transformers -------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 8, "image_size": 64}
MLP = {"intermediate_size": 96}
HF_SIZES = [(64, 64), (96, 96), (40, 88)]

HF: dict[str, tuple[str, str, dict[str, object]]] = {  # case: (config class, model class, settings)
    "vit": ("ViTConfig", "ViTModel", MLP),
    "vit without qkv bias": ("ViTConfig", "ViTModel", {**MLP, "qkv_bias": False}),
    "vit classifier": ("ViTConfig", "ViTForImageClassification", {**MLP, "num_labels": 7}),
    "deit": ("DeiTConfig", "DeiTModel", MLP),
    "deit classifier": ("DeiTConfig", "DeiTForImageClassification", {**MLP, "num_labels": 7}),
    "deit teacher": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", {**MLP, "num_labels": 7}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {}),
    "dinov2 swiglu": ("Dinov2Config", "Dinov2Model", {"use_swiglu_ffn": True}),
    "dinov2 classifier": ("Dinov2Config", "Dinov2ForImageClassification", {"num_labels": 7}),
    "dinov2 registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {}),
    "dinov2 registers classifier": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        {"num_labels": 7},
    ),
}


def hf_model(case: str) -> transformers.PreTrainedModel:
    config_class, model_class, settings = HF[case]
    config = getattr(transformers, config_class)(**SMALL, **settings)
    return randomise(getattr(transformers, model_class)(config))


def hf_oracle(model: transformers.PreTrainedModel, num_prefix: int) -> Oracle:
    inner = model.base_model

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        options = {} if "dinov2" in model.config.model_type else {"interpolate_pos_encoding": True}
        tokens = inner(pixel_values=x, **options).last_hidden_state
        return tokens[:, :num_prefix], tokens[:, num_prefix:]

    return run


@pytest.mark.parametrize("case", HF)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    model = hf_model(case)
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    check(backbone, hf_oracle(model, backbone.spec.num_prefix), HF_SIZES)


@pytest.mark.parametrize("case", ["vit classifier", "deit teacher", "deit classifier"])
def test_the_classifier_and_its_labels_equal_transformers(case: str, tmp_path: Path) -> None:
    model = hf_model(case)
    model.config.id2label = {i: f"class {i}" for i in reversed(range(7))}
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    x = images(64, 64)
    with torch.inference_mode():
        logits = checkpoint_head(checkpoint)(checkpoint.backbone(x))
        assert relative_error(logits, model(pixel_values=x).logits) <= LIMIT
    assert checkpoint.labels == tuple(f"class {i}" for i in range(7))


@pytest.mark.parametrize("name", ["hf:google/vit-base-patch16-224"])
def test_a_zoo_entry_of_the_hub_takes_a_file(name: str, tmp_path: Path) -> None:
    """At full size, and equal to the same weights read as a directory."""
    config = transformers.ViTConfig(num_labels=1000)
    model = randomise(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path)
    by_name = load_backbone(name, weights=tmp_path / "model.safetensors")
    check(by_name, hf_oracle(model, 1), PATCH_16)
    assert load_backbone(tmp_path).config == by_name.config


def test_weights_in_shards_are_read_whole(tmp_path: Path) -> None:
    model = hf_model("dinov2")
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    check(load_backbone(tmp_path), hf_oracle(model, 1), HF_SIZES[:1])


# ---- the authors' DINOv2 ------------------------------------------------------------------------------------------


def to_dinov2_layout(state: dict[str, Tensor], registers: bool) -> dict[str, Tensor]:
    """timm's names back to those of the authors' file: with registers, timm has folded the position of CLS."""
    state = dict(state)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        cls_position = torch.randn(1, 1, state["cls_token"].shape[-1])
        state["cls_token"] = state["cls_token"] - cls_position
        state["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    return {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m"),
        ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m"),
    ],
)
def test_the_authors_file_equals_timms(name: str, timm_name: str, tmp_path: Path) -> None:
    model = timm_model(timm_name)
    torch.save(to_dinov2_layout(model.state_dict(), ZOO[name].config.num_registers > 0), tmp_path / "a.pth")
    backbone = load_backbone(name, weights=tmp_path / "a.pth", positions="timm")
    check(backbone, timm_oracle(model), PATCH_14[-1:])


def test_swiglu_of_the_authors_file_equals_transformers(tmp_path: Path) -> None:
    """DINOv2 giant stacks gate and value as `w12`; a small model of its kind stands for it."""
    from vitbackbone.convert import convert
    from vitbackbone.formats import FORMATS

    model = hf_model("dinov2 swiglu")
    model.save_pretrained(tmp_path)
    read = load_backbone(tmp_path)
    state = read.state_dict()
    theirs = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in state.items()}
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), theirs.pop("pos_embed.table")[None]], dim=1)
    vit = ViT(read.config)
    vit.load_state_dict(convert(theirs, FORMATS["dinov2"], vit.state_dict()))
    check(vit.eval(), hf_oracle(model, 1), HF_SIZES)


# ---- resampling policies ------------------------------------------------------------------------------------------


def test_dinov2_runs_by_default_as_its_authors_do(saved: Callable[[nn.Module], Path]) -> None:
    """The oracle is timm at 224 px, its table resampled beforehand by the lines of the authors' hub code."""
    name = "vit_small_patch14_dinov2.lvd142m"
    model = timm_model(name)
    backbone = load_backbone(name, weights=saved(model))
    at_224 = timm.create_model(name.split(".")[0], pretrained=False, img_size=224)
    state = model.state_dict()
    table = state["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    factor = (float(16 + 0.1) / 37, float(16 + 0.1) / 37)
    table = nn.functional.interpolate(table, scale_factor=factor, mode="bicubic", antialias=False)
    positions = torch.cat([state["pos_embed"][:, :1], table.permute(0, 2, 3, 1).reshape(1, 256, -1)], dim=1)
    at_224.load_state_dict({**state, "pos_embed": positions})
    check(backbone, timm_oracle(at_224.eval()), [(224, 224)])


@pytest.mark.parametrize("positions", ["native", "hf"])
def test_policies_of_dinov2_differ_as_their_upstreams_do(positions: str, saved: Callable[[nn.Module], Path]) -> None:
    """`native` and `hf` are checked by their formula in test_position; here, that loading chooses them."""
    model = timm_model("vit_small_patch14_dinov2.lvd142m")
    name = "vit_small_patch14_dinov2.lvd142m"
    backbone = load_backbone(name, weights=saved(model), positions=positions)
    assert backbone.config.resampling == ZOO[name].policies[positions]
    with torch.inference_mode():
        features, theirs = backbone(images(224, 224)), model.forward_features(images(224, 224))[:, 1:]
    assert relative_error(features.tokens, theirs) > 1e-3
    check(backbone, timm_oracle(model), [(518, 518)])
