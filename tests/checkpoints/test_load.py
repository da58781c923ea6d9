"""From a name to a backbone: sources, errors that say what to do, nothing unpickled."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vitbackbone.checkpoints.resolve
from tests.checkpoints.names import SMALL, edit
from tests.checkpoints.sampling import covering
from tests.helpers import photo, randomise, relative_error
from vitbackbone import (
    ConversionError,
    load_backbone,
    load_checkpoint,
)
from vitbackbone.checkpoints.load import find_entry
from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.networks.fused import FusedConfig


def test_random_weights_need_no_network_and_run() -> None:
    backbone = load_backbone(SMALL, weights="random")
    assert not backbone.training
    assert backbone.spec.name == SMALL
    assert backbone(torch.randn(1, 3, 32, 48)).cls.shape == (1, 192)
    assert backbone.preprocess == ZOO[SMALL].preprocess


@pytest.mark.parametrize(
    ("name", "positions"),
    covering(
        ["vit_small_patch16_224.dino", "dinov2_vits14", "hf:facebook/dinov2-with-registers-small"],
        ["native", "timm", "hf"],
    ),
)
def test_the_resampling_policy_is_chosen_at_load(name: str, positions: str) -> None:
    config = load_backbone(name, weights="random", positions=positions).config
    assert config == ZOO[name].at_other_sizes(positions)


@pytest.mark.parametrize(
    "name",
    covering(
        ["swin_tiny_patch4_window7_224.ms_in1k", "timm:resnet18.a1_in1k", "timm:test_vit"],
        quick=["timm:resnet18.a1_in1k", "timm:test_vit"],
    ),
)
def test_other_models_of_timm_come_through_the_adapter(name: str, tmp_path: Path) -> None:
    theirs = randomise(timm.create_model(name.removeprefix("timm:").split(".")[0], pretrained=False))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(name, weights=tmp_path / "model.safetensors", positions="timm")
    size = checkpoint.backbone.spec.image_size
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        pooled = checkpoint.backbone(x).pooled
        logits = pooled @ checkpoint.head["head.weight"].T + checkpoint.head["head.bias"]
        assert relative_error(logits, theirs(x)) < 1e-5
    assert checkpoint.backbone.preprocess.image_size == size
    state = load_file(tmp_path / "model.safetensors")
    key = next(key for key in state if key.endswith("weight") and not key.startswith("head"))
    save_file({k: v for k, v in state.items() if k != key}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=re.escape(key)):
        load_backbone(name, weights=tmp_path / "model.safetensors")


def test_a_revision_is_of_a_repository() -> None:
    for name in ("nano@main", "dino_vits16@main", "openvla@main"):
        with pytest.raises(ValueError, match="has no repository on the Hub, so no revision 'main'"):
            load_backbone(name, weights="random")
    assert load_backbone("timm:test_vit@main", weights="random").spec.depth > 0


def test_transformers_has_no_policy_for_every_network_of_timm() -> None:
    with pytest.raises(ValueError, match="transformers has none for resnet18"):
        load_backbone("timm:resnet18.a1_in1k", weights="random", positions="hf")


def test_positions_for_a_size_that_the_patch_does_not_divide(tmp_path: Path) -> None:
    """SigLIP at 384 pixels with patches of 14 has positions for 27 patches a side."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    settings = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64}
    theirs = randomise(SiglipVisionModel(SiglipVisionConfig(**settings, patch_size=14, image_size=64)))
    theirs.save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    ours = load_backbone(tmp_path)
    whole = replace(ours.preprocess, image_size=(64, 64), unseen=(0, 0))(photo(90, 70))
    with torch.inference_mode():
        want = theirs(pixel_values=whole[None]).last_hidden_state
        assert relative_error(ours(ours.preprocess(photo(90, 70))[None]).tokens, want) < 1e-5


def test_a_classifier_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = DeiTConfig(**settings, image_size=32, num_labels=3)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    heads = [key for key in state if "classifier" in key]
    for left_out in (heads[:1], [key for key in heads if key.startswith("distillation")]):
        save_file({k: v for k, v in state.items() if k not in left_out}, tmp_path / "model.safetensors")
        with pytest.raises(ConversionError, match=left_out[0]):
            load_checkpoint(tmp_path)
    save_file({k: v for k, v in state.items() if k not in heads}, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path).head == {}
    save_file({**state, **{k: state[k][:2] for k in heads}}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="2 outputs of the classifier, 3 labels"):
        load_checkpoint(tmp_path)


def test_a_damaged_config_is_named(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match="config.json is not a complete JSON file"):
        load_backbone(directory)


def test_what_is_loaded_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        nano = load_backbone("nano")
    nano(torch.randn(1, 3, 32, 32)).pooled.sum().backward()


def test_what_a_swins_windows_do_at_other_sizes_is_chosen_at_load() -> None:
    entry = find_entry("swin_tiny_patch4_window7_224.ms_in1k")
    assert entry.at_other_sizes("native").windows == "sized"
    assert entry.at_other_sizes("timm").windows == "timm"


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "windows"), [("native", "sized"), ("timm", "timm")])
def test_a_swin_is_loaded_with_the_windows_chosen(positions: str, windows: str) -> None:
    name = "swin_tiny_patch4_window7_224.ms_in1k"
    assert load_backbone(name, "random", positions=positions).config.windows == windows


