"""Directories in timm's format: natively where this package's ViT equals the network, else in the adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import cases, photo, randomise, relative_error
from vitbackbone import ConversionError, TimmBackbone, ViT, load_backbone, load_checkpoint
from vitbackbone.checkpoints import hub

LIMIT = 1e-5
SLOW = pytest.mark.slow
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def save(directory: Path, architecture: str, **args: object) -> Any:
    """Write a directory as timm does."""
    with torch.inference_mode(False):
        model = randomise(timm.create_model(architecture, **args))
    timm.models.save_for_hf(model, directory, safe_serialization=True)
    edit(directory, model_args={key: value for key, value in args.items() if key != "num_classes"})
    return model


def edit(directory: Path, **fields: object) -> None:
    saved = json.loads((directory / "config.json").read_text())
    saved.update(fields)
    (directory / "config.json").write_text(
        json.dumps({key: value for key, value in saved.items() if value is not None})
    )


#    architecture, arguments of the constructor, whether it runs natively
CASES: dict[str, tuple[str, dict[str, object], bool]] = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "num_classes": 5}, True),
    "mean": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg"}, True),
    "mean of normed": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg", "fc_norm": False}, True),
    "no pooling": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "", "num_classes": 0}, True),
    "pathology": (
        "vit_giant_patch14_224",
        {
            **{**SMALL, "img_size": 56},
            "init_values": 1e-5,
            "reg_tokens": 3,
            "no_embed_class": True,
            "dynamic_img_size": True,
            "num_classes": 0,
        },
        True,
    ),
    "clip": ("vit_base_patch32_clip_224", {**SMALL, "num_classes": 8}, True),
    "map": ("vit_base_patch16_siglip_224", {**SMALL, "num_classes": 0}, True),
    "no positions": ("vit_tiny_patch16_224", {**SMALL, "pos_embed": "none"}, True),
    "q and k normed": ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True}, False),
    "registers with positions": ("vit_tiny_patch16_224", {**SMALL, "reg_tokens": 2}, False),
    "resnet": ("resnet18", {"num_classes": 4}, False),
    "convnext": ("convnext_atto", {"num_classes": 4}, False),
    "two heads behind norms": (
        "levit_128s",
        {"depth": [1, 1, 1], "embed_dim": [32, 48, 64], "num_heads": [2, 3, 4], "num_classes": 4},
        False,
    ),
    "two nested heads behind norms": ("repvit_m0_9", {"num_classes": 4}, False),
    "two heads": ("efficientformer_l1", {"depths": [1, 1, 1, 1], "num_classes": 4}, False),
    "a head behind a norm": ("shvit_s1", {"num_classes": 4}, False),
    "angles computed for each grid": (
        "naflexvit_base_patch16_gap",
        {"embed_dim": 48, "depth": 2, "num_heads": 3, "pos_embed": "none", "rope_type": "dinov3", "num_classes": 0},
        False,
    ),
}
QUICK = ("vit", "mean", "pathology", "map", "q and k normed", "two heads behind norms")


@pytest.mark.parametrize("name", cases(CASES, QUICK))
def test_the_features_are_timms(name: str, tmp_path: Path) -> None:
    architecture, args, native = CASES[name]
    save(tmp_path, architecture, **args)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    checkpoint = load_checkpoint(tmp_path)
    backbone = checkpoint.backbone
    assert type(backbone) is (ViT if native else TimmBackbone)
    x = torch.randn(2, 3, *backbone.spec.image_size)
    got, want = backbone(x), theirs.forward_features(x)
    if backbone.spec.has_cls:
        assert relative_error(got.cls, want[:, 0]) < LIMIT
    tokens = want.flatten(2).mT if want.ndim == 4 else want
    assert relative_error(got.tokens, tokens[:, -got.tokens.shape[1] :]) < LIMIT
    if args.get("global_pool") != "":
        assert relative_error(got.pooled, theirs.forward_head(want, pre_logits=True)) < LIMIT
    if checkpoint.head:
        logits = got.pooled @ checkpoint.head["head.weight"].T + checkpoint.head["head.bias"]
        assert relative_error(logits, theirs(x)) < LIMIT
    assert bool(checkpoint.head) == bool(theirs.num_classes)


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", pytest.param("swin_tiny_patch4_window7_224", marks=SLOW)])
def test_a_swin_whose_windows_do_not_divide_its_map_pads_as_timm(name: str, tmp_path: Path) -> None:
    model = save(tmp_path, name, embed_dim=24, depths=(2, 1), num_heads=(3, 6), window_size=5, img_size=64)
    backbone = load_backbone(tmp_path)
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(backbone(x).patches, model.forward_features(x).permute(0, 3, 1, 2)) < LIMIT


@SLOW
def test_heads_that_read_a_part_of_the_vector_each_are_one(tmp_path: Path) -> None:
    sizes = {"embed_dim": (48, 96), "num_heads": (3, 3), "depth": ((1, 1, 0), (1, 1, 0)), "mlp_ratio": (2, 2, 1)}
    model = save(tmp_path, "crossvit_9_dagger_240", **{**sizes, "img_size": 120, "num_classes": 4})
    checkpoint = load_checkpoint(tmp_path)
    x = torch.randn(2, 3, *checkpoint.backbone.spec.image_size)
    logits = checkpoint.backbone(x).pooled @ checkpoint.head["head.weight"].T + checkpoint.head["head.bias"]
    assert relative_error(logits, model(x)) < LIMIT


def test_positions_at_other_sizes_are_resampled_as_timm_does(tmp_path: Path) -> None:
    save(tmp_path, "vit_tiny_patch16_224", **SMALL)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, dynamic_img_size=True).eval()
    backbone = load_backbone(tmp_path)
    for size in ((96, 96), (48, 112)):
        x = torch.randn(1, 3, *size)
        assert relative_error(backbone(x).tokens, theirs.forward_features(x)[:, 1:]) < LIMIT


@pytest.mark.parametrize(
    "args", [{"dynamic_img_size": False}, {"img_size": 70, "qk_norm": True}], ids=["fixed", "part"]
)
def test_any_size_runs_whatever_the_constructor_was_given(args: dict[str, Any], tmp_path: Path) -> None:
    """timm's network is of one size without its switch, and drops what fills no patch."""
    model = save(tmp_path, "vit_tiny_patch16_224", **{**SMALL, "class_token": False, "global_pool": "avg", **args})
    backbone = load_backbone(tmp_path)
    assert backbone.spec.image_size == (64, 64)
    x = torch.randn(1, 3, *model.patch_embed.img_size)
    assert relative_error(backbone(x[:, :, :64, :64]).tokens, model.forward_features(x)) < LIMIT
    assert backbone(torch.randn(1, 3, 48, 90)).grid == (3, 6)


