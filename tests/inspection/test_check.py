"""`check`: a backbone against its upstream, and what the command says of it."""

import functools
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import cases, randomise
from tests.oracles.transformers_models import HF, hf_model
from tests.text.models import CASES
from vitbackbone.cli import main
from vitbackbone.inspection import check, upstreams

TINY = "vit_tiny_patch16_224.augreg_in21k"
NAMES = (
    TINY,
    "timm:test_vit.r160_in1k",
    "timm:test_resnet.r160_in1k",
    "vit_base_patch32_clip_224.openai",  # timm runs GELU under this name
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "eva02_tiny_patch14_224.mim_in22k",
    "vit_base_patch16_siglip_224.webli",
    "swin_tiny_patch4_window7_224.ms_in1k",
)


@pytest.mark.parametrize("name", cases(NAMES, NAMES[:3]))
def test_a_backbone_equals_its_upstream_on_random_weights(name: str) -> None:
    result = check(name, random=True)
    assert result.largest < 1e-5
    assert result.verdict.startswith("equal:")
    assert {"patches", "pooled"} <= result.errors.keys()
    assert result.errors.keys() | result.left_out.keys() == {"cls", "registers", "patches", "pooled"}


DIRECTORIES = {name: functools.partial(hf_model, name) for name in HF}
WHOLE = {name: functools.partial(lambda each: CASES[each].make()[0], name) for name in ("clip", "siglip", "aimv2")}


KINDS = (*DIRECTORIES, *(f"whole {name}" for name in WHOLE))


@pytest.mark.parametrize("kind", cases(KINDS, ("clip", "vit", "mae", "swin", "sam", "whole clip")))
def test_a_directory_of_transformers_is_checked(kind: str, tmp_path: Path) -> None:
    model = WHOLE[kind.removeprefix("whole ")]() if kind.startswith("whole") else DIRECTORIES[kind]()
    model.save_pretrained(tmp_path)
    for random in (False, True):
        result = check(tmp_path, random=random)
        assert result.largest < 1e-5
        assert result.errors.keys() & {"patches", "pooled"}
        assert result.upstream.startswith("transformers ")


def test_a_directory_of_timm_is_checked(tmp_path: Path) -> None:
    model = randomise(timm.create_model("test_vit", num_classes=5))
    timm.models.save_for_hf(model, tmp_path, model_config={"num_classes": 5})
    for random in (False, True):
        result = check(tmp_path, random=random)
        assert result.largest < 1e-5
        assert result.upstream.startswith("timm ")


def test_the_command_checks_a_file_at_another_size(tmp_path: Path, capsys: object) -> None:
    model = randomise(timm.create_model(TINY.split(".")[0], num_classes=21843, dynamic_img_size=True))
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    assert (
        main(["check", TINY, "--weights", str(tmp_path / "tiny.safetensors"), "--resolution", "96x64", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["image_size"] == [96, 64]
    assert result["largest"] < 1e-5
    assert result["equal"]


def test_a_difference_is_found_and_costs_the_exit_code(capsys: object, monkeypatch: pytest.MonkeyPatch) -> None:
    original = upstreams.TimmUpstream.load

    def changed(self: upstreams.TimmUpstream, weights: Path) -> object:
        state = load_file(weights)
        state["blocks.3.mlp.fc2.bias"] = state["blocks.3.mlp.fc2.bias"] * 1.5
        save_file(state, weights)
        return original(self, weights)

    monkeypatch.setattr(upstreams.TimmUpstream, "load", changed)
    assert main(["check", "timm:test_vit.r160_in1k", "--random"]) == 1
    assert "different: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", TINY], "could not be downloaded; give --weights FILE, or --random"),
        (["check", "nano", "--random"], "no upstream to check against"),
        (["check", "openvla", "--random"], "no upstream to check against"),
        (["check", "nowhere", "--random"], "unknown backbone"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(
    arguments: list[str], words: str, capsys: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out


def test_nan_is_no_equality() -> None:
    result = check("timm:test_vit.r160_in1k", random=True)
    broken = type(result)(**{**vars(result), "errors": {"cls": torch.nan, "patches": 0.0}})
    assert not broken.equal
    assert broken.verdict.startswith("different: cls")
