"""Weights that were trained at another size than the name's: kept with `image_size=`, or resampled with a line."""

import logging
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from tests.checkpoints.sampling import covering
from tests.helpers import photo, randomise, relative_error
from vitbackbone import load_backbone, load_checkpoint
from vitbackbone.checkpoints import ConversionError

LIMIT = 1e-5
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
NAME = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def save(directory: Path, size: tuple[int, int], architecture: str = "vit_tiny_patch16_224") -> torch.nn.Module:
    with torch.inference_mode(False):
        model = randomise(timm.create_model(architecture, num_classes=0, img_size=size))
    save_file(model.state_dict(), directory / "tuned.safetensors")
    return model


@pytest.mark.parametrize("given", [96, (96, 96)])
def test_positions_of_the_weights_size_are_kept(given: int | tuple[int, int], tmp_path: Path) -> None:
    model = save(tmp_path, (96, 96))
    backbone = load_backbone(NAME, weights=tmp_path / "tuned.safetensors", image_size=given)
    x = torch.randn(1, 3, 96, 96)
    assert relative_error(backbone(x).cls, model.forward_features(x)[:, 0]) < LIMIT
    assert backbone.spec.image_size == backbone.preprocess.image_size == (96, 96)
    assert backbone.preprocess(photo(120, 100)).shape == (3, 96, 96)


def test_positions_of_a_size_that_is_no_square_are_kept(tmp_path: Path) -> None:
    model = save(tmp_path, (64, 160))
    backbone = load_backbone(NAME, weights=tmp_path / "tuned.safetensors", image_size=(64, 160))
    x = torch.randn(1, 3, 64, 160)
    assert relative_error(backbone(x).tokens, model.forward_features(x)[:, 1:]) < LIMIT
    with pytest.raises(ConversionError, match=r"40 positions in the checkpoint, 14 x 14 in the model; .*image_size="):
        load_backbone(NAME, weights=tmp_path / "tuned.safetensors")


@pytest.mark.parametrize("size", [None, 160, (112, 192)])
def test_positions_are_resampled_as_timm_does(
    size: int | tuple[int, int] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, (96, 96))
    file = tmp_path / "tuned.safetensors"
    overlay = {"file": str(file), "num_classes": 0}
    options = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 0}
    theirs = timm.create_model(NAME, **options, **({} if size is None else {"img_size": size})).eval()
    with caplog.at_level(logging.INFO, "vitbackbone"):
        backbone = load_backbone(NAME, weights=file, image_size=size)
    height, width = backbone.spec.image_size
    x = torch.randn(1, 3, height, width)
    assert relative_error(backbone(x).tokens, theirs.forward_features(x)[:, 1:]) < LIMIT
    (text,) = [record.getMessage() for record in caplog.records]
    assert f"resampled the positions, trained at 96 x 96 pixels, to {height} x {width}" in text


def test_published_weights_are_resampled_to_another_size() -> None:
    """The name's own file, for a network at another size: once at load, and equal to what each forward would do."""
    native, larger = load_backbone("nano"), load_backbone("nano", image_size=48)
    x = torch.randn(1, 3, 48, 48)
    assert relative_error(larger(x).tokens, native(x).tokens) < LIMIT
    assert larger.preprocess.image_size == (48, 48)


BEIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 8}


@pytest.mark.parametrize("kind", ["table", "shared", "decomposed"])
def test_relative_positions_are_resampled(kind: str, tmp_path: Path) -> None:
    if kind == "decomposed":
        config = transformers.SamVisionConfig(
            **BEIT,
            image_size=32,
            window_size=2,
            global_attn_indexes=[1],
            output_channels=16,
            mlp_dim=48,
            num_pos_feats=8,
        )
        make = transformers.SamVisionModel
    else:
        shared = (
            {"use_shared_relative_position_bias": True} if kind == "shared" else {"use_relative_position_bias": True}
        )
        config, make = transformers.BeitConfig(**BEIT, image_size=32, **shared), transformers.BeitModel
    with torch.inference_mode(False):
        randomise(make(config)).save_pretrained(tmp_path)
    native, larger = load_backbone(tmp_path), load_backbone(tmp_path, image_size=(48, 48))
    x = torch.randn(1, 3, 48, 48)
    assert larger.spec.image_size == (48, 48)
    assert relative_error(larger(x).tokens, native(x).tokens) < LIMIT


