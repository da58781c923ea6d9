"""The example that trains a detector: its scenes are labelled right, it runs on every kind of photos, it resumes."""

import argparse
import importlib
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.helpers import photo, save_photo

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def detect() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        module = importlib.import_module("detect")
    module.HELD_OUT_SCENES, module.BATCH_SIZE = 8, 2
    return module


def arguments(out: Path, **changed: object) -> argparse.Namespace:
    return argparse.Namespace(**{"photos": None, "out": out, "steps": 2, "seed": 0, **changed})


@pytest.mark.parametrize("seed", range(8))
def test_boxes_hold_their_shapes_to_the_pixel(detect: ModuleType, seed: int) -> None:
    """Drawn on black: what is not black within a box touches its four sides, and nothing is outside the boxes."""
    image, target = detect.scene(Image.new("RGB", (200, 150)), np.random.default_rng(seed))
    assert image.shape == (3, detect.SIZE, detect.SIZE)
    drawn = image.amax(dim=0) > 0
    assert len(target["boxes"]) in (1, 2, 3)
    for (left, top, right, bottom), label in zip(target["boxes"].int().tolist(), target["labels"], strict=True):
        inside = drawn[top:bottom, left:right]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        filled = inside.float().mean().item()  # π/4 of its box, all of it, half of it
        low, high = {"circle": (0.7, 0.9), "square": (1, 1), "triangle": (0.4, 0.65)}[detect.SHAPES[label - 1]]
        assert low <= filled <= high
        drawn[top:bottom, left:right] = False
    assert not drawn.any()


def test_photos_are_read_from_a_folder_a_parquet_file_and_scikit_learn(detect: ModuleType, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo(32, 32).save(buffer, format="PNG")
    pq.write_table(pa.table({"image": [buffer.getvalue()] * 3, "label": [0] * 3}), tmp_path / "photos.parquet")
    save_photo(tmp_path / "folder" / "a.png")
    assert [image.size for image in detect.read_photos(tmp_path / "photos.parquet")] == [(32, 32)] * 3
    assert [image.size for image in detect.read_photos(tmp_path / "folder")] == [(52, 40)]
    assert [image.size for image in detect.read_photos(None)] == [(640, 427)] * 2


def test_a_run_reports_ap50_and_draws_and_goes_on_where_it_was(
    detect: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 <= detect.main(arguments(tmp_path)) <= 1
    assert "AP50" in capsys.readouterr().out
    assert Image.open(tmp_path / "found.png").size[0] > 4 * 4 * detect.SIZE  # of each scene 4 pixels a pixel or more
    weights = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    learned = "backbone.attached.backbone.blocks.4.mlp.fc1.weight"
    assert not torch.equal(weights[learned], detect.make_detector().state_dict()[learned])
    detect.main(arguments(tmp_path))
    again = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_a_folder_without_photos_is_refused(detect: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no .jpg, .jpeg or .png"):
        detect.main(arguments(tmp_path / "out", photos=tmp_path))


def test_what_is_measured_on_is_no_part_of_what_is_trained_on(detect: ModuleType) -> None:
    whole = photo(40, 100)
    part, kept = detect.split(whole)
    assert (part.size, kept.size) == ((66, 40), (34, 40))
    assert np.array_equal(np.concatenate([part, kept], axis=1), np.asarray(whole))


def test_a_perfect_detector_has_an_ap50_of_1(
    detect: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = detect.read_photos(None)
    _, drawn = detect.scenes([detect.split(photo)[1] for photo in photos], 8, [0, 2])
    perfect = [{**target, "scores": torch.ones(len(target["labels"]))} for target in drawn]
    monkeypatch.setattr(detect, "fit", lambda *_: None)
    monkeypatch.setattr(detect, "find", lambda *_: perfect)
    assert detect.main(arguments(tmp_path)) == pytest.approx(1)
