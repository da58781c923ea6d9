"""The command line as a user runs it: its small commands, its exit codes and its errors."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import save_photo
from vitbackbone import FeatureStore, list_backbones
from vitbackbone.cli import main


def test_show_writes_pictures(tmp_path: Path) -> None:
    photo = save_photo(tmp_path / "photo.png", 60, 100)
    assert main(["show", str(photo), "--out", str(tmp_path / "out"), "--resolution", "32"]) == 0
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(["show", str(tmp_path / "photo.png"), "--out", str(tmp_path)]))  # its own photo.png
    for name in ("photo", "attention", "rollout", "pca", "overview"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("RGB")).std() > 1


def test_models_lists_name_size_patch_dim_parameters_licence_and_source(capsys: object) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(list_backbones())
    row = next(line for line in lines if line.startswith("vit_base_patch16_224.augreg_in21k "))
    for fact in ("224", "16", "768", "85.8 M", "apache-2.0", "timm/vit_base_patch16_224.augreg_in21k"):
        assert fact in row
    assert main(["models", "*dinov2_vits14*"]) == 0
    assert "vit_base" not in capsys.readouterr().out
    assert main(["models", "zzz"]) == 2


def test_info_and_trace_speak_of_the_model(capsys: object) -> None:
    name = "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert main(["info", name, "--resolution", "384"]) == 0
    assert "24 x 24 = 576 patches" in capsys.readouterr().out
    assert main(["info", name, "--trace"]) == 0
    text = capsys.readouterr().out
    for fact in ("14 x 14 = 196", "197 x 768", "logits"):
        assert fact in text
    assert "1000" in text.splitlines()[-1]
    for name, reads in {
        "deit_tiny_distilled_patch16_224.fb_in1k": "two linear heads, on CLS and on the distillation token",
        "dinov2_vits14_lc": "a linear head on CLS and the mean of the patches side by side",
    }.items():
        assert main(["info", name, "--trace", "--resolution", "112"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("logits")
        assert last.endswith(reads)


def test_demo_does_the_whole_job(tmp_path: Path, capsys: object) -> None:
    stale = tmp_path / "demo" / "digits-features" / "manifest.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")  # features of another version are made again
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    assert "1797 images, 0 failed" in text
    for name in ("china", "flower"):
        lines = [line for line in text.splitlines() if line.strip().startswith(name)]
        assert [line.split()[1] for line in lines] == ["32", "128"]
    accuracies = dict(re.findall(r"(raw pixels|nano, CLS|nano, patch map at 4 x 4) +([\d.]+) %", text))
    assert float(accuracies["nano, patch map at 4 x 4"]) > float(accuracies["raw pixels"]) > 90
    assert float(accuracies["nano, CLS"]) > 90
    assert "What next" in text
    assert len(list((tmp_path / "demo").glob("*/overview.png"))) == 2
    assert len(FeatureStore(tmp_path / "demo" / "digits-features")) == 1797


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "/no/such/place", "--out", "x"], "no such file or folder"),
        (["extract", ".", "--out", "x", "--model", "nana"], "did you mean 'nano'"),
        (["probe", "/no/store"], "is not a feature store"),
        (["predict", "a.jpg", "--probe", "/no/probe"], "want a folder written by save_probe"),
        (["show", "/no/photo.jpg", "--out", "x"], "No such file"),
        (["info", "nana"], "did you mean 'nano'"),
        (["info", "nano", "--tower", "x"], "nano has a single vision tower"),
        (["extract", ".", "--out", "x", "--device", "gpu"], "--device gpu is not a device"),
    ],
)
def test_wrong_input_is_exit_code_2_and_one_message(arguments: list[str], message: str, capsys: object) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.promise(19)
def test_ctrl_c_is_exit_code_130(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("vitbackbone.store"), "extract", interrupt)
    assert main(["extract", str(photos), "--out", str(tmp_path / "a")]) == 130


def test_the_command_is_installed_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "vitbackbone.cli", "--version"], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("vitbackbone ")
