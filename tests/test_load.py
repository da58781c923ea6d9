"""From a name to a backbone: sources, errors that say what to do, nothing unpickled."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

import vitbackbone.load
from tests.helpers import relative_error, tiny_vit
from vitbackbone import ViT, WeightsUnavailable, list_backbones, load_backbone
from vitbackbone.formats import FORMATS
from vitbackbone.load import find_entry, read_weights
from vitbackbone.zoo import ZOO

TIMM_NAMES = [name for name, entry in ZOO.items() if entry.source.startswith("timm/")]
SMALL = "vit_tiny_patch16_224.augreg_in21k"


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_preprocessing_source_and_licence_are_those_of_timm(name: str) -> None:
    theirs, ours = timm.get_pretrained_cfg(name), ZOO[name]
    preprocess = ours.preprocess
    assert (3, *preprocess.image_size) == theirs.input_size == (3, *ours.config.image_size)
    assert (preprocess.mean, preprocess.std) == (theirs.mean, theirs.std)
    assert (preprocess.crop_pct, preprocess.crop_mode) == (theirs.crop_pct, theirs.crop_mode)
    assert preprocess.interpolation == theirs.interpolation
    assert (ours.source, ours.num_classes) == (theirs.hf_hub_id, theirs.num_classes)
    assert ours.licence == theirs.license


@pytest.mark.parametrize("name", ZOO)
def test_every_entry_builds_and_has_a_known_format(name: str) -> None:
    with torch.device("meta"):
        vit = ViT(ZOO[name].config)
    assert vit.spec.dim == ZOO[name].config.dim
    assert ZOO[name].format in FORMATS
    assert set(ZOO[name].policies) == {"native", "timm", "hf"}


def test_names_are_listed_by_pattern() -> None:
    assert list_backbones() == list(ZOO)
    found = list_backbones("*reg4_dinov2*")
    assert len(found) == 4
    assert all("reg4" in name for name in found)


def test_random_weights_need_no_network_and_run() -> None:
    backbone = load_backbone(SMALL, weights="random")
    assert not backbone.training
    assert backbone.spec.name == SMALL
    assert backbone(torch.randn(1, 3, 32, 48)).cls.shape == (1, 192)
    assert backbone.preprocess == ZOO[SMALL].preprocess


@pytest.mark.parametrize("positions", ["native", "timm", "hf"])
@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224.dino", "dinov2_vits14", "hf:facebook/dinov2-with-registers-small"]
)
def test_the_resampling_policy_is_chosen_at_load(name: str, positions: str) -> None:
    assert load_backbone(name, weights="random", positions=positions).config.resampling == ZOO[name].policies[positions]


def test_an_unknown_policy_is_refused() -> None:
    """In a process of its own, without the type checks of the tests, which would come first."""
    code = f"from vitbackbone import load_backbone; load_backbone({SMALL!r}, 'random', positions='jax')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "positions='jax'; want one of native, timm, hf" in result.stderr


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'vit_small_patch14_dinov2.lvd142m'"):
        load_backbone("vit_small_patch14_dinov2", weights="random")


def test_without_a_network_the_error_names_nano_and_the_manual_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in (SMALL, "hf:google/vit-base-patch16-224", "hf:someone/unheard-of"):
        with pytest.raises(WeightsUnavailable) as caught:
            load_backbone(name)
        assert "'nano' is built in" in str(caught.value)
        assert "weights=PATH" in str(caught.value)


def test_weights_that_are_not_on_the_hub_say_where_they_are() -> None:
    with pytest.raises(WeightsUnavailable, match="dinov2_vits14_pretrain.pth"):
        load_backbone("dinov2_vits14")


def test_a_download_comes_from_the_named_repository_at_the_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_backbone(f"{SMALL}@abc123").spec.name == f"{SMALL}@abc123"
    assert load_backbone(SMALL).spec.name == SMALL
    assert asked == [(f"timm/{SMALL}", "model.safetensors", "abc123"), (f"timm/{SMALL}", "model.safetensors", None)]


def test_a_repository_of_the_hub_is_read_as_a_directory(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, revision))
        if not (directory / file).exists():
            raise EntryNotFoundError(file)
        return str(directory / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    backbone = load_backbone("hf:someone/model@v2")
    assert set(asked) == {("someone/model", "v2")}
    assert torch.equal(backbone.norm.bias, load_backbone(directory).norm.bias)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, ("raise SystemExit('code from a checkpoint was run')",)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, protocol: str) -> None:
    path = tmp_path / "evil.pth"
    if protocol == "torch":
        torch.save({"cls_token": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"cls_token": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="never run"):
        load_backbone(SMALL, weights=path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 7, 1000])
def test_truncated_weights_are_refused(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"a{suffix}"
    state = tiny_vit().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=str(path)):
        read_weights(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_backbone(SMALL, weights=tmp_path / "absent.pth")
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match="want a .safetensors file"):
        load_backbone(SMALL, weights=tmp_path / "a.npz")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_backbone(SMALL, weights=tmp_path / "list.pth")


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_state_dict_within_is_found(tmp_path: Path, wrapper: str) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "a.pth")
    assert torch.equal(load_backbone(SMALL, tmp_path / "a.pth").norm.bias, state["norm.bias"])


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).half().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    backbone = load_backbone(SMALL, tmp_path / "a.safetensors")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


# ---- Hugging Face directories -------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    ).save_pretrained(tmp_path)
    return tmp_path


def edit(directory: Path, **fields: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "clip"}, "model_type='clip'; want one of vit, deit"),
        ({"hidden_act": "relu"}, "hidden_act='relu'; only 'gelu'"),
        ({"architectures": None}, "architectures=.*want the one class"),
        (
            {"architectures": ["ViTForMaskedImageModeling"]},
            "'ViTForMaskedImageModeling', whose key layout is not known",
        ),
        ({"num_hidden_layers": 2}, "blocks.1.norm1.weight: the checkpoint does not fill"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(directory: Path, fields: dict[str, object], message: str) -> None:
    load_backbone(directory)
    edit(directory, **fields)
    with pytest.raises(ValueError, match=message):
        load_backbone(directory)


def test_a_directory_without_its_files_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has none of model.safetensors"):
        load_backbone(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        load_backbone(directory)


def test_the_directory_s_own_preprocessing_is_read(directory: Path) -> None:
    settings = {
        "do_center_crop": True,
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = load_backbone(directory).preprocess
    assert preprocess.image_size == (224, 224)
    assert preprocess.view((300, 600)).resized == (256, 512)
    assert (preprocess.mean, preprocess.interpolation) == ((0.1, 0.2, 0.3), "bicubic")
    (directory / "preprocessor_config.json").write_text(
        json.dumps({**settings, "do_center_crop": False, "size": {"height": 48, "width": 32}, "resample": 2})
    )
    preprocess = load_backbone(directory).preprocess
    assert preprocess.view((300, 600)).resized == (48, 32)
    assert preprocess.interpolation == "bilinear"


def test_a_folder_called_nano_is_not_mistaken_for_the_backbone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.rename(directory.parent / "nano")
    monkeypatch.chdir(directory.parent)
    assert find_entry("nano") is ZOO["nano"]
    assert find_entry("./nano").config.dim == 16


# ---- nano ---------------------------------------------------------------------------------------------------------


def test_nano_is_small_and_built_in() -> None:
    assert vitbackbone.load.NANO_FILE.stat().st_size < 6e6
    backbone = load_backbone("nano")
    assert isinstance(backbone, nn.Module)
    assert sum(p.numel() for p in backbone.parameters()) < 3e6
    assert {t.dtype for t in load_file(vitbackbone.load.NANO_FILE).values() if t.is_floating_point()} == {torch.float16}
    assert (
        relative_error(
            backbone(torch.zeros(1, 3, 32, 32)).patches, load_backbone("nano")(torch.zeros(1, 3, 32, 32)).patches
        )
        == 0
    )
