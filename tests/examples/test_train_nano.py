"""The recipe of the built-in backbone runs, resumes where it was, and writes what `load_backbone` reads."""

import argparse
import importlib.util
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import photo
from vitbackbone import load_backbone

SCRIPT = Path(__file__).parents[2] / "examples" / "train_nano.py"
SPEC = importlib.util.spec_from_file_location("train_nano", SCRIPT)
train_nano = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(train_nano)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = []
    for i in range(40):
        buffer = io.BytesIO()
        photo(32, 32, seed=i).save(buffer, format="PNG")
        images.append(buffer.getvalue())
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    pq.write_table(pa.table({"image": images, "label": [i % 3 for i in range(40)]}), path)
    return path


def arguments(data: Path, out: Path) -> argparse.Namespace:
    return argparse.Namespace(data=data, out=out, epochs=2, batch_size=12, lr=0.02, seed=0, limit=None)


def test_an_interrupted_training_ends_with_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_nano.train(arguments(data, tmp_path / "whole"))

    real = train_nano.augment
    calls = []

    def interrupted(*args: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:  # in the middle of the second epoch, which has three steps
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train_nano, "augment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_nano.train(arguments(data, tmp_path / "cut"))
    monkeypatch.setattr(train_nano, "augment", real)
    train_nano.train(arguments(data, tmp_path / "cut"))

    whole, cut = (load_file(tmp_path / run / "nano.safetensors") for run in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert len((tmp_path / "cut" / "log.txt").read_text().splitlines()) == 2
    backbone = load_backbone("nano", weights=tmp_path / "cut" / "nano.safetensors")
    assert torch.isfinite(backbone(torch.randn(1, 3, 32, 32)).cls).all()


def test_the_schedules() -> None:
    rates = [train_nano.schedule(i / 1000) for i in range(1001)]
    assert rates[0] == 0
    assert max(rates) == rates[30] == pytest.approx(1)
    assert rates[15] == pytest.approx(0.5)
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert [train_nano.thumbnail_weight(p) for p in (0.5, 0.6, 0.9)] == [0, 0.5, 2]
    assert [train_nano.image_size(p) for p in (0, 0.5)] == [24, 32]


def test_labels_are_mixed_at_first_and_blocks_dropped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, soft, rates = train_nano.F.cross_entropy, [], []

    def spy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        soft.append(target.is_floating_point())
        return real(logits, target)

    class Spied(train_nano.Classifier):
        def __init__(self, config: object, num_classes: int) -> None:
            super().__init__(config, num_classes)
            rates.append(self.vit.blocks[-1].drop_path.rate)

    monkeypatch.setattr(train_nano.F, "cross_entropy", spy)
    monkeypatch.setattr(train_nano, "Classifier", Spied)
    args = arguments(data, tmp_path)
    args.epochs, args.batch_size = 3, 4
    train_nano.train(args)
    assert rates == [0.05]
    assert any(soft)
    assert not any(soft[-6:])  # two losses a step; the last 15 % of 27 steps learn from real labels


def test_another_run_and_too_few_photos_are_refused(data: Path, tmp_path: Path) -> None:
    args = arguments(data, tmp_path)
    args.epochs = 1
    train_nano.train(args)
    args.lr = 0.5
    with pytest.raises(SystemExit, match="belongs to another run"):
        train_nano.train(args)
    args = arguments(data, tmp_path / "other")
    args.limit = 10
    with pytest.raises(SystemExit, match="less than one batch"):
        train_nano.train(args)


def test_augmentation_keeps_the_colours_and_changes_the_view() -> None:
    torch.manual_seed(0)
    photos = (
        torch.from_numpy(np.stack([np.asarray(photo(32, 32, seed=i)) for i in range(64)])).permute(0, 3, 1, 2) / 255
    )
    views = train_nano.augment(photos, 24)
    assert views.shape == (64, 3, 24, 24)
    assert views.mean().item() == pytest.approx(photos.mean().item(), abs=0.03)
    grey = (views[:, 0] == views[:, 1]).flatten(1).all(dim=1)
    assert 1 <= grey.sum() <= 16
    assert len({view.sum().item() for view in train_nano.augment(photos[:1].repeat(8, 1, 1, 1), 32)}) == 8
