"""What the README says, run as it says it."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from heads.names import BUILT_IN
from tests.helpers import save_photo
from vitbackbone.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_code_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "photo.jpg", 427, 640)
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
    save_photo(tmp_path / "photo.jpg", 427, 640)
    namespace: dict[str, object] = {}
    exec(blocks("python")[0], namespace)
    shapes = re.findall(r"^features\.(\w+) +# \(([^)]*)\)", blocks("python")[0], flags=re.MULTILINE)
    assert [name for name, _ in shapes] == ["cls", "patches", "registers", "pooled"]
    h, w = namespace["features"].grid
    for name, shape in shapes:
        want = tuple(int({"h": h, "w": w}.get(part.strip(), part)) for part in shape.split(","))
        assert tuple(getattr(namespace["features"], name).shape) == want


def test_it_names_every_head() -> None:
    table = README.split("| names of `create_head` |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(BUILT_IN)


def test_every_model_and_file_it_names_exists() -> None:
    from vitbackbone import list_backbones
    from vitbackbone.huggingface import MODEL_TYPES

    names = re.findall(
        r"`((?:vit_|deit_|beit|mae_|dino|ViT-|moco_|eva02_|sam|swin_|resnet|openvla|hf:)[\w./:-]+)`", README
    )
    assert names
    assert set(names) <= {*list_backbones(), *MODEL_TYPES, *BUILT_IN}
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