@pytest.mark.parametrize("size", [pytest.param(64, marks=pytest.mark.slow), (48, 32)])
def test_a_vit_det_of_another_size(
    size: int | tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The table of positions comes from pretraining and stays; the biases of rows and columns belong to the new
    size."""
    windows = {"pretrain_image_size": 32, "window_size": 3, "window_block_indices": [0], "mlp_ratio": 2}
    config = transformers.VitDetConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        **{**windows, "use_relative_position_embeddings": True},
    )
    with torch.inference_mode(False):
        model = randomise(transformers.VitDetModel(config))
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "vitbackbone"):
        backbone = load_backbone(tmp_path, image_size=size)
    assert "resampled the positions, trained at 32 x 32 pixels" in caplog.text
    x = torch.randn(1, 3, *backbone.spec.image_size)
    assert relative_error(backbone(x).patches, model(x).last_hidden_state) < LIMIT


def test_a_directory_of_another_size_than_its_settings(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**BEIT, image_size=48)
    with torch.inference_mode(False):
        model = randomise(transformers.ViTModel(config, add_pooling_layer=False))
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"image_size": 48', '"image_size": 32')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConversionError, match=r"32 x 32 in the settings, .* 48 x 48; load with image_size=\(48, 48\)"):
        load_backbone(tmp_path)
    x = torch.randn(1, 3, 48, 48)
    got = load_backbone(tmp_path, image_size=48)(x).tokens
    assert relative_error(got, model(x).last_hidden_state[:, 1:]) < LIMIT


@pytest.mark.parametrize("size", [0, -16, 100, (96, 0)])
def test_a_size_that_cannot_be_is_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="image_size="):
        load_backbone(NAME, "random", image_size=size)


def test_the_adapter_takes_a_size() -> None:
    backbone = load_backbone("timm:resnet18", "random", image_size=64)
    assert backbone.spec.image_size == backbone.preprocess.image_size == (64, 64)


# ---- dtype and device ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "name"), covering([torch.bfloat16, "float16", "torch.float64"], ["nano"]))
def test_the_parameters_have_the_dtype_asked_for(dtype: object, name: str) -> None:
    backbone = load_backbone(name, dtype=dtype)
    want = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.removeprefix("torch."))
    assert {p.dtype for p in backbone.parameters()} == {want}
    assert backbone(torch.randn(1, 3, 32, 32)).patches.dtype == want


def test_the_head_goes_along(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    checkpoint = load_checkpoint(NAME, tmp_path / "a.safetensors", dtype="bfloat16", device="meta")
    tensors = [*checkpoint.backbone.parameters(), *checkpoint.head.values()]
    assert {(t.dtype, t.device.type) for t in tensors} == {(torch.bfloat16, "meta")}


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype=int8; want one of float32"):
        load_backbone("nano", dtype="int8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hiera_tiny_224", "convit_tiny", "levit_128s"])
def test_a_network_that_is_built_for_each_size_keeps_the_positions_of_its_weights(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.inference_mode(False):
        model = randomise(timm.create_model(name, num_classes=0))
    save_file({key: each.contiguous() for key, each in model.state_dict().items()}, tmp_path / "w.safetensors")
    native = load_backbone(f"timm:{name}", weights=tmp_path / "w.safetensors")
    backbone = load_backbone(f"timm:{name}", weights=tmp_path / "w.safetensors", image_size=(96, 128))
    assert backbone.spec.image_size == backbone.preprocess.image_size == (96, 128)
    x = torch.randn(1, 3, 96, 128)
    assert relative_error(backbone(x).pooled, native(x).pooled) < LIMIT
    assert name == "convit_tiny" or "trained at 224 x 224 pixels; images of 96 x 128 resample them" in caplog.text


def test_a_table_that_no_rule_resamples_is_named(tmp_path: Path) -> None:
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2}
    settings = {**tower, "intermediate_size": 48, "image_size": 32, "patch_size": 8, "intermediate_layers_indices": [1]}
    with torch.inference_mode(False):
        config = transformers.MllamaVisionConfig(**settings, vision_output_dim=64)
        randomise(transformers.MllamaVisionModel(config)).save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match=r"tile_positions is .* for this image_size, and no rule resamples it"):
        load_backbone(tmp_path, image_size=(32, 64))
