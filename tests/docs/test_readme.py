"""What the README says, run as it says it."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from heads.names import BUILT_IN
from tests.helpers import photo, save_photo
from vitbackbone.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_code_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "photo.jpg", 300, 200)
    for i in range(12):
        save_photo(tmp_path / "photos" / ("cats" if i % 2 else "dogs") / f"{i}.jpg", seed=i)
    (tmp_path / "photos" / "dogs" / "broken.jpg").write_bytes(b"")
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 4
    for line in commands:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "vitbackbone"
        assert main(arguments) == 0, line
    capsys.readouterr()
    namespace: dict[str, object] = {}
    assert len(blocks("python")) == 7
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["features"].cls.shape == (1, 192)
    assert len(namespace["last4"]) == 4
    assert [stage.geometry.stride for stage in namespace["stages"]] == [4, 8, 16, 32]
    assert namespace["both"].spec.dim == 192 + 192
    assert namespace["outputs"]["pixels"].shape == (1, 11, *namespace["image"].shape[-2:])
    assert namespace["again"].name == "multilayer"
    assert namespace["fast"].fidelity.cosine >= 0.9999
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([1])}
    losses = namespace["detector"]([torch.rand(3, 96, 96)], [target])
    assert all(loss.isfinite() for loss in losses.values())
    assert namespace["store"].failed == [("dogs/broken.jpg", "the file has 0 bytes; want 1 to 1073741824")]


def test_the_shapes_in_the_comments_are_those_that_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "photo.jpg", 300, 200)
    namespace: dict[str, object] = {}
    exec(blocks("python")[0], namespace)
    shapes = re.findall(r"^features\.(\w+) +# \(([^)]*)\)", blocks("python")[0], flags=re.MULTILINE)
    assert [name for name, _ in shapes] == ["cls", "patches", "registers", "pooled"]
    h, w = namespace["features"].grid
    for name, shape in shapes:
        want = tuple(int({"h": h, "w": w}.get(part.strip(), part)) for part in shape.split(","))
        assert tuple(getattr(namespace["features"], name).shape) == want


@pytest.mark.parametrize(("height", "width", "orientation"), [(427, 640, 1), (300, 200, 1), (24, 150, 1), (90, 60, 6)])
def test_a_patch_is_found_in_a_photo_of_any_shape(
    height: int, width: int, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(height, width).save(tmp_path / "photo.jpg", exif=exif)
    namespace: dict[str, object] = {}
    for block in blocks("python")[:2]:
        exec(block, namespace)
    geometry = namespace["features"].geometry.through([namespace["view"]])
    upright = (width, height) if orientation >= 5 else (height, width)
    patch = 4 * upright[0] / namespace["image"].shape[1]  # pixels of the photo
    assert geometry.box(0, row=3, column=5) == pytest.approx([5 * patch, 3 * patch, 6 * patch, 4 * patch], rel=0.05)
    h, w = namespace["features"].grid
    assert geometry.box(0, row=h - 1, column=w - 1)[2:] == pytest.approx(upright[::-1], abs=patch)


def test_its_photos_a_second_are_those_of_the_benchmark() -> None:
    table = (ROOT / "docs/performance.md").read_text().split("## From a folder to features")[1].split("## ")[0]
    measured = {name: float(value) for name, value in re.findall(r"^\| ([^|]+?) \| ([\d.]+) \|", table, re.MULTILINE)}
    exact, fast = re.search(r"did (\d+) photos a second .*?, (\d+) with `--decoding fast`", README, re.DOTALL).groups()
    assert (int(exact), int(fast)) == (round(measured["ours"]), round(measured["ours, decoding fast"]))


def test_it_names_every_head() -> None:
    table = README.split("| names of `create_head` |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(BUILT_IN)


def test_every_model_and_file_it_names_exists() -> None:
    from vitbackbone import list_backbones
    from vitbackbone.checkpoints.huggingface import MODEL_TYPES

    names = re.findall(
        r"`((?:vit_|deit_|beit|mae_|dino|ViT-|moco_|eva02_|sam|swin_|resnet|openvla|hf:)[\w./:-]+)`", README
    )
    assert names
    assert set(names) <= {*list_backbones(), *MODEL_TYPES, *BUILT_IN}
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
