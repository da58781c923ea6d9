"""Extraction: the features of each image, in their order, in the files that the design says."""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.store.small import SIZES, backbone, contents, direct, features_of, objects, picture
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.store import extract
from vitbackbone.store.layout import INDEX


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float16", 2**-10), ("bfloat16", 2**-7)])
def test_features_are_those_of_the_backbone_called_on_each_image(
    photos: Path, tmp_path: Path, dtype: str, rtol: float
) -> None:
    model = backbone(num_registers=3)
    kinds = ["patches", "registers", "cls"]
    store = extract(
        model, photos, tmp_path / "f", tokens=kinds, layers=[-1, 0], batch_size=3, shard_size=4, dtype=dtype
    )
    assert store.layers == (1, 0)
    assert len(store) == 7
    for layer, view in ((0, store), (0, store.layer(0)), (1, store.layer(1)), (1, store.layer(-1))):
        for i, path in enumerate(view.paths):
            features = direct(model, photos / path, layer)
            for stored, wanted in (
                (view.cls[i], features.cls),
                (view.registers[i], features.registers),
                (view.patches(i), features.patches),
            ):
                assert stored.dtype == (np.float16 if dtype == "float16" else np.float32)
                assert wanted is not None
                np.testing.assert_allclose(stored, wanted.squeeze(0).numpy(), rtol=rtol, atol=1e-5)
    assert not np.allclose(store.cls, store.layer(1).cls)
    np.testing.assert_array_equal(store.patches(-1), store.patches(6))


def test_a_list_asks_for_one_forward_per_batch(photos: Path, tmp_path: Path) -> None:
    model = backbone()
    extract(model, photos, tmp_path / "f", layers=[0, 1], tokens=["cls", "patches"], batch_size=3, shard_size=4)
    assert [count for count, _ in model.seen] == [3, 1, 3]  # batches never cross from one shard into the next


def test_the_final_norm_is_left_out_where_there_is_none(photos: Path, tmp_path: Path) -> None:
    model = backbone(final_norm=False)
    store = extract(model, photos, tmp_path / "f")
    with torch.no_grad():
        alone = model(model.preprocess(photos / store.paths[0])[None])
    np.testing.assert_allclose(store.cls[0], alone.cls[0].numpy(), atol=1e-5)


def test_the_files_are_laid_out_as_designed(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "5.png").write_bytes(b"")
    model = backbone(num_registers=2)
    out = tmp_path / "f"
    store = extract(model, photos, out, tokens=["cls", "registers", "patches"], layers=[0, 1], shard_size=4)
    assert {name for name in contents(out) if not name.startswith("objects/")} == {
        "latest.json", "snapshots/00000001.json", "snapshots/00000002.json",
    }  # fmt: skip
    for name, data in objects(out).items():
        digest = hashlib.sha256(data).hexdigest()
        assert name.startswith(f"objects/{digest[:2]}/{digest}.")
    assert (out / "latest.json").read_bytes() == (out / "snapshots/00000002.json").read_bytes()
    second = load_file(features_of(out, 1))
    shapes = {
        "cls": (2, 16), "cls.0": (2, 16), "registers": (2, 2, 16), "registers.0": (2, 2, 16),
        "patches": (32, 16), "patches.0": (32, 16), "grid": (2, 2),
    }  # fmt: skip
    shapes |= {f"{name}.crc32": (2,) for name in shapes}
    assert {name: tuple(tensor.shape) for name, tensor in second.items()} == shapes
    assert second["cls.crc32"].tolist() == [zlib.crc32(row.numpy().tobytes()) for row in second["cls"]]
    images = second["patches"].unflatten(0, (2, 16))
    assert second["patches.crc32"].tolist() == [zlib.crc32(image.numpy().tobytes()) for image in images]
    assert store.snapshot.root == str(photos)
    assert str(photos) not in json.dumps(store.manifest)

    assert store.index.schema.names == INDEX.names
    assert store.index["row"].to_pylist() == list(range(7))
    assert store.index["status"].to_pylist() == ["ok"] * 5 + ["failed", "ok"]
    assert list(zip(store.index["width"].to_pylist(), store.index["height"].to_pylist(), strict=True)) == [
        size if i != 5 else (None, None) for i, size in enumerate(SIZES)
    ]
    first = photos / store.index["path"][0].as_py()
    assert store.index["sha256"][0].as_py() == hashlib.sha256(first.read_bytes()).hexdigest()
    assert store.manifest["model"]["weights_sha256"] == weights_sha256(model)
    assert store.manifest["preprocessing"]["mean"] == list(model.preprocess.mean)
    assert store.index["reason"].to_pylist() == [None] * 5 + ["empty", None]
    assert store.index["remedy"].to_pylist() == [None] * 5 + ["replace the file; every run tries it again", None]


