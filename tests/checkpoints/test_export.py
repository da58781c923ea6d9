"""An export that cannot be whole, or that is interrupted, is refused and leaves a directory as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.helpers import tiny_vit
from vitbackbone import ConversionError, Resampling, export_weights, load_backbone, save_pretrained
from vitbackbone.checkpoints.huggingface import VIT_EVAL
from vitbackbone.model.config import Rotary


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
