"""Other channels and sizes of encoders in the adapter over transformers, and encoders found by the later rules."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.coverage.tiny_configs import _merged, tiny
from benchmarks.coverage.transformers import classes, randomised, tiny_model
from tests.backbones import images
from tests.helpers import randomise, relative_error
from vitbackbone import load_backbone
from vitbackbone.checkpoints import ConversionError

TOLERANCE = 1e-5
SLOW = pytest.mark.slow


def saved(model_type: str, folder: Path) -> Any:
    model = tiny_model(model_type)
    model.save_pretrained(folder)
    return model


def inflated(kernel: Tensor, channels: int, axis: int = 1) -> Tensor:
    """timm's rule, written again: one channel is the sum, n channels repeat the kernels."""
    planes = kernel.unbind(axis)
    if channels == 1:
        return torch.stack([planes[0] + planes[1] + planes[2]], axis)
    return torch.stack([planes[i % 3] * 3 / channels for i in range(channels)], axis)


@pytest.mark.parametrize(
    ("model_type", "channels"),
    [
        ("regnet", 4),
        pytest.param("regnet", 1, marks=pytest.mark.slow),
        *(pytest.param("segformer", n, marks=pytest.mark.slow) for n in (1, 2, 4, 13)),
        *(pytest.param("cvt", n, marks=pytest.mark.slow) for n in (2, 5)),
    ],
)
def test_channels_are_inflated_by_timms_rule(model_type: str, channels: int, tmp_path: Path) -> None:
    """The features equal a model that is built for these channels, with the kernel of the rule."""
    model = saved(model_type, tmp_path)
    backbone = load_backbone(tmp_path, in_chans=channels)
    assert backbone.spec.in_chans == channels
    assert len(backbone.preprocess.mean) == channels
    wide = type(model)(type(model.config)(**{**model.config.to_dict(), "num_channels": channels})).eval()
    state = model.state_dict()
    name = next(key for key, value in state.items() if value.ndim == 4 and value.shape[1] == 3)
    wide.load_state_dict({**state, name: inflated(state[name], channels)})
    x = images(2, channels, *backbone.spec.image_size)
    with torch.no_grad():
        assert relative_error(backbone(x).patches, wide(x).last_hidden_state) < TOLERANCE


def test_a_linear_layer_of_patches_takes_other_channels(tmp_path: Path) -> None:
    model = saved("fuyu", tmp_path)
    backbone = load_backbone(tmp_path, in_chans=4)
    weight, bias = model.vision_embed_tokens.weight, model.vision_embed_tokens.bias
    side = model.config.patch_size
    x = images(1, 4, side, 2 * side)
    kernel = inflated(weight.view(-1, side * side, 3), 4, axis=2)
    with torch.no_grad():
        patches = x[0].unfold(2, side, side).permute(2, 1, 3, 0)  # (w, y, x, C)
        want = torch.einsum("wyxc,dyxc->dw", patches, kernel.view(-1, side, side, 4)) + bias[:, None]
        assert relative_error(backbone(x).patches[0, :, 0], want) < TOLERANCE


def test_kernels_of_other_channels_load_as_they_are(tmp_path: Path) -> None:
    config = transformers.RegNetConfig(
        num_channels=5, embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], groups_width=8
    )
    model = randomise(transformers.RegNetModel(config)).eval()
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    x = images(1, 5, 64, 96)
    with torch.no_grad():
        assert relative_error(backbone(x).patches, model(x).last_hidden_state) < TOLERANCE
    assert backbone.preprocess.channels == 5
    with pytest.raises(ValueError, match="trained on 5 bands"):
        load_backbone(tmp_path, in_chans=3)


def test_patches_that_a_processor_packs_keep_their_channels(tmp_path: Path) -> None:
    saved("glm4v", tmp_path)
    with pytest.raises(ValueError, match="in_chans=4"):
        load_backbone(tmp_path, in_chans=4)