def test_an_mlp_that_the_settings_cannot_name_follows_the_weights(tmp_path: Path) -> None:
    """`mlp_layer` is a class, which JSON cannot hold: UNI 2, Virchow and H-optimus are gated all the same."""
    from timm.layers import SwiGLUPacked

    args = {**SMALL, "mlp_ratio": 4.0, "init_values": 1e-5, "num_classes": 0}
    save(tmp_path, "vit_tiny_patch16_224", **args)
    with torch.inference_mode(False):
        classes = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
        model = randomise(timm.create_model("vit_tiny_patch16_224", **args, **classes))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = load_backbone(tmp_path)
    assert backbone.config.mlp == "swiglu"
    x = torch.randn(1, 3, 64, 64)
    assert relative_error(backbone(x).tokens, model.forward_features(x)[:, 1:]) < LIMIT


def test_the_preprocessing_is_the_files(tmp_path: Path) -> None:
    save(tmp_path, "vit_tiny_patch16_224", **SMALL)
    cfg = {"input_size": [3, 64, 64], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}
    cfg |= {"mean": [0.7, 0.6, 0.5], "std": [0.2, 0.2, 0.1]}
    edit(tmp_path, pretrained_cfg=cfg)
    preprocess = load_backbone(tmp_path).preprocess
    assert (preprocess.image_size, preprocess.crop_pct, preprocess.crop_mode) == ((64, 64), 1.0, "squash")
    assert (preprocess.interpolation, preprocess.mean) == ("bilinear", (0.7, 0.6, 0.5))
    assert preprocess(photo(70, 90)).shape == (3, 64, 64)


