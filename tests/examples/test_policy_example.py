"""The task of the robot policy's example is what it says, and the example runs from its command line."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("policy_example", EXAMPLES / "policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_expert_reaches_the_red_disc(policy) -> None:
    scenes = policy.Scenes(50, np.random.default_rng(0))
    start = scenes.tip.copy()
    assert scenes.reached.mean() < 0.2
    for _ in range(12):
        velocity = scenes.expert()
        assert np.linalg.norm(velocity, axis=1).max() < 1 + 1e-6
        scenes.move(velocity)
    assert scenes.reached.all()
    assert not np.allclose(scenes.tip, start)
    assert len(set(map(tuple, np.round(scenes.discs[:, 0], 6)))) == 50  # no two tables are alike


def test_a_tip_moves_no_faster_than_it_may(policy) -> None:
    scenes = policy.Scenes(20, np.random.default_rng(0))
    before = scenes.tip.copy()
    scenes.move(np.full((20, 2), 9.0))
    assert np.linalg.norm(scenes.tip - before, axis=1).max() < policy.SPEED + 1e-6


def test_the_image_shows_the_target_in_red_where_it_is(policy) -> None:
    scenes = policy.Scenes(20, np.random.default_rng(0))
    scenes.tip[:] = 0.98, 0.98  # out of the way
    for i in range(20):
        pixels = np.asarray(scenes.draw(i)).astype(int)
        assert pixels.shape == (64, 64, 3)
        red = (pixels[..., 0] > 150) & (pixels[..., 1] < 80)
        rows, columns = np.nonzero(red)
        centre = (np.stack([columns, rows], axis=1).mean(axis=0) + 0.5) / 64
        assert np.abs(centre - scenes.discs[i, 0]).max() < 0.02


def test_it_runs_tiny_and_reports_both_rates(policy, monkeypatch, tmp_path, capsys) -> None:
    tiny = ["--steps", "3", "--demonstrations", "8", "--episodes", "2", "--head", "map_pool"]
    monkeypatch.setattr(sys, "argv", ["policy.py", "--out", str(tmp_path), *tiny])
    monkeypatch.setattr(policy, "LIMIT", 2)
    policy.main()
    printed = capsys.readouterr().out
    assert "with vision: reached in" in printed
    assert "without vision: reached in" in printed
    assert "of 2 episodes" in printed
    for name in ("with-vision", "without-vision"):
        assert Image.open(tmp_path / f"{name}.gif").size == (256, 256)
        assert (tmp_path / name / "checkpoint.pt").exists()
