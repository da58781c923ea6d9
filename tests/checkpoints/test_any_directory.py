"""Directories that transformers wrote of models with a vision tower somewhere inside: the tower's features, and nothing
else read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.checkpoints.composites import COMPOSITES, DINO, TEXT, VISION, composite_error
from tests.helpers import cases, randomise, relative_error
from vitbackbone import ConversionError, load_backbone, load_checkpoint
from vitbackbone.checkpoints.shards import Shards
from vitbackbone.checkpoints.tensor_files import LazyTensors

LIMIT = 1e-5
QUICK = (
    "llava",
    "paligemma",
    "depth anything",
    "mask2former",
    "captioner of vit",
    "sam",
    "owl-vit",
)
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("name", cases(COMPOSITES, QUICK))
def test_the_tower_of_a_model_gives_its_own_features(name: str, tmp_path: Path) -> None:
    with torch.inference_mode(False):
        assert composite_error(name, tmp_path) < LIMIT


def save_llava(directory: Path, **options: object) -> nn.Module:
    with torch.inference_mode(False):
        model = randomise(COMPOSITES["llava"].make())
    model.save_pretrained(directory, **options)
    return model


def edit(directory: Path, name: str = "config.json", **fields: object) -> None:
    saved = json.loads((directory / name).read_text())
    saved.update(fields)
    (directory / name).write_text(json.dumps({key: value for key, value in saved.items() if value is not None}))


def check(directory: Path, model: nn.Module) -> None:
    x = torch.randn(1, 3, 32, 32)
    got = load_backbone(directory).forward_layers(x, [-1], norm=False)[0].tokens
    assert relative_error(got, model.model.vision_tower(x).last_hidden_state[:, 1:]) < LIMIT


# ---- what is read --------------------------------------------------------------------------------------------------


def test_only_the_tower_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_llava(tmp_path)
    read: list[str] = []
    look_up = LazyTensors.__getitem__
    monkeypatch.setattr(LazyTensors, "__getitem__", lambda self, key: read.append(key) or look_up(self, key))
    check(tmp_path, model)
    assert read
    assert all(key.startswith("vision_tower.") for key in read)


def test_only_the_shards_of_the_tower_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_llava(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    vision = {key: tensor for key, tensor in state.items() if key.startswith("vision_tower.")}
    save_file(vision, tmp_path / "b.safetensors")  # the others are not there at all
    places = {key: "b.safetensors" if key in vision else "a.safetensors" for key in state}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    opened: list[str] = []
    read = Shards._read
    monkeypatch.setattr(Shards, "_read", lambda self, name: opened.append(name) or read(self, name))
    check(tmp_path, model)
    assert set(opened) == {"b.safetensors"}


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_pickled_shards_and_variants_are_read(variant: str, tmp_path: Path) -> None:
    model = save_llava(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    vision = {key: tensor for key, tensor in state.items() if key.startswith("vision_tower.")}
    ending = f".{variant}" if variant else ""
    files = {"pytorch_model-1.bin": vision, "pytorch_model-2.bin": {k: state[k] for k in state.keys() - vision.keys()}}
    for name, tensors in files.items():
        torch.save(tensors, tmp_path / name)
    places = {key: name for name, tensors in files.items() for key in tensors}
    (tmp_path / f"pytorch_model.bin.index{ending}.json").write_text(json.dumps({"weight_map": places}))
    check(tmp_path, model)


def test_a_variant_of_one_file_is_read(tmp_path: Path) -> None:
    model = save_llava(tmp_path, variant="fp16")
    assert (tmp_path / "model.fp16.safetensors").is_file()
    check(tmp_path, model)


# ---- which settings ------------------------------------------------------------------------------------------------


def test_settings_without_the_names_of_classes_are_enough(tmp_path: Path) -> None:
    model = save_llava(tmp_path)
    edit(tmp_path, architectures=None, auto_map={"AutoModel": "evil.py--Evil"}, transformers_version=None)
    check(tmp_path, model)


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    save_llava(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    edit(
        tmp_path, model_type="evil", vision_config=None, auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    )
    with pytest.raises(ValueError, match="model_type='evil'"):
        load_backbone(tmp_path)


def test_several_towers_are_listed_and_chosen_by_name(tmp_path: Path) -> None:
    size = {**DINO, "num_hidden_layers": 2, "out_indices": [2]}
    with torch.inference_mode(False):
        models = {name: randomise(hf.Dinov2Model(hf.Dinov2Config(**size)), n) for n, name in enumerate(("near", "far"))}
    state = {f"model.{name}_encoder.{key}": t for name, m in models.items() for key, t in m.state_dict().items()}
    models["near"].save_pretrained(tmp_path)
    disk = load_file(tmp_path / "model.safetensors")
    models["far"].save_pretrained(tmp_path / "far")
    other = load_file(tmp_path / "far" / "model.safetensors")
    shutil.rmtree(tmp_path / "far")
    state = {f"model.near_encoder.{key}": t for key, t in disk.items()}
    state |= {f"model.far_encoder.{key}": t for key, t in other.items()}
    save_file(state, tmp_path / "model.safetensors")
    inner = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "pair", "near_config": inner}))
    with pytest.raises(ValueError, match=r"several vision towers; choose one with tower=.*far_encoder.*near_encoder"):
        load_backbone(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    for name, model in models.items():
        for tower in (f"model.{name}_encoder", f"model.{name}_encoder.", f"{name}_encoder"):
            got = load_backbone(tmp_path, tower=tower)(x).tokens
            assert relative_error(got, model(x).last_hidden_state[:, 1:]) < LIMIT
    with pytest.raises(ValueError, match="no tower='middle'; want one of 'model.far_encoder', 'model.near_encoder'"):
        load_backbone(tmp_path, tower="middle")


def test_settings_belong_to_the_prefix_with_their_name(tmp_path: Path) -> None:
    """The heads do not show in any shape, so that only the name tells the settings apart."""
    state, settings, models = {}, {}, {}
    for seed, (name, heads) in enumerate({"far": 2, "near": 4}.items()):
        with torch.inference_mode(False):
            models[name] = randomise(hf.Dinov2Model(hf.Dinov2Config(**{**DINO, "num_attention_heads": heads})), seed)
        models[name].save_pretrained(tmp_path)
        disk = load_file(tmp_path / "model.safetensors")
        state |= {f"model.{name}_encoder.{key}": tensor for key, tensor in disk.items()}
        settings[f"{name}_model_config"] = json.loads((tmp_path / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors")
    x = torch.randn(1, 3, 32, 32)
    for names in (list(settings), list(settings)[::-1]):
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "pair", **{key: settings[key] for key in names}})
        )
        for name, model in models.items():
            for tower in (f"model.{name}_encoder", f"{name}_model_config"):
                got = load_backbone(tmp_path, tower=tower)(x).tokens
                assert relative_error(got, model(x).last_hidden_state[:, 1:]) < LIMIT
    plain = {"a_config": settings["far_model_config"], "b_config": settings["near_model_config"]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "pair", **plain}))
    with pytest.raises(ValueError, match="several settings for the tower 'model.far_encoder.'.*'a_config', 'b_config'"):
        load_backbone(tmp_path, tower="far_encoder")


def test_towers_of_other_shapes_are_told_apart(tmp_path: Path) -> None:
    """The blocks and the width decide which keys belong to the settings."""
    with torch.inference_mode(False):
        small, large = (
            randomise(hf.ViTModel(hf.ViTConfig(**{**VISION, "num_hidden_layers": depth}), add_pooling_layer=False))
            for depth in (2, 3)
        )
    state = {}
    for name, model in (("small", small), ("large", large)):
        model.save_pretrained(tmp_path)
        state |= {f"{name}.{key}": tensor for key, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors")
    x = torch.randn(1, 3, 32, 32)
    for depth, model in ((2, small), (3, large)):
        edit(tmp_path, num_hidden_layers=depth)
        assert relative_error(load_backbone(tmp_path)(x).tokens, model(x).last_hidden_state[:, 1:]) < LIMIT


def test_a_classifier_beside_the_tower_comes_along(tmp_path: Path) -> None:
    config = hf.SiglipConfig(vision_config=VISION, text_config=TEXT, num_labels=3)
    with torch.inference_mode(False):
        model = randomise(hf.SiglipForImageClassification(config))
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    tokens = checkpoint.backbone(x).tokens.mean(dim=1)
    logits = tokens @ checkpoint.head["head.weight"].T + checkpoint.head["head.bias"]
    assert relative_error(logits, model(x).logits) < LIMIT
    assert len(checkpoint.labels) == 3


# ---- settings and weights that contradict each other ----------------------------------------------------------------


def save_vit(directory: Path, model: nn.Module) -> dict[str, Tensor]:
    model.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


def test_registers_follow_the_weights_where_the_settings_are_silent(tmp_path: Path) -> None:
    config = hf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)
    with torch.inference_mode(False):
        model = randomise(hf.Dinov2WithRegistersModel(config))
    save_vit(tmp_path, model)
    x = torch.randn(1, 3, 32, 32)
    edit(tmp_path, num_register_tokens=None)
    backbone = load_backbone(tmp_path)
    assert backbone.spec.num_registers == 3
    assert relative_error(backbone(x).tokens, model(x).last_hidden_state[:, 4:]) < LIMIT
    edit(tmp_path, num_register_tokens=5)
    with pytest.raises(ConversionError, match="num_register_tokens: 5 in the settings, 3 in the weights"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 3}, "blocks: 3 in the settings, 4 in the weights"),
        ({"image_size": 64}, r"image_size is 64 x 64 in the settings, .* 32 x 32"),
        ({"hidden_size": 48}, r"\(32, 32\) in the checkpoint, \(48, 48\) in the model"),
        ({"mlp_ratio": 2}, r"\(128, 32\) in the checkpoint, \(64, 32\) in the model"),
    ],
)
def test_numbers_that_contradict_the_weights_are_one_error(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    save_vit(tmp_path, hf.Dinov2Model(hf.Dinov2Config(**DINO)))
    edit(tmp_path, **settings)
    with pytest.raises(ConversionError, match=message) as caught:
        load_backbone(tmp_path)
    assert len(str(caught.value)) <= 1000 + len(str(tmp_path))


@pytest.mark.parametrize("bias", [True, False])
def test_biases_and_a_gate_follow_the_weights(bias: bool, tmp_path: Path) -> None:
    config = hf.Dinov2Config(**DINO, qkv_bias=bias, use_swiglu_ffn=bias)
    with torch.inference_mode(False):
        model = randomise(hf.Dinov2Model(config))
    save_vit(tmp_path, model)
    edit(tmp_path, qkv_bias=None, use_swiglu_ffn=None)
    x = torch.randn(1, 3, 32, 32)
    assert relative_error(load_backbone(tmp_path)(x).tokens, model(x).last_hidden_state[:, 1:]) < LIMIT


def test_a_part_that_is_half_there_is_refused(tmp_path: Path) -> None:
    """A final norm without its bias means a damaged file, not a class without a norm."""
    state = save_vit(tmp_path, hf.Dinov2Backbone(hf.Dinov2Config(**DINO)))
    state.pop("layernorm.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="norm.bias: the checkpoint does not fill"):
        load_backbone(tmp_path)
