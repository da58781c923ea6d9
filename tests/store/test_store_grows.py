"""A store over several runs: increments, copies, slices, locks, archives, exports."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from heads import LinearProbe
from tests.helpers import save_photo, tiny_vit
from vitbackbone.contract.features import Features
from vitbackbone.contract.geometry import Images
from vitbackbone.files import LocalStorage
from vitbackbone.model.vit import ViT
from vitbackbone.store import FeatureStore, export, extract, verify


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(5):
        save_photo(tmp_path / "photos" / "cat" / f"{i}.png", 30 + i, 40, seed=i)
    return tmp_path / "photos"


def shards(directory: Path) -> dict[str, bytes]:
    """The features of all shards."""
    return {file.name: file.read_bytes() for file in sorted(directory.glob("objects/*/*.safetensors"))}


def objects(directory: Path) -> set[str]:
    return {file.name for file in directory.glob("objects/*/*")}


def test_new_photos_get_rows_behind_the_old_ones_and_copies_are_computed_once(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    extract(tiny_vit(), photos, out, shard_size=3, progress=False)
    before = shards(out)
    save_photo(photos / "bird" / "new.png", 33, 44, seed=9)
    (photos / "cat" / "again.png").write_bytes((photos / "cat" / "2.png").read_bytes())
    store = extract(tiny_vit(), photos, out, shard_size=3, progress=False)
    assert store.paths[5:] == ["bird/new.png", "cat/again.png"]
    assert store.class_names == ["cat", "bird"]
    np.testing.assert_array_equal(store.cls[6], store.cls[2])
    assert store.index["same_as"].to_pylist() == [None] * 6 + [2]
    assert {name: data for name, data in shards(out).items() if name in before} == before
    (photos / "cat" / "0.png").unlink()
    assert len(extract(tiny_vit(), photos, out, shard_size=3, progress=False)) == 7


def test_slices_make_the_same_shards(photos: Path, tmp_path: Path) -> None:
    extract(tiny_vit(), photos, tmp_path / "one", shard_size=2, progress=False)
    for i in range(3):
        store = extract(tiny_vit(), photos, tmp_path / "three", shard_size=2, slice=(i, 3), progress=False)
        assert store.missing == 2 - i
    assert objects(tmp_path / "one") == objects(tmp_path / "three")


@pytest.mark.promise(25)
def test_archives_are_read_in_place_and_escapes_refused(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos / "cat" / "0.png", "cat/0.png")
        tar.add(photos / "cat" / "1.png", "../1.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(photos / "cat" / "0.png", "cat/0.png")
    plain = extract(tiny_vit(), photos, tmp_path / "plain", progress=False)
    for kind in ("tar", "zip"):
        store = extract(tiny_vit(), tmp_path / f"a.{kind}", tmp_path / kind, progress=False)
        assert store.paths == [f"a.{kind}/cat/0.png"]
        np.testing.assert_allclose(store.cls[0], plain.cls[0], atol=1e-5)
    assert "outside" in FeatureStore(tmp_path / "tar").index["reason"].to_pylist()


class Small(ViT):
    """Has memory for two images."""

    def forward_layers(self, images: Images, *args: object, **kwargs: object) -> tuple[Features, ...]:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward_layers(images, *args, **kwargs)


@pytest.mark.promise(17)
def test_out_of_memory_halves_the_batch(photos: Path, tmp_path: Path) -> None:
    model = tiny_vit()
    small = Small(model.config).eval()
    small.load_state_dict(model.state_dict())
    store = extract(small, photos, tmp_path / "small", progress=False)
    np.testing.assert_allclose(store.cls, extract(model, photos, tmp_path / "f", progress=False).cls, atol=1e-5)


def test_exports_hold_the_features(photos: Path, tmp_path: Path) -> None:
    store = extract(tiny_vit(), photos, tmp_path / "f", tokens=["cls", "patches"], shard_size=3, progress=False)
    export(store, "npy", tmp_path / "npy")
    arrays = [np.load(tmp_path / f"npy/img_emb/img_emb_{i}.npy") for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(arrays), store.cls)
    assert pq.read_table(tmp_path / "npy/metadata/metadata_1.parquet")["image_path"].to_pylist() == store.paths[3:]
    files = export(store, "parquet", tmp_path / "table")
    row = pq.ParquetFile(files[0]).read().to_pylist()[1]
    np.testing.assert_array_equal(
        np.array(row["patches"]).reshape(*row["grid"], -1).transpose(2, 0, 1), store.patches(1)
    )


def test_what_kills_left_is_swept_by_the_next_run(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    dead = out / ".unfinished" / "0123"
    dead.mkdir(parents=True)
    (dead / "alive").touch()  # no process holds its lock
    (dead / "features.safetensors").write_bytes(b"half")
    with LocalStorage(out).scratch() as alive:
        extract(tiny_vit(), photos, out, progress=False)
        assert not dead.exists()
        assert alive.exists()
    assert verify(out).problems == ()
    extract(tiny_vit(), photos, out, progress=False)
    assert sorted(path.name for path in out.iterdir()) == ["done", "latest.json", "leases", "objects", "snapshots"]


@pytest.mark.parametrize("engine", ["native", "openvino"])
def test_the_path_is_kept_in_the_manifest_and_another_is_refused(photos: Path, tmp_path: Path, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / "f"
    store = extract(tiny_vit(), photos, out, engine=engine, progress=False)
    plain = extract(tiny_vit(), photos, tmp_path / "plain", progress=False)
    assert store.manifest["runtime"]["engine"] == engine
    np.testing.assert_allclose(store.cls, plain.cls, atol=1e-5)
    before = shards(out)
    next(out.glob("objects/*/*.safetensors")).unlink()
    extract(tiny_vit(), photos, out, progress=False)  # by the path that the store was made with, as none is asked
    assert shards(out) == before
    other = {"native": "openvino", "openvino": "native"}[engine]
    with pytest.raises(ValueError, match=rf"runtime\.engine: the store has '{engine}', asked is '{other}'"):
        extract(tiny_vit(), photos, out, engine=other, progress=False)


def test_a_backbone_that_is_optimised_already_is_taken_as_it_is(photos: Path, tmp_path: Path) -> None:
    from vitbackbone import optimize
    from vitbackbone.runtime.openvino import OpenVinoBackbone

    plain = extract(tiny_vit(), photos, tmp_path / "plain", progress=False)
    for name, fast in {"optimised": optimize(tiny_vit()), "openvino": OpenVinoBackbone(tiny_vit())}.items():
        store = extract(fast, photos, tmp_path / name, progress=False)
        assert store.manifest["runtime"]["engine"] == fast.runtime.engine
        np.testing.assert_allclose(store.cls, plain.cls, atol=1e-5)


def test_a_probe_fits_on_rows_that_are_read_when_asked_for(tmp_path: Path) -> None:
    for i in range(24):
        save_photo(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", 30 + 20 * (i % 2), 40, seed=i)
    store = extract(tiny_vit(), tmp_path / "photos", tmp_path / "f", shard_size=5, progress=False)
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(np.concatenate([*store.rows[order].blocks(7)]), store.cls[order])
    lazy = LinearProbe().fit(store.rows, store.labels)
    whole = LinearProbe().fit(store.cls, store.labels)
    np.testing.assert_allclose(lazy.predict_proba(store.rows), whole.predict_proba(store.cls), atol=3e-3)
