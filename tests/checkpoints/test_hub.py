"""A repository of the Hub is read at its pinned revision. Without a network, the error says what to do."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from tests.checkpoints.names import SMALL
from vitbackbone import (
    WeightsUnavailable,
    load_backbone,
)
from vitbackbone.checkpoints.load import find_entry


def test_without_a_network_the_error_names_nano_and_the_manual_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    ways = {
        SMALL: "weights=PATH",
        "hf:google/vit-base-patch16-224": "weights=PATH",
        "hf:someone/unheard-of": "load_backbone(DIR)",
    }
    for name, way in ways.items():
        with pytest.raises(WeightsUnavailable) as caught:
            load_backbone(name)
        assert "'nano' is built in" in str(caught.value)
        assert way in str(caught.value)


def test_any_failure_of_the_download_is_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class ProxyError(Exception):
        pass

    def download(*_: object, **__: object) -> str:
        raise ProxyError("bad gateway")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(WeightsUnavailable, match="bad gateway"):
        load_backbone(SMALL)


def test_a_glitch_is_not_mistaken_for_a_file_that_the_repository_lacks(
    monkeypatch: pytest.MonkeyPatch, directory: Path, tmp_path: Path
) -> None:
    """Without its `preprocessor_config.json`, a model would run on pixels with the wrong normalisation."""

    def download(repository: str, file: str, revision: str | None) -> str:
        if file == "preprocessor_config.json":
            raise LocalEntryNotFoundError("connection lost")
        return str(directory / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsUnavailable, match="connection lost"):
        load_backbone("hf:someone/model")


def test_a_file_that_the_cache_knows_to_be_missing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, directory: Path, tmp_path: Path
) -> None:
    """The cache marks it by an object with a private name: neither a path nor None. Offline, nothing else tells."""
    revision, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache"
    repository = cache / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(directory, repository / "snapshots" / revision, ignore=shutil.ignore_patterns("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with pytest.raises(WeightsUnavailable, match="preprocessor_config.json"):
        load_backbone("hf:someone/model")
    missing = repository / ".no_exist" / revision
    missing.mkdir(parents=True)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (missing / name).touch()
        found = huggingface_hub.try_to_load_from_cache("someone/model", name)
        assert found is not None, "the cache says nothing of a missing file any more: look at hub._is_known_missing"
        assert not isinstance(found, str)
    assert load_backbone("hf:someone/model").config.dim == 16


@pytest.mark.parametrize("pickled", [False, True])
def test_a_repository_is_read_whatever_its_weights_are_called(
    monkeypatch: pytest.MonkeyPatch, directory: Path, pickled: bool
) -> None:
    want = load_backbone(directory).norm.bias
    if pickled:
        torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
    assert torch.equal(load_backbone(directory).norm.bias, want)


def test_info_of_an_unlisted_repository_fetches_no_weights(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    def download(repository: str, file: str, revision: str | None) -> str:
        assert "model" not in file
        if not (directory / file).exists():
            raise EntryNotFoundError(file)
        return str(directory / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_entry("hf:someone/model").config.dim == 16


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