def test_flat_settings_of_older_files_are_read(tmp_path: Path) -> None:
    model = save(tmp_path, "vit_tiny_patch16_224")
    saved = json.loads((tmp_path / "config.json").read_text())
    flat = {"architecture": saved["architecture"], "num_features": 192, **saved["pretrained_cfg"]}
    (tmp_path / "config.json").write_text(json.dumps(flat | {"mean": [0.1, 0.2, 0.3]}))
    backbone = load_backbone(tmp_path)
    assert backbone.preprocess.mean == (0.1, 0.2, 0.3)
    x = torch.randn(1, 3, 224, 224)
    assert relative_error(backbone(x).cls, model.forward_features(x)[:, 0]) < LIMIT


def test_class_names_come_along(tmp_path: Path) -> None:
    save(tmp_path, "vit_tiny_patch16_224", **SMALL, num_classes=2)
    edit(tmp_path, label_names=["cat", "dog"])
    assert load_checkpoint(tmp_path).labels == ("cat", "dog")
    edit(tmp_path, label_names=["cat", "dog", "cow"])
    with pytest.raises(ConversionError, match="2 outputs of the classifier, 3 labels"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_other_names_of_the_weights_are_found(file: str, tmp_path: Path) -> None:
    save(tmp_path, "vit_tiny_patch16_224", **SMALL)
    want = load_backbone(f"local-dir:{tmp_path}")
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    if file.endswith(".bin"):
        torch.save(state, tmp_path / file)
    else:
        save_file(state, tmp_path / file)
    assert torch.equal(load_backbone(tmp_path).norm.weight, want.norm.weight)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "hf:someone/model", "hf-hub:someone/model@v1"])
def test_a_repository_is_named_as_timm_names_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(tmp_path, "vit_tiny_patch16_224", **SMALL)
    asked: list[tuple[str, str, str | None]] = []

    def download(known: str, repository: str, file: str, revision: str | None) -> Path:
        asked.append((repository, file, revision))
        if not (tmp_path / file).is_file():
            raise hub.WeightsUnavailable("not there") from FileNotFoundError()
        return tmp_path / file

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setattr(hub, "_is_known_missing", lambda repository, file, revision: True)
    x = torch.randn(1, 3, 64, 64)
    assert relative_error(load_backbone(name)(x).cls, model.forward_features(x)[:, 0]) < LIMIT
    assert {(repository, revision) for repository, _, revision in asked} == {
        ("someone/model", "v1" if "@" in name else None)
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "vit_tyni_patch16_224"}, "knows no architecture 'vit_tyni_patch16_224', did you mean"),
        ({"architecture": 3}, "knows no architecture 3"),
        ({"model_args": [1]}, r"model_args=\[1\]; want an object"),
        ({"model_args": {"depth": 10**6}}, "model_args.depth=1000000; want a value"),
        ({"model_args": {"embed_dim": 10**9}}, "model_args.embed_dim=1000000000"),
        ({"model_args": {"act_layer": {"_target_": "os.system"}}}, "model_args.act_layer="),
        ({"model_args": {"colour": 3}}, "does not take"),
        ({"pretrained_cfg": 3}, "pretrained_cfg=3; want an object"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    save(tmp_path, "vit_tiny_patch16_224", **SMALL)
    edit(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)