@pytest.mark.parametrize("size", [(96, 128), pytest.param((96, 96), marks=pytest.mark.slow)])
def test_positions_are_resampled_to_another_image_size(size: tuple[int, int], tmp_path: Path) -> None:
    """BLIP's table has CLS first. Its own rule is bicubic, without antialiasing."""
    model = saved("blip_vision_model", tmp_path)
    patch, (side, _) = model.config.patch_size, load_backbone(tmp_path).spec.image_size
    backbone = load_backbone(tmp_path, image_size=size)
    assert backbone.spec.image_size == size
    assert backbone.preprocess.image_size == size
    table = model.embeddings.position_embedding[0]
    old = table[1:].T.reshape(1, -1, side // patch, side // patch)
    grid = size[0] // patch, size[1] // patch
    new = F.interpolate(old, grid, mode="bicubic", align_corners=False).flatten(2)[0].T
    x = images(1, 3, *size)
    with torch.no_grad():
        cls = model.embeddings.class_embedding
        patches = model.embeddings.patch_embedding(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([cls, patches], 1) + torch.cat([table[:1], new])
        want = model.post_layernorm(model.encoder(inputs_embeds=tokens).last_hidden_state)
        got = backbone(x)
    assert relative_error(got.tokens, want[:, 1:]) < TOLERANCE
    assert relative_error(got.cls, want[:, 0]) < TOLERANCE


@pytest.mark.parametrize(
    ("model_type", "options", "tower"),
    [
        ("blip_vision_model", {"image_size": 40}, ""),
        pytest.param(
            "idefics", {"vision_config": {"image_size": 60, "hidden_act": "relu"}}, "vision_model", marks=SLOW
        ),
        pytest.param("focalnet", {"image_size": 68, "patch_size": 12}, "", marks=SLOW),
    ],
)
def test_patches_need_not_divide_an_image(model_type: str, options: dict[str, Any], tower: str, tmp_path: Path) -> None:
    """Most encoders drop the rest of an image. FocalNet's last patch holds more than the whole image."""
    kind = CONFIG_MAPPING[model_type]
    model = randomised(classes(model_type)[0](kind.from_dict(_merged(tiny(kind).to_dict(), options))))
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    encoder: Any = model.get_submodule(tower)
    side = (options.get("vision_config") or options)["image_size"]
    x = images(2, 3, side, side)
    height, width = backbone.spec.image_size
    with torch.no_grad():
        got, want = backbone(x[:, :, :height, :width]), encoder(x).last_hidden_state
    assert relative_error(got.tokens, want[:, -got.tokens.shape[1] :]) < TOLERANCE


@pytest.mark.parametrize("model_type", ["paddleocr_vl_vision", pytest.param("minicpmv4_6_vision", marks=SLOW)])
def test_a_grid_that_the_merger_behind_does_not_divide_is_not_padded(model_type: str, tmp_path: Path) -> None:
    model = saved(model_type, tmp_path)
    backbone: Any = load_backbone(tmp_path)
    patch = backbone.spec.stride
    assert backbone.sizes.multiple == patch
    x = images(1, 3, 3 * patch, 5 * patch)
    with torch.no_grad():
        want = model(**backbone.encoder.feed(x)).last_hidden_state
        got = backbone(x).tokens
    assert relative_error(got.flatten(), want.flatten()) < TOLERANCE


def test_positions_of_the_size_that_is_asked_for_are_kept(tmp_path: Path) -> None:
    """The file has positions for the size of the option, and the config names another size."""
    model = saved("blip_vision_model", tmp_path)
    own = load_backbone(tmp_path).spec.image_size
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "image_size": 160}))
    with pytest.raises(ConversionError, match="another shape"):
        load_backbone(tmp_path)
    backbone = load_backbone(tmp_path, image_size=own)
    x = images(1, 3, *own)
    with torch.no_grad():
        want = model(x).last_hidden_state
    assert relative_error(backbone(x).tokens, want[:, 1:]) < TOLERANCE


# ---- encoders that no rule of a name finds --------------------------------------------------------------------------


def test_a_model_of_text_and_pixels_runs_on_pixels_alone(tmp_path: Path) -> None:
    model = saved("layoutlmv3", tmp_path)
    backbone = load_backbone(tmp_path)
    x = images(2, 3, *backbone.spec.image_size)
    with torch.no_grad():
        want = model(pixel_values=x).last_hidden_state
        got = backbone(x)
    assert relative_error(got.cls, want[:, 0]) < TOLERANCE
    assert relative_error(got.tokens, want[:, 1:]) < TOLERANCE


def test_an_encoder_that_groups_its_patches_ends_before_the_first_grouping(tmp_path: Path) -> None:
    model = saved("groupvit_vision_model", tmp_path)
    backbone = load_backbone(tmp_path)
    x = images(2, 3, *backbone.spec.image_size)
    kept: list[Tensor] = []
    stage = model.vision_model.encoder.stages[0]
    stage.layers[-1].register_forward_hook(lambda _module, _given, out: kept.append(out))
    with torch.no_grad():
        want = model(x).pooler_output
        got = backbone(x)
    h, w = got.grid
    assert relative_error(got.tokens, kept[0][:, : h * w]) < TOLERANCE
    assert relative_error(got.registers, kept[0][:, h * w :]) < TOLERANCE
    assert relative_error(got.pooled, want) < TOLERANCE


@pytest.mark.slow
def test_queries_beside_the_patches_are_no_map(tmp_path: Path) -> None:
    """DeepSeek-OCR 2 returns learned queries. Its SAM encoder, which has a map, is taken instead."""
    model = saved("deepseek_ocr2", tmp_path)
    backbone = load_backbone(tmp_path)
    x = images(1, 3, 128, 128)
    with torch.no_grad():
        want = model.vision_tower.sam_encoder(x).last_hidden_state
        assert relative_error(backbone(x).patches, want) < TOLERANCE


@pytest.mark.slow
def test_an_autoencoder_gives_way_to_its_encoder(tmp_path: Path) -> None:
    model = saved("janus_vqgan", tmp_path)
    backbone = load_backbone(tmp_path)
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(backbone(x).patches, model.encoder(x)) < TOLERANCE


@pytest.mark.parametrize(
    "model_type", ["vilt", "udop", pytest.param("perceiver", marks=pytest.mark.slow), "pp_lcnet_v4"]
)
def test_a_model_without_a_map_says_why(model_type: str, tmp_path: Path) -> None:
    saved(model_type, tmp_path)
    with pytest.raises(ValueError, match=r"pixels alone|only pixels|only square patches"):
        load_backbone(tmp_path)
