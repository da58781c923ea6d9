"""Backbone classes of transformers: the features of a directory that one saved are the maps that the class returns."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from tests.checkpoints.composites import DEEP, DINO, HIERA, SWIN
from tests.helpers import cases, randomise, relative_error
from vitbackbone import load_backbone
from vitbackbone.checkpoints.huggingface import MODEL_TYPES
from vitbackbone.checkpoints.huggingface.backbone_classes import ADAPTED, NORMS
from vitbackbone.model import ViT

LIMIT = 1e-5
BEIT = {**DEEP, "patch_size": 16, "image_size": 64, "use_relative_position_bias": True}
WINDOWS = {"pretrain_image_size": 32, "window_size": 3, "use_relative_position_embeddings": True}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 64}

MODELS: dict[str, Callable[..., Any]] = {
    "dinov2": lambda **maps: hf.Dinov2Config(**DINO, **maps),
    "dinov2 registers": lambda **maps: hf.Dinov2WithRegistersConfig(**DINO, **maps),
    "tipsv2": lambda **maps: hf.Tipsv2VisionConfig(**DINO, **maps),
    "dinov3": lambda **maps: hf.DINOv3ViTConfig(**DEEP, num_register_tokens=2, **maps),
    "sapiens2": lambda apply_layernorm=True, **maps: hf.Sapiens2Config(
        **DEEP, num_key_value_heads=2, normalize_backbone_outputs=apply_layernorm, **maps
    ),
    "beit": lambda **maps: hf.BeitConfig(**BEIT, **maps),
    "beit of cls": lambda **maps: hf.BeitConfig(**BEIT, use_mean_pooling=False, **maps),
    "beit of tables": lambda **maps: hf.BeitConfig(  # whose keys have two prefixes on disk
        **{**BEIT, "use_relative_position_bias": False},
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
        **maps,
    ),
    "vitdet": lambda **maps: hf.VitDetConfig(**DINO, **WINDOWS, window_block_indices=[0, 2], **maps),
    "vitdet of windows": lambda **maps: hf.VitDetConfig(**DINO, **WINDOWS, window_block_indices=[0, 1], **maps),
    "vitdet of convolutions": lambda **maps: hf.VitDetConfig(**DINO, residual_block_indices=[1], **maps),
    "vitpose": lambda **maps: hf.VitPoseBackboneConfig(**{**DINO, "image_size": [32, 32]}, **maps),
    "pixio": lambda **maps: hf.PixioConfig(**DINO, **maps),
    "hiera": lambda **maps: hf.HieraConfig(**HIERA, **maps),
    "swin": lambda **maps: hf.SwinConfig(**SWIN, **maps),
    "convnext": lambda **maps: hf.DINOv3ConvNextConfig(**CONVNEXT, **maps),
}
LAST, INNER, STEM = {}, {"out_features": ["stage1", "stage3"]}, {"out_indices": [0, 2]}
PLAIN, TOKENS = {"apply_layernorm": False}, {"reshape_hidden_states": False}
EVERY = {
    **{f"{name}, {kind}": (name, maps) for name in MODELS for kind, maps in (("last", LAST), ("inner", INNER))},
    **{f"{name}, stem": (name, STEM) for name in ("dinov2", "dinov3", "beit", "vitdet", "vitpose")},
    **{
        f"{name}, {kind} without the norm": (name, {**maps, **PLAIN})
        for name in ("dinov2", "dinov2 registers", "tipsv2", "dinov3", "sapiens2", "pixio")
        for kind, maps in (("inner", INNER), ("last", {"out_indices": [1, -1]}), ("tokens", {**INNER, **TOKENS}))
    },
    "beit, pyramid": ("beit", {"add_fpn": True, "out_indices": [1, 2, 3, 4]}),
    "beit, tokens": ("beit", {**INNER, **TOKENS}),
    "dinov3, stem alone": ("dinov3", {"out_features": ["stem"]}),
}
QUICK = ("dinov2, inner without the norm", "dinov3, last without the norm", "beit, pyramid")


def save(config: Any, folder: Path) -> Any:
    """Save a random model of a backbone class, and return it as transformers loads it."""
    with torch.inference_mode(False):
        made = randomise(hf.AutoBackbone.from_config(config))
        made.save_pretrained(folder)
        return type(made).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", cases(EVERY, QUICK))
def test_features_are_the_last_map_of_the_class(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind, maps = EVERY[name]
    model = save(MODELS[kind](**maps), tmp_path)
    with caplog.at_level(logging.WARNING, "vitbackbone"), torch.inference_mode():
        ours = load_backbone(tmp_path)
        x = torch.randn(2, 3, *ours.spec.image_size)
        want = model(x).feature_maps
        assert _error(ours(x), want[-1]) < LIMIT
        for got, each in zip(_maps(ours, x, model, caplog.text), want, strict=True):
            assert _error(got, each) < LIMIT


def _error(features: Any, want: torch.Tensor) -> float:
    if want.ndim == 4:
        return relative_error(features.patches, want)
    return relative_error(features.tokens, want[:, -features.tokens.shape[1] :])


def _maps(ours: Any, x: torch.Tensor, model: Any, log: str) -> Any:
    """Return the maps as the line of the log says, or the last layers where there is none."""
    if "are forward_layers(images, " in log:
        layers, norm = log.partition("forward_layers(images, ")[2].partition(")")[0].split(", norm=")
        return ours.forward_layers(x, eval(layers), norm=eval(norm))
    if isinstance(ours, ViT):
        layers = [index - 1 for index in model.out_indices]
        return ours.forward_layers(x, layers, norm=ours.spec.has_norm)
    return ours.forward_layers(x, range(-len(model.out_indices), 0), norm=ours.spec.has_norm)


def test_every_backbone_class_of_a_native_family_is_known() -> None:
    """A new class of transformers needs a row, or its maps would be the features of the model of that name."""
    native = {name for name in MODEL_FOR_BACKBONE_MAPPING_NAMES if name in MODEL_TYPES}
    assert native == {*NORMS, *ADAPTED} & set(MODEL_FOR_BACKBONE_MAPPING_NAMES)


def test_an_untrained_network_ends_with_the_last_map(tmp_path: Path) -> None:
    hf.Dinov2Backbone(hf.Dinov2Config(**DINO, **INNER, **PLAIN)).save_pretrained(tmp_path)
    spec = load_backbone(tmp_path, "random").spec
    assert (spec.depth, spec.has_norm) == (3, False)


@pytest.mark.parametrize("maps", [{"out_features": ["stage9"]}, {"out_indices": [9]}, {"out_indices": [3, 1]}])
def test_blocks_that_the_network_lacks_are_named(maps: dict[str, Any], tmp_path: Path) -> None:
    hf.Dinov2Backbone(hf.Dinov2Config(**DINO)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    saved = {**json.loads(file.read_text()), "out_features": None, "out_indices": None, **maps}
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=f"config.json: has {next(iter(maps))}"):
        load_backbone(tmp_path)
