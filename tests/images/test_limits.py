"""The limit of pixels as the commands take it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers import photo, tiny_vit
from vitbackbone import save_pretrained
from vitbackbone.cli import main

WIDTH, HEIGHT = 60, 40
PIXELS = WIDTH * HEIGHT
OVER = f"{WIDTH} x {HEIGHT} pixels are more than the limit of {PIXELS - 1}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, a checkpoint with a classifier, and a probe fitted on two colours."""
    place = tmp_path_factory.mktemp("limits")
    (place / "one").mkdir()
    photo(HEIGHT, WIDTH).save(place / "one" / "photo.png")
    head = {"head.weight": torch.eye(3, 16), "head.bias": torch.zeros(3)}
    backbone = tiny_vit()
    backbone.preprocess = replace(backbone.preprocess, crop_rounding="down")  # as transformers crops
    save_pretrained(backbone, place / "model", "ViTForImageClassification", head)
    for label, level in (("dark", 0), ("bright", 200)):
        for i in range(10):
            file = place / "photos" / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo(20, 20, seed=i).point(lambda value, level=level: value // 5 + level).save(file)
    model = str(place / "model")
    assert main(["extract", str(place / "photos"), "--model", model, "--out", str(place / "store"), "-q"]) == 0
    assert main(["probe", str(place / "store"), "--out", str(place / "probe"), "-q"]) == 0
    return place


COMMANDS = {
    "extract": ["{place}/one", "--model", "{place}/model", "--out", "{out}"],
    "predict": ["{place}/one/photo.png", "--probe", "{place}/probe"],
    "classify": ["{place}/one/photo.png", "--model", "{place}/model"],
    "show": ["{place}/one/photo.png", "--model", "{place}/model", "--out", "{out}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_a_photo_above_its_limit(
    command: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"show": 2}  # its one photo is the input; for the others a photo that cannot be read is one of several
    for limit, code in ((PIXELS - 1, codes.get(command, 1)), (PIXELS, 0)):
        line = [part.format(place=place, out=tmp_path / str(limit)) for part in COMMANDS[command]]
        capsys.readouterr()
        assert main([command, *line, "--max-pixels", str(limit)]) == code
        said = "".join(capsys.readouterr())
        assert (OVER in said) == bool(code)
        assert ("--max-pixels" in said) == bool(code)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", ""])
def test_a_command_refuses_a_limit_that_is_no_count(
    command: str, limit: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [part.format(place=place, out=tmp_path / "out") for part in COMMANDS[command]]
    assert main([command, *line, f"--max-pixels={limit}"]) == 2
    assert "want a whole number of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