@pytest.mark.promise(11)
def test_the_index_gives_the_size_of_the_upright_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    (tmp_path / "photos").mkdir()
    picture(0, (40, 24)).save(tmp_path / "photos/turned.jpg", exif=exif)
    store = extract(backbone(), tmp_path / "photos", tmp_path / "f")
    assert (store.index["width"][0].as_py(), store.index["height"][0].as_py()) == (24, 40)


@pytest.mark.promise(14)
def test_mixed_sizes_keep_their_own_grids(photos: Path, tmp_path: Path) -> None:
    model = backbone()
    options = {"resolution": 24, "keep_aspect": True}
    store = extract(
        model, photos, tmp_path / "f", tokens=["cls", "patches"], batch_size=4, shard_size=5, resolution=24,
        keep_aspect=True,
    )  # fmt: skip
    grids = set()
    for i, path in enumerate(store.paths):
        features = direct(model, photos / path, **options)
        np.testing.assert_allclose(store.cls[i], features.cls[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(store.patches(i), features.patches[0].numpy(), atol=1e-5)
        grids.add(features.grid)
    assert len(grids) > 3


@pytest.mark.promise(21)
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_the_size_of_the_batch_changes_no_feature(photos: Path, tmp_path: Path, keep_aspect: bool) -> None:
    model = backbone()
    one, eight = (
        extract(
            model, photos, tmp_path / str(size), tokens=["cls", "patches"], batch_size=size, keep_aspect=keep_aspect
        )
        for size in (1, 8)
    )
    np.testing.assert_allclose(one.cls, eight.cls, atol=1e-5)
    for i in range(7):
        np.testing.assert_allclose(one.patches(i), eight.patches(i), atol=1e-5)


@pytest.mark.promise(21)
def test_worker_processes_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "1.png").write_bytes(b"not a picture")
    for workers in (0, 2):
        extract(
            backbone(), photos, tmp_path / str(workers), tokens=["cls", "patches"], batch_size=2, shard_size=3,
            workers=workers, keep_aspect=True, resolution=24,
        )  # fmt: skip
    assert objects(tmp_path / "0") == objects(tmp_path / "2")


def test_a_shard_is_on_disk_before_the_next_begins(photos: Path, tmp_path: Path) -> None:
    model = backbone()
    model.out = tmp_path / "f"
    extract(model, photos, model.out, batch_size=1, shard_size=2)
    assert [markers for _, markers in model.seen] == [0, 0, 1, 1, 2, 2, 3]


def test_the_backbone_is_left_as_it_was(photos: Path, tmp_path: Path) -> None:
    model = backbone(drop_path=0.9).train()
    model.norm.eval()
    before = {name: part.training for name, part in model.named_modules()}
    store = extract(model, photos, tmp_path / "f")
    assert {name: part.training for name, part in model.named_modules()} == before
    np.testing.assert_allclose(store.cls[0], direct(model.eval(), photos / store.paths[0]).cls[0].numpy(), atol=1e-5)
    assert model(torch.zeros(1, 3, 32, 32)).cls.requires_grad


def test_progress_shows_rate_and_failures(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (photos / "cat" / "1.png").write_bytes(b"")
    extract(backbone(), photos, tmp_path / "f", batch_size=1)
    shown = capfd.readouterr().err
    assert "7/7" in shown
    assert "img/s" in shown
    assert "failed=1" in shown
    extract(backbone(), photos, tmp_path / "g", progress=False)
    assert capfd.readouterr().err == ""
