"""Swin and Swin V2 at every size: equal to transformers, and to timm where its masks are right."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2Model,
)

from tests.helpers import randomise, relative_error
from tests.timm_networks import BACKBONES, CONFIGS, TOLERANCE, images
from vitbackbone import ConversionError
from vitbackbone.checkpoints.formats.swin import SWIN as SWIN_FORMATS
from vitbackbone.checkpoints.huggingface.swin import read_swin, read_swinv2
from vitbackbone.checkpoints.rules import convert
from vitbackbone.checkpoints.towers import find_prefixes, within
from vitbackbone.networks.timm.backbone import TimmBackbone, TimmConfig

HF = {
    "embed_dim": 24,
    "depths": [2, 2, 2],
    "num_heads": [2, 4, 4],
    "window_size": 4,
    "image_size": 64,
    "mlp_ratio": 3.0,
}
HF_MODELS = {
    "swin": (SwinConfig, SwinModel, read_swin),
    "swin without biases": (lambda **kw: SwinConfig(**kw, qkv_bias=False), SwinModel, read_swin),
    "swin classifier": (SwinConfig, SwinForImageClassification, read_swin),
    "swinv2": (Swinv2Config, Swinv2Model, read_swinv2),
    "swinv2 fine-tuned": (
        lambda **kw: Swinv2Config(**{**kw, "window_size": 8}, pretrained_window_sizes=[6, 6, 3]), Swinv2Model,
        read_swinv2,
    ),
    "swinv2 classifier": (Swinv2Config, Swinv2ForImageClassification, read_swinv2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def from_hugging_face(name: str, directory: Path) -> tuple[torch.nn.Module, TimmBackbone]:
    make_config, make_model, read = HF_MODELS[name]
    with torch.inference_mode(False):
        model = randomise(make_model(make_config(**HF)))
        model.save_pretrained(directory)
        backbone = TimmBackbone(read(model.config.to_dict()), name=name)
    state = load_file(directory / "model.safetensors")
    rules = SWIN_FORMATS[f"hf_{name.split()[0]}"]
    (prefix,) = find_prefixes(state, rules)
    parameters = convert(within(state, prefix, rules), rules, backbone.state_dict())
    parameters = {key: value for key, value in parameters.items() if not key.startswith("head.")}
    backbone.load_state_dict(parameters, assign=True)
    return model, backbone.eval()


@pytest.mark.parametrize("name", HF_MODELS)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    oracle, backbone = from_hugging_face(name, tmp_path)
    saved = {key: value.clone() for key, value in oracle.state_dict().items()}
    for size in [(64, 64), (96, 96), (128, 64), (160, 96), (150, 71), (100, 68), (87, 129)]:
        model = type(oracle)(oracle.config).eval()  # a Swin of transformers forgets to shift once it saw a small map
        model.load_state_dict(saved)
        x = images(2, 3, *size)
        theirs = model(x, output_hidden_states=True)
        *stages, last = backbone.forward_layers(x, [0, 1, 2], norm=False)
        for stage, expected in zip(stages, theirs.reshaped_hidden_states[1:3], strict=True):
            # transformers returns a stage after the downsampling that ends it, which is timm's next stage's
            layer = backbone.model.layers[stages.index(stage) + 1]
            down = layer.downsample(stage.patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            assert relative_error(down, expected) < TOLERANCE
        assert relative_error(last.patches, theirs.reshaped_hidden_states[3]) < TOLERANCE
        body = getattr(model, model.base_model_prefix, model)
        expected = body(x)
        assert relative_error(backbone(x).tokens, expected.last_hidden_state) < TOLERANCE
        assert relative_error(backbone(x).pooled, expected.pooler_output) < TOLERANCE


def test_swin_takes_maps_smaller_than_its_window(tmp_path: Path) -> None:
    """transformers fails there. Such a map is one window, filled up with zeros, and not shifted."""
    _, backbone = from_hugging_face("swin", tmp_path)
    block = backbone.model.layers[2].blocks[1]
    for height, width in [(2, 3), (1, 1), (3, 4)]:
        x = images(2, height, width, 96)
        window = F.pad(x, (0, 0, 0, 4 - width, 0, 4 - height)).flatten(1, 2)
        alone = block.attn(window).view(2, 4, 4, 96)[:, :height, :width]
        assert relative_error(block.attend(x), alone) < TOLERANCE
    assert [block.shift(*size) for size in [(4, 9), (9, 4), (5, 9)]] == [(0, 0), (0, 0), (2, 2)]
    assert backbone(images(1, 3, 5, 9)).grid == (1, 1)


@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_windows_agree_with_timm_where_timms_mask_is_right(name: str) -> None:
    """Where the window divides every map, and every map is larger than it."""
    config = CONFIGS[name]
    windows = "sized" if name == "swin" else "fixed"
    right = TimmBackbone(TimmConfig(**{**vars(config), "windows": windows})).eval()
    right.load_state_dict(BACKBONES[name].state_dict())
    for size in [(64, 64), (96, 96), (128, 64), (160, 96)]:
        x = images(1, 3, *size)
        assert relative_error(right(x).patches, BACKBONES[name](x).patches) < TOLERANCE
    x = images(1, 3, 72, 72)  # 18 and 9 patches a side, windows of 4
    assert relative_error(right(x).patches, BACKBONES[name](x).patches) > 0.01


@pytest.mark.parametrize("name", ["swin sized", "swinv2 fixed"])
def test_opposite_borders_do_not_see_each_other(name: str) -> None:
    """One shifted block alone, on a map that the window does not divide: what changes at the top stays at the top."""
    block = BACKBONES[name].model.layers[0].blocks[1]
    x = images(1, 17, 17, 24)
    changed = x.clone()
    changed[:, :2] = images(1, 2, 17, 24, seed=1)
    moved = (block(changed) - block(x)).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert moved.tolist() == [True] * 2 + [False] * 15
    theirs = BACKBONES[name.split()[0]].model.layers[0].blocks[1]
    assert ((theirs(changed) - theirs(x)).abs().amax(dim=(0, 2, 3)) > 1e-6)[-2:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_padding_of_windows_is_finite_in_half_precision(dtype: torch.dtype) -> None:
    """On a map that the window does not divide, whole keys are zero vectors, if the network has no biases."""
    block = copy.deepcopy(BACKBONES["swinv2 fixed"].model.layers[0].blocks[1])
    for bias in (block.attn.q_bias, block.attn.v_bias):
        torch.nn.init.zeros_(bias)
    x = images(1, 17, 17, 24)
    with torch.inference_mode():
        want, got = block(x), block.to(dtype)(x.to(dtype)).float()
    assert got.isfinite().all()
    assert F.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.99


def test_a_swin_of_hugging_face_is_read_with_its_defaults() -> None:
    config = read_swin({"model_type": "swin", "depths": None})
    assert dict(config.arguments)["depths"] == (2, 2, 6, 2)
    assert (config.image_size, config.size_multiple, config.windows) == ((224, 224), 4, "sized")
    assert TimmBackbone(config).spec.dims == (96, 192, 384, 768)
    for wrong in (
        {"use_absolute_embeddings": True},
        {"hidden_act": "relu"},
        {"layer_norm_eps": 1e-6},
        {"num_channels": 1},
        {"patch_size": [4, 2]},
    ):
        with pytest.raises(ValueError, match=f"config.json has {next(iter(wrong))}="):
            read_swin(wrong)
    with pytest.raises(ValueError, match="want a square that 32 divides"):
        read_swinv2({"image_size": [256, 128]})
    assert dict(read_swinv2({}).arguments)["pretrained_window_sizes"] == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_what_older_files_hold_besides_is_dropped(name: str, tmp_path: Path) -> None:
    _, backbone = from_hugging_face(name, tmp_path)
    attention = "encoder.layers.1.blocks.0.attention.self"
    old = {
        "swin": [f"{attention}.relative_position_index"],
        "swinv2": [f"{attention}.relative_position_index", f"{attention}.relative_coords_table"],
    }[name]
    state = load_file(tmp_path / "model.safetensors")
    besides = {key: torch.zeros(1) for key in ["embeddings.mask_token", *old]}
    rules = SWIN_FORMATS[f"hf_{name}"]
    assert convert({**state, **besides}, rules, backbone.state_dict()).keys() == backbone.state_dict().keys()


def test_a_swin_whose_keys_are_not_all_there_is_refused(tmp_path: Path) -> None:
    with torch.inference_mode(False):
        model = SwinModel(SwinConfig(**HF))
        model.save_pretrained(tmp_path)
        backbone = TimmBackbone(read_swin(model.config.to_dict()))
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layers.1.blocks.0.attention.self.key.bias"]
    with pytest.raises(ConversionError, match="layers.1.blocks.0.attention.self.key.bias: missing"):
        convert(state, SWIN_FORMATS["hf_swin"], backbone.state_dict())