def test_a_directory_of_swin_is_read(tmp_path: Path) -> None:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=64)
    theirs = randomise(SwinModel(config))
    theirs.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    x = torch.randn(2, 3, 96, 72)
    with torch.inference_mode():
        assert relative_error(backbone(x).tokens, theirs(x).last_hidden_state) < 1e-5
        assert relative_error(backbone(x).pooled, theirs(x).pooler_output) < 1e-5
    assert backbone.spec.strides == (4, 8)


@pytest.mark.slow  # the split of the file has quick tests of its own
def test_openvla_takes_its_own_file_and_its_members_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The large members are replaced by small ones."""
    small = ("vit_small_patch14_reg4_dinov2.lvd142m", "vit_base_patch16_siglip_224.webli")
    members = tuple((name, -2, False) for name in small)
    entry = replace(ZOO["openvla"], config=FusedConfig(members, (224, 224)))
    monkeypatch.setitem(ZOO, "openvla", entry)
    models = [
        randomise(timm.create_model(small[0].split(".")[0], pretrained=False, img_size=224)),
        randomise(timm.create_model(small[1].split(".")[0], pretrained=False, img_size=224)),
    ]
    state = {}
    for part, model in zip(("featurizer", "fused_featurizer"), models, strict=True):
        for key, value in model.state_dict().items():
            of_vision = key.replace("ls1.gamma", "ls1.scale_factor").replace("ls2.gamma", "ls2.scale_factor")
            state[f"vision_backbone.{part}.{of_vision}"] = value
    save_file({**state, "projector.fc1.weight": torch.zeros(2)}, tmp_path / "openvla.safetensors")
    fused = load_backbone("openvla", weights=tmp_path / "openvla.safetensors")
    x = fused.preprocess(photo(240, 300))[None]
    with torch.inference_mode():
        got = fused(x)
        parts = [
            model.get_intermediate_layers(half, n={len(model.blocks) - 2}, reshape=True)[0]
            for model, half in zip(models, x.split(3, dim=1), strict=True)
        ]
    # The member with 14 pixels per patch has the finer grid.
    assert got.patches.shape == (1, 384 + 768, 16, 16)
    assert relative_error(got.patches[:, :384], parts[0]) < 1e-5
    assert load_backbone("openvla", weights="random").spec.dim == 384 + 768


@pytest.mark.slow
def test_openvla_is_dinov2_and_siglip() -> None:
    fused = load_backbone("openvla", weights="random")
    with torch.inference_mode():
        assert fused(torch.randn(1, 6, 224, 224)).patches.shape == (1, 2176, 16, 16)


def test_an_unknown_policy_is_refused() -> None:
    """In a process of its own, without the type checks of the tests, which would come first."""
    code = f"from vitbackbone import load_backbone; load_backbone({SMALL!r}, 'random', positions='jax')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "positions='jax'; want one of native, timm, hf" in result.stderr


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_small_patch14_dinov2.lvd142", "did you mean 'vit_small_patch14_dinov2.lvd142m'"),
        ("vit_small_patch14_dinov2", "'vit_small_patch14_dinov2.lvd142m' or 'timm:vit_small_patch14_dinov2'?"),
        ("fastvit_t8", "did you mean 'timm:fastvit_t8'?"),
        ("fastvit_t8.apple_in1k", "did you mean 'timm:fastvit_t8.apple_in1k'?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        load_backbone(name, weights="random")


# ---- Hugging Face directories -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "transformers' bert has no image encoder"),
        ({"hidden_act": "swash"}, "hidden_act='swash'; want one of gelu, gelu_pytorch_tanh"),
        ({"num_hidden_layers": 2}, "blocks: 2 in the settings, 1 in the weights"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(directory: Path, fields: dict[str, object], message: str) -> None:
    load_backbone(directory)
    edit(directory, **fields)
    with pytest.raises(ValueError, match=message):
        load_backbone(directory)


def test_a_directory_without_its_files_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        load_backbone(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        load_backbone(directory)


def test_a_folder_called_nano_is_not_mistaken_for_the_backbone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.rename(directory.parent / "nano")
    monkeypatch.chdir(directory.parent)
    assert find_entry("nano") is ZOO["nano"]
    assert find_entry("./nano").config.dim == 16


# ---- nano ---------------------------------------------------------------------------------------------------------


def test_nano_is_small_and_built_in() -> None:
    assert vitbackbone.checkpoints.resolve.NANO_FILE.stat().st_size < 6e6
    backbone = load_backbone("nano")
    assert isinstance(backbone, nn.Module)
    assert sum(p.numel() for p in backbone.parameters()) < 3e6
    assert {
        t.dtype for t in load_file(vitbackbone.checkpoints.resolve.NANO_FILE).values() if t.is_floating_point()
    } == {torch.float16}
