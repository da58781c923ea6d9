"""Extraction, scikit-learn and the command line take a `FusedBackbone` as any backbone. Pictures refuse it."""

import copy
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import relative_error, save_photo, tiny_vit
from tests.networks.fused_backbones import FIRST, FUSED, SECOND
from vitbackbone import ImageFeatures
from vitbackbone.cli.commands.probe import check_same_backbone
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.inspection import show
from vitbackbone.networks.fused import FusedPreprocess
from vitbackbone.store import extract
from vitbackbone.store.manifest import make_manifest
from vitbackbone.store.sources.locate import Locator
from vitbackbone.store.workers.reader import ImageReader


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i, (height, width) in enumerate([(40, 52), (52, 40), (33, 33)]):
        save_photo(folder / f"{i}.png", height, width, seed=i)
    return folder


@pytest.mark.parametrize("name", ["same stride", "two strides"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_extraction_stores_what_the_backbone_says(name: str, keep_aspect: bool, photos: Path, tmp_path: Path) -> None:
    fused = FUSED[name]
    kinds = ["cls", "patches"] if fused.spec.has_cls else ["patches"]
    store = extract(fused, photos, tmp_path / "f", tokens=kinds, batch_size=2, keep_aspect=keep_aspect, progress=False)
    for i in range(3):
        with torch.inference_mode():
            alone = fused(fused.preprocess(photos / f"{i}.png", keep_aspect=keep_aspect)[None])
        assert relative_error(torch.from_numpy(np.array(store.patches(i))), alone.patches[0]) < 1e-5
        if fused.spec.has_cls:
            assert relative_error(torch.from_numpy(np.array(store.cls[i])), alone.cls[0]) < 1e-5
    assert store.manifest["preprocessing"]["strategy"] == "resize-naive"
    assert [part["mean"] for part in store.manifest["preprocessing"]["parts"]] == [list(FIRST.mean), list(SECOND.mean)]

    again = copy.deepcopy(fused)
    extract(again, photos, tmp_path / "f", tokens=kinds, keep_aspect=keep_aspect, progress=False)
    again.preprocess = replace(again.preprocess, strategy="crop")
    with pytest.raises(ValueError, match=r"preprocessing\.strategy: the store has 'resize-naive', asked is 'crop'"):
        extract(again, photos, tmp_path / "f", tokens=kinds, keep_aspect=keep_aspect, progress=False)


def test_extraction_of_tokens_that_are_not_there_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pair has no CLS token; ask for tokens="):
        extract(FUSED["same stride"], photos, tmp_path / "f")
    with pytest.raises(ValueError, match="pair has no register tokens"):
        extract(FUSED["two strides"], photos, tmp_path / "f", tokens=["registers"])


@pytest.mark.parametrize(("height", "width"), [(1, 12_000), (12_000, 1)])
def test_a_photo_whose_letterbox_would_be_huge_is_a_row_with_its_reason(
    height: int, width: int, tmp_path: Path
) -> None:
    path = save_photo(tmp_path / "thin.png", height, width)
    reader = ImageReader(FusedPreprocess((FIRST, SECOND), (32, 32), "letterbox"), None, False, "exact")
    record, pixels = reader[Locator(str(path)), hashlib.sha256(path.read_bytes()).digest()]
    assert pixels is None
    assert record.reason == "too thin"
    assert record.error.startswith(f"too long and thin: {width} x {height} pixels become 1")


@pytest.mark.parametrize("name", ["same stride", "two strides"])
def test_the_scikit_learn_transformer_takes_it(name: str, photos: Path) -> None:
    fused = FUSED[name]
    got = ImageFeatures(fused, pooling="mean", batch_size=2).transform([photos / "0.png", photos / "1.png"])
    with torch.inference_mode():
        alone = fused(torch.stack([fused.preprocess(photos / f"{i}.png") for i in range(2)]))
    assert relative_error(torch.from_numpy(got), alone.patches.mean(dim=(2, 3))) < 1e-5


def test_pictures_are_refused_with_what_to_do(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pair is several backbones, and each has its own attention; show one of them"):
        show(FUSED["same stride"], photos / "0.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_tells_it_from_another_backbone(photos: Path) -> None:
    def manifest(backbone: Any) -> dict[str, Any]:
        settings = {"tokens": ["patches"], "layers": [0], "shard_size": 9, "resolution": None, "keep_aspect": False}
        settings |= {"decoding": "exact", "dtype": "float32", "runtime": backbone.runtime, "calibration": None}
        return make_manifest(backbone, weights_sha256(backbone), **settings)

    pair, vit = FUSED["same stride"], tiny_vit()
    check_same_backbone(pair, manifest(pair))
    with pytest.raises(ValueError, match="another backbone than this pair: weights, settings, crop_pct, crop_mode"):
        check_same_backbone(vit, manifest(pair))
    with pytest.raises(ValueError, match="another backbone than this tiny: weights, settings, parts, strategy differ"):
        check_same_backbone(pair, manifest(vit))
    other = copy.deepcopy(pair)
    other.preprocess = replace(pair.preprocess, parts=(FIRST, FIRST))
    with pytest.raises(ValueError, match="another backbone than this pair: parts differ"):
        check_same_backbone(other, manifest(pair))
    assert json.loads(json.dumps(asdict(pair.preprocess)))["image_size"] == [32, 32]
