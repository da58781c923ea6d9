"""The examples on classes run offline, on drawn photos."""

from dataclasses import replace
from pathlib import Path

import classify
import finetune
import numpy as np
import probe
import pytest
import torch
from PIL import Image

from tests.helpers import save_photo
from vitbackbone import load_backbone, save_pretrained


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright ones."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(20):
        low = [0, 150][i % 2]
        path = folder / ["dark", "bright"][i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(low, low + 100, (24, 30, 3), dtype=np.uint8)).save(path)
    return folder


def test_probes_are_compared(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = probe.main([str(photos), "--out", str(tmp_path), "--epochs", "8"])
    assert list(reports) == ["linear", "knn", "attentive, V-JEPA", "attentive, AIM"]
    assert {(each.accuracy, each.total) for each in reports.values()} == {(1.0, 4)}
    assert "attentive, AIM        1.0000" in capsys.readouterr().out


def test_the_digits_are_drawn_offline(tmp_path: Path) -> None:
    folder = probe.draw_digits(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == list("0123456789")
    assert len(list(folder.rglob("*.png"))) == 1797


@pytest.mark.parametrize("mode", ["frozen", "full"])
def test_photos_are_classified_by_what_was_fine_tuned(mode: str, photos: Path, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--mode", mode, "--steps", "8", "--batch-size", "8", "--mix", "0"]
    finetune.run(finetune.parse([str(photos), *options]))
    rows = classify.main([str(photos), "--finetuned", str(tmp_path)])
    assert len(rows) == 20
    assert all(path.split("/")[0] == name for path, name, _ in rows)
    assert all(0.5 < probability <= 1 for _, _, probability in rows)


def test_photos_are_classified_by_a_checkpoint_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = load_backbone("vit_tiny_patch16_224.augreg_in21k", "random", positions="hf")
    backbone.preprocess = replace(backbone.preprocess, crop_rounding="down")
    head = {"head.weight": torch.randn(3, 192), "head.bias": torch.zeros(3)}
    save_pretrained(backbone, tmp_path / "model", "ViTForImageClassification", head, ["ant", "bee", "cow"])
    save_photo(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_text("no image")
    ((path, name, probability),) = classify.main([str(tmp_path / "photos"), "--model", str(tmp_path / "model")])
    assert path == "a.png"
    assert name in ("ant", "bee", "cow")
    assert 1 / 3 <= probability <= 1
    assert "b.png\tfailed: " in capsys.readouterr().err
