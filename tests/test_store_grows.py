"""A store over several runs: increments, copies, slices, locks, archives, exports."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers import save_photo, tiny_vit
from vitbackbone.extract import FeatureStore, export, extract, verify
from vitbackbone.extract.lock import writing
from vitbackbone.extract.part import Part
from vitbackbone.features import Features, Images
from vitbackbone.vit import ViT


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(5):
        save_photo(tmp_path / "photos" / "cat" / f"{i}.png", 30 + i, 40, seed=i)
    return tmp_path / "photos"


def shards(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((directory / "shards").iterdir())}


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
        store = extract(tiny_vit(), photos, tmp_path / "three", shard_size=2, shard=(i, 3), progress=False)
        assert store.missing == 2 - i
    assert shards(tmp_path / "one") == shards(tmp_path / "three")


def test_a_second_writer_is_refused_with_the_first_ones_pid(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    out.mkdir()
    with writing(out, Part()), pytest.raises(BlockingIOError, match=r"is being written by process \d+ on host"):
        extract(tiny_vit(), photos, out, progress=False)
    extract(tiny_vit(), photos, out, progress=False)


def test_a_flipped_bit_is_found(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    extract(tiny_vit(), photos, out, progress=False)
    assert verify(out).problems == ()
    file = out / "shards" / "00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert [problem[0] for problem in verify(out).problems] == [file]


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
