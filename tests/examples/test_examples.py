"""The examples run from a fresh folder, offline, with nothing but the package."""

import subprocess
import sys
from pathlib import Path

import pytest

from heads import load_head
from vitbackbone import load_backbone

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_several_heads_on_one_backbone(tmp_path: Path) -> None:
    printed = run("several_heads.py", "--out", tmp_path, "--steps", 2)
    assert "one forward for digit and ink: blocks [0, 1, 2, 3, 4] of 5" in printed
    assert (tmp_path / "several.png").is_file()
    assert (tmp_path / "digit" / "head.json").is_file()
    assert (tmp_path / "ink" / "head.json").is_file()


def test_a_head_of_ones_own(tmp_path: Path) -> None:
    assert "half of the digits are found within" in run("own_head.py", "--out", tmp_path, "--steps", 2)
    assert '"head": "where"' in (tmp_path / "head.json").read_text()


def test_the_shipped_segmentation_head_fits_its_backbone() -> None:
    head = load_head(EXAMPLES / "camvid", load_backbone("nano"))
    assert head.num_classes == 11
