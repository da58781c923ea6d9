"""Extraction: images in, a feature store out, nothing lost."""

import copy
import csv
import hashlib
import importlib
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFile
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers import tiny_vit
from vitbackbone.contract.features import Features
from vitbackbone.contract.fingerprint import weights_sha256
from vitbackbone.contract.geometry import Images
from vitbackbone.files import publish
from vitbackbone.images.preprocess import Preprocess
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.vit import ViT
from vitbackbone.store import FeatureStore, extract, route, verify
from vitbackbone.store.layout import INDEX
from vitbackbone.store.reader import ImageReader
from vitbackbone.store.source import list_inputs

TINY = ViTConfig(image_size=(32, 32), patch_size=8, dim=16, depth=2, num_heads=2, mlp_dim=32)
SIZES = [(121, 68), (40, 33), (32, 32), (9, 50), (1, 1), (64, 48), (30, 31)]  # (W, H)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are faster so, and much faster on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Watched(ViT):
    """Keeps what each forward was given, and how many shards lay in `out` then."""

    out: Path | None = None

    def forward_layers(self, images: Images, layers: Sequence[int], norm: bool = True) -> tuple[Features, ...]:
        if not hasattr(self, "seen"):
            self.seen: list[tuple[int, int]] = []
        markers = len(list(self.out.glob("done/*.json"))) if self.out else 0
        self.seen.append((len(images), markers))
        return super().forward_layers(images, layers, norm)


def backbone(**fields: object) -> Watched:
    torch.manual_seed(0)
    return Watched(replace(TINY, **fields)).eval()


def picture(seed: int, size: tuple[int, int] = (40, 33), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def save(path: Path, seed: int, size: tuple[int, int] = (40, 33), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size, mode).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of different sizes, in two classes."""
    for i, size in enumerate(SIZES):
        save(tmp_path / "photos" / ("cat" if i < 4 else "dog") / f"{i}.{'png' if i % 2 else 'jpg'}", i, size)
    return tmp_path / "photos"


def direct(model: ViT, path: Path, layer: int = -1, **options: object) -> Features:
    """The features of one image by itself."""
    with torch.no_grad():
        return model.forward_layers(model.preprocess(path, **options)[None], [layer])[0]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def objects(directory: Path) -> dict[str, bytes]:
    """The files of a store that are named by their content. Records also hold times."""
    return {name: data for name, data in contents(directory).items() if name.startswith("objects/")}


def features_of(directory: Path, shard: int) -> Path:
    """The file with the features of a shard."""
    name = FeatureStore(directory).table.names[shard]
    return directory / "objects" / name[:2] / name


# --- what is stored ---------------------------------------------------------------------------------------------------


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
    second = {name: tuple(tensor.shape) for name, tensor in load_file(features_of(out, 1)).items()}
    assert second == {
        "cls": (2, 16), "cls.0": (2, 16), "registers": (2, 2, 16), "registers.0": (2, 2, 16),
        "patches": (32, 16), "patches.0": (32, 16), "grid": (2, 2),
    }  # fmt: skip
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


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(16)
def test_a_folder_is_sorted_and_its_first_level_names_the_classes(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    names = ["dog/b.JPG", "cat/deep/er.png", "cat/a.jpeg", "loose.webp", "dog/.hidden.jpg", ".git/x.png"]
    for i, name in enumerate(names):
        save(root / name, i)
    (root / "empty").mkdir()
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / "again").symlink_to(root)  # a circle
    (root / "linked").symlink_to(root / "dog")
    store = extract(backbone(), root, tmp_path / "f")
    assert store.paths == ["cat/a.jpeg", "cat/deep/er.png", "dog/b.JPG", "linked/b.JPG", "loose.webp"]
    assert store.class_names == ["cat", "dog", "linked"]
    assert store.labels.tolist() == [0, 0, 1, 2, -1]
    np.testing.assert_array_equal(store.cls[2], store.cls[3])


def test_a_glob(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (photos / "cat" / "circle").symlink_to(photos)
    (photos / "cat" / "notes.txt").write_text("not an image")
    assert list_inputs("photos/**/*").paths == (
        "photos/cat/0.jpg", "photos/cat/1.png", "photos/cat/2.jpg", "photos/cat/3.png",
        "photos/dog/4.jpg", "photos/dog/5.png", "photos/dog/6.jpg",
    )  # fmt: skip
    store = extract(backbone(), str(photos / "*" / "[0-4].jpg"), tmp_path / "f")
    assert [Path(path).name for path in store.paths] == ["0.jpg", "2.jpg", "4.jpg"]
    assert store.labels.tolist() == [-1, -1, -1]
    assert store.class_names == []


def test_a_folder_whose_name_looks_like_a_glob(photos: Path) -> None:
    photos.rename(photos.with_name("holiday [2020]"))
    assert len(list_inputs(photos.with_name("holiday [2020]"))) == 7


def write_list(file: Path, rows: Sequence[tuple[object, ...]], header: tuple[str, ...] = ("path", "label")) -> Path:
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([header, *rows])
    else:
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(header)}), file)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_list_keeps_its_order_and_gives_labels(photos: Path, tmp_path: Path, suffix: str) -> None:
    absolute = photos / "cat" / "1.png"
    rows = [("dog/6.jpg", "wolf"), ("cat/0.jpg", None), (str(absolute), "cat"), ("missing.jpg", "wolf")]
    store = extract(backbone(), write_list(photos / f"list{suffix}", rows), tmp_path / "f")
    assert store.paths == ["dog/6.jpg", "cat/0.jpg", str(absolute)]
    assert store.class_names == ["cat", "wolf"]
    assert store.labels.tolist() == [1, -1, 0]
    assert store.labels.dtype == np.int64
    assert store.index["label"].to_pylist() == [1, -1, 0, 1]
    assert [path for path, _ in store.failed] == ["missing.jpg"]
    np.testing.assert_allclose(
        store.cls[0], direct(backbone(), photos / "dog/6.jpg").cls[0].numpy(), atol=1e-5
    )  # relative to the list's folder


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_whole_numbers_are_class_indices_already(tmp_path: Path, suffix: str) -> None:
    inputs = list_inputs(write_list(tmp_path / f"list{suffix}", [("a.jpg", 3), ("b.jpg", -1), ("c.jpg", None)]))
    assert inputs.labels == (3, -1, -1)
    assert inputs.class_names == ("0", "1", "2", "3")
    ids = write_list(tmp_path / f"ids{suffix}", [("a.jpg", 20200131)])
    with pytest.raises(ValueError, match=r"ids.*label 20200131: whole numbers are class indices"):
        list_inputs(ids)


def test_numbers_with_gaps_and_names_that_look_like_numbers(tmp_path: Path) -> None:
    gaps = write_list(tmp_path / "gaps.parquet", [("a.jpg", 1.0), ("b.jpg", float("nan"))])  # as pandas writes them
    assert list_inputs(gaps).labels == (1, -1)
    names = write_list(tmp_path / "names.csv", [("a.jpg", "007"), ("b.jpg", "3"), ("c.jpg", "None"), ("d.jpg", "")])
    assert list_inputs(names).class_names == ("007", "3", "None")
    assert list_inputs(names).labels == (0, 1, 2, -1)


def test_a_list_without_labels_and_with_short_rows(tmp_path: Path) -> None:
    assert list_inputs(write_list(tmp_path / "a.csv", [("a.jpg",)], ("path",))).labels == (-1,)
    assert list_inputs(write_list(tmp_path / "a.parquet", [("a.jpg",)], ("path",))).labels == (-1,)
    (tmp_path / "short.csv").write_text("\ufefflabel, path\ncat,a.jpg\n\ndog\n", encoding="utf-8")
    inputs = list_inputs(tmp_path / "short.csv")  # with a byte order mark, as Excel writes it
    assert inputs.paths == ("a.jpg", "")
    assert inputs.labels == (0, 1)
    assert inputs.class_names == ("cat", "dog")


def test_a_source_that_names_no_image_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "nowhere": "nowhere: no such file or folder; want a folder of images",
        tmp_path / "empty": "empty: found no image there; want a folder",
        tmp_path / "*.jpg": r"\.jpg: found no image there",
        tmp_path / "notes.md": "notes.md is neither a list nor an archive of images; want",
        write_list(tmp_path / "columns.csv", [("a.jpg",)], ("file",)): r"columns are \['file'\]; want 'path'",
        write_list(tmp_path / "columns.parquet", [("a.jpg",)], ("file",)): r"columns are \['file'\]; want 'path'",
        write_list(tmp_path / "types.parquet", [(7,)], ("path",)): "column 'path' holds 7",
        write_list(tmp_path / "bool.parquet", [("a.jpg", True)]): "label True is a bool",
        write_list(tmp_path / "none.csv", [], ("path",)): "none.csv: found no image there",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message):
            extract(backbone(), source, tmp_path / "f")
    assert not (tmp_path / "f").exists()


@pytest.mark.promise(16)
def test_any_name_that_a_file_can_have(tmp_path: Path) -> None:
    names = ['comma, quote".png', "line\nbreak.png", "ünïcode 🦆.png", os.fsdecode(b"latin\xe9.png")]
    for i, name in enumerate(names):
        save(tmp_path / "photos" / name, i)
    shown = sorted(name.encode("utf-8", "backslashreplace").decode() for name in names)
    store = extract(backbone(), tmp_path / "photos", tmp_path / "f", workers=1)
    assert sorted(store.paths) == shown
    assert store.failed == []
    with (tmp_path / "photos/list.csv").open("w", newline="", errors="surrogateescape") as lines:
        csv.writer(lines).writerows([["path"], *([name] for name in names)])
    assert extract(backbone(), tmp_path / "photos/list.csv", tmp_path / "g").failed == []


# --- files that cannot be read ----------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def spoil(folder: Path) -> dict[str, str]:
    """Bad files of every kind in `folder`; the start of the reason that each should get."""
    reasons: dict[str, str] = {}

    def bad(name: str, data: bytes, reason: str) -> None:
        (folder / name).write_bytes(data)
        reasons[name] = reason

    bad("0_empty.jpg", b"", "the file has 0 bytes")
    bad("1_text.jpg", b"hello, I am not a picture", "not an image of a known format (JPEG, PNG")
    for format, name in (("JPEG", "2_cut.jpg"), ("PNG", "2_cut.png"), ("BMP", "2_cut.bmp"), ("TIFF", "2_cut.tif")):
        picture(0, (64, 64)).save(folder / name, format)
        whole = (folder / name).read_bytes()
        bad(name, whole[: len(whole) // 2], "")
    bad("3_bomb.png", png_header(50_000, 50_000), "50000 x 50000 pixels are more than the limit")
    bad("3_warned.png", png_header(12_000, 9_000), "12000 x 9000 pixels are more than the limit")
    picture(0).convert("F").save(folder / "4_float.tif")
    reasons["4_float.tif"] = "a float image"
    picture(0).save(folder / "5_eps.jpg", "ICO")  # a format that is not on the list
    reasons["5_eps.jpg"] = "not an image of a known format"
    (folder / "7_folder.jpg").mkdir()
    reasons["7_folder.jpg"] = "is a directory"
    os.mkfifo(folder / "8_pipe.jpg")
    reasons["8_pipe.jpg"] = "not a regular file"
    (folder / "9_gone.jpg").symlink_to(folder / "nowhere")
    reasons["9_gone.jpg"] = "No such file or directory"
    return reasons


@pytest.mark.promise(7, 8, 15)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_a_row_with_its_reason_and_harms_no_other(photos: Path, tmp_path: Path, workers: int) -> None:
    reasons = spoil(photos / "cat")
    store = extract(backbone(), photos, tmp_path / "f", tokens=["cls", "patches"], batch_size=4, workers=workers)
    failed = dict(store.failed)
    assert set(failed) == {f"cat/{name}" for name in reasons}
    for name, reason in reasons.items():
        assert failed[f"cat/{name}"].startswith(reason), name
        assert failed[f"cat/{name}"]
        assert str(tmp_path) not in failed[f"cat/{name}"]
        assert "0x" not in failed[f"cat/{name}"]  # an address in memory differs from run to run
    assert store.paths == sorted(f"{'cat' if i < 4 else 'dog'}/{i}.{'png' if i % 2 else 'jpg'}" for i in range(7))
    assert store.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert len(store.index) == 7 + len(reasons)
    assert store.index["path"].to_pylist() == sorted([*store.paths, *failed])
    for i, path in enumerate(store.paths):
        features = direct(backbone(), photos / path)
        np.testing.assert_allclose(store.cls[i], features.cls[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(store.patches(i), features.patches[0].numpy(), atol=1e-5)


@pytest.mark.promise(10)
def test_a_bomb_is_refused_before_it_is_decoded(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    (photos / "cat" / "0.jpg").unlink()  # the others are decoded by Pillow
    save(photos / "cat" / "0.png", 0, (121, 68))
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (decoded.append(image.size), load(image))[1])
    (photos / "cat" / "bomb.png").write_bytes(png_header(12_000, 9_000))
    store = extract(backbone(), photos, tmp_path / "f")
    assert [path for path, _ in store.failed] == ["cat/bomb.png"]
    assert (121, 68) in decoded
    assert (12_000, 9_000) not in decoded


@pytest.mark.promise(14)
def test_a_long_thin_photo_of_which_nothing_is_cropped_is_refused(photos: Path, tmp_path: Path) -> None:
    save(photos / "cat" / "thin.png", 0, (1, 200_000))
    store = extract(backbone(), photos, tmp_path / "f", keep_aspect=True)
    assert store.failed[0][1].startswith("too long and thin: 1 x 200000 pixels become 32 x 6400000")
    assert set(store.index["reason"].to_pylist()) == {None, "too thin"}


@pytest.mark.promise(9)
def test_a_batch_and_a_shard_of_bad_files(photos: Path, tmp_path: Path) -> None:
    for i in range(4):
        (photos / "bad" / f"{i}.jpg").parent.mkdir(exist_ok=True)
        (photos / "bad" / f"{i}.jpg").write_bytes(b"?")  # sorts before cat and dog: the whole first shard
    store = extract(backbone(), photos, tmp_path / "f", tokens=["cls", "patches"], batch_size=2, shard_size=4)
    assert len(store.failed) == 4
    assert len(store.paths) == len(store.cls) == 7
    np.testing.assert_allclose(store.patches(0), direct(backbone(), photos / "cat/0.jpg").patches[0].numpy(), atol=1e-5)


@pytest.mark.promise(9)
def test_a_folder_of_bad_files_is_a_store_without_rows(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(b"?")
    model = backbone(num_registers=2)
    store = extract(model, tmp_path / "photos", tmp_path / "f", tokens=["cls", "registers", "patches"], shard_size=2)
    assert len(store) == 0
    assert store.cls.shape == (0, 16)
    assert store.registers.shape == (0, 2, 16)
    assert store.paths == []
    assert store.labels.shape == (0,)
    assert [path for path, _ in store.failed] == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(IndexError, match="image 0 of a store of 0 images"):
        store.patches(0)


@pytest.mark.promise(12)
def test_every_mode_of_pixels_is_read(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for mode, suffix in (("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("LA", "png"), ("P", "gif"), ("1", "png")):
        save(root / f"{mode}.{suffix}", 1, mode=mode)
    eight = np.arange(40 * 33).reshape(33, 40) % 251
    Image.fromarray(eight.astype(np.uint8)).save(root / "grey8.png")
    Image.fromarray((eight * 257).astype(np.uint16)).save(root / "grey16.png")
    store = extract(backbone(), root, tmp_path / "f")
    assert store.failed == []
    rows = dict(zip(store.paths, store.cls, strict=True))
    np.testing.assert_array_equal(rows["grey16.png"], rows["grey8.png"])  # scaled, not clipped
    for path, row in rows.items():
        np.testing.assert_allclose(row, direct(backbone(), root / path).cls[0].numpy(), atol=1e-5)


class Poisoned(ViT):
    """Gives a NaN for images that are bright."""

    def forward_layers(self, images: Images, layers: Sequence[int], norm: bool = True) -> tuple[Features, ...]:
        outputs = super().forward_layers(images, layers, norm)
        bright = torch.stack([image.mean() > 1 for image in images])
        return tuple(replace(f, cls=torch.where(bright[:, None], torch.nan, f.cls)) for f in outputs)


@pytest.mark.promise(22)
def test_features_that_are_not_finite_are_a_row_that_failed(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "white").save(photos / "cat" / "11.png")
    model = Poisoned(TINY).eval()
    store = extract(model, photos, tmp_path / "f", tokens=["cls", "patches"])
    assert store.failed == [("cat/11.png", "features are not finite (NaN or Inf) in torch.float32")]
    assert len(store) == len(store.cls) == 7
    features = direct(model, photos / "cat/2.jpg")
    np.testing.assert_allclose(store.cls[2], features.cls[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(store.patches(2), features.patches[0].numpy(), atol=1e-5)


@pytest.mark.promise(22)
def test_an_overflow_of_half_precision_is_flagged(photos: Path, tmp_path: Path) -> None:
    model = backbone()
    with torch.no_grad():
        model.norm.weight.fill_(1e6)
    store = extract(model, photos, tmp_path / "f", dtype="float16")
    assert len(store) == 0
    assert "not finite (NaN or Inf) in torch.float16" in store.failed[0][1]


@dataclass(frozen=True)
class Mistaken(Preprocess):
    def pixels(self, photo: object, *_: object) -> torch.Tensor:
        raise AttributeError("a mistake in the program")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_of_the_program_is_not_taken_for_a_bad_file(photos: Path, tmp_path: Path, workers: int) -> None:
    model = ViT(TINY, preprocess=Mistaken(image_size=(32, 32)))
    with pytest.raises(AttributeError, match="a mistake in the program"):
        extract(model, photos, tmp_path / "f", workers=workers)


def test_workers_are_not_sent_the_weights() -> None:
    reader = ImageReader(backbone().preprocess, None, False, "exact")
    assert len(pickle.dumps(reader)) < 1000


# --- done once, and done again ----------------------------------------------------------------------------------------


class Interrupted(Watched):
    limit = 2

    def forward_layers(self, images: Images, layers: Sequence[int], norm: bool = True) -> tuple[Features, ...]:
        if len(getattr(self, "seen", [])) == self.limit:
            raise KeyboardInterrupt
        return super().forward_layers(images, layers, norm)


def test_a_second_run_finishes_what_the_first_did_not(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stopped = Interrupted(TINY).eval()
    with pytest.raises(KeyboardInterrupt):
        extract(stopped, photos, tmp_path / "f", shard_size=2)
    assert not [name for name in contents(tmp_path / "f") if "unfinished" in name or "leases" in name]
    with pytest.raises(ValueError, match="is incomplete: 2 of 4 shards are missing; run the same extraction again"):
        FeatureStore(tmp_path / "f")

    model = backbone()
    extract(model, photos, tmp_path / "f", shard_size=2)
    assert [count for count, _ in model.seen] == [2, 1]
    again = backbone()
    extract(again, photos, tmp_path / "f", shard_size=2)
    assert not hasattr(again, "seen")
    extract(backbone(), photos, tmp_path / "whole", shard_size=2)
    assert objects(tmp_path / "f") == objects(tmp_path / "whole")


DAMAGE: dict[str, Callable[[bytes], bytes] | None] = {
    "cut": lambda data: data[:-7],
    "flipped bit": lambda data: data[:-7] + bytes([data[-7] ^ 1]) + data[-6:],
    "empty": lambda data: b"",
    "lost": None,
}


def spoiled(file: Path, kind: str) -> None:
    damage = DAMAGE[kind]
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))


@pytest.mark.promise(3)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_noticed_and_redone(photos: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out, shard_size=3)
    whole = objects(out)
    spoiled(features_of(out, 1), kind)
    model = backbone()
    store = extract(model, photos, out, shard_size=3)
    assert [count for count, _ in model.seen] == [3]
    assert {name: objects(out)[name] for name in whole} == whole
    assert verify(out).problems == ()
    assert len(store) == 7


@pytest.mark.promise(3)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_shard_that_waits_for_its_snapshot_is_checked_as_well(photos: Path, tmp_path: Path, kind: str) -> None:
    """Its record, and its features."""
    out = tmp_path / "f"
    for pattern in ("done/*.json", "objects/*/*.safetensors"):
        torch.manual_seed(0)
        stopped = Interrupted(TINY).eval()
        stopped.limit = 1
        with pytest.raises(KeyboardInterrupt):
            extract(stopped, photos, out, shard_size=3)
        spoiled(next(out.glob(pattern)), kind)
        model = backbone()
        extract(model, photos, out, shard_size=3)
        assert [count for count, _ in model.seen] == [3, 3, 1]
        assert verify(out).problems == ()
        shutil.rmtree(out)


@pytest.mark.promise(3)
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["snapshots/00000002.json", "latest.json"])
def test_a_damaged_record_of_the_last_snapshot_is_healed_by_its_copy(
    photos: Path, tmp_path: Path, kind: str, name: str
) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out, shard_size=3)
    whole = contents(out)
    spoiled(out / name, kind)
    assert [file for file, _ in verify(out).problems] == [name]
    assert len(FeatureStore(out)) == 7
    model = backbone()
    extract(model, photos, out, shard_size=3)
    assert not hasattr(model, "seen")
    assert contents(out) == whole


@pytest.mark.promise(6)
def test_another_run_is_refused_with_each_difference_named(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out)
    whole = contents(out)
    other = copy.deepcopy(backbone())
    with torch.no_grad():
        other.norm.bias[3] += 1e-6
    renamed = backbone()
    renamed.spec = replace(renamed.spec, name="other")
    squash = backbone()
    squash.preprocess = replace(squash.preprocess, crop_mode="squash")
    cases = [
        (other, {}, [r"model\.weights_sha256: the store has '[0-9a-f]{64}', asked is '[0-9a-f]{64}'"]),
        (renamed, {}, [r"model\.name: the store has 'vit', asked is 'other'"]),
        (squash, {}, [r"preprocessing\.crop_mode: the store has 'center', asked is 'squash'"]),
        (backbone(), {"dtype": "float16"}, ["dtype: the store has 'float32', asked is 'float16'"]),
        (backbone(), {"resolution": 64}, [r"preprocessing\.resolution: the store has None, asked is 64"]),
        (backbone(), {"keep_aspect": True}, [r"keep_aspect: the store has False, asked is True"]),
        (backbone(), {"shard_size": 7, "layers": [0]}, ["layers: the store has", "shard_size: .* 1000, asked is 7"]),
        (backbone(), {"tokens": ["patches"]}, [r"tokens: the store has \['cls'\], asked is \['patches'\]"]),
    ]
    for model, options, messages in cases:
        for message in messages:
            with pytest.raises(ValueError, match=message):
                extract(model, photos, out, **options)
    assert contents(out) == whole


@pytest.mark.promise(6)
def test_other_inputs_are_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out)
    whole = contents(out)
    save(tmp_path / "others" / "a.png", 9)
    with pytest.raises(
        ValueError, match=r"built from different inputs: none of its 7 .* such as 'cat/0\.jpg', is among the 1 "
    ):
        extract(backbone(), tmp_path / "others", out)
    relabelled = write_list(photos / "list.csv", [("cat/0.jpg", "dog"), ("cat/1.png", "cat")])
    with pytest.raises(
        ValueError, match=r"label changed since the store was made, for example 'cat/0\.jpg': 'cat' -> 'dog'"
    ):
        extract(backbone(), relabelled, out)
    assert contents(out) == whole


def test_the_order_of_tokens_and_the_batch_size_are_no_difference(photos: Path, tmp_path: Path) -> None:
    extract(backbone(), photos, tmp_path / "f", tokens=["cls", "patches"])
    model = backbone()
    extract(model, photos, tmp_path / "f", tokens=["patches", "cls"], batch_size=2)
    assert not hasattr(model, "seen")


def test_batches_of_a_shard_begin_small_so_that_the_forward_need_not_wait(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(50):
        picture(i).save(tmp_path / "photos" / f"{i:02}.png")
    model = backbone()
    extract(model, tmp_path / "photos", tmp_path / "f", batch_size=16, shard_size=30)
    assert [images for images, _ in model.seen] == [4, 8, 16, 2, 4, 8, 8]


@pytest.mark.promise(1)
@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_an_exception_leaves_neither_target_nor_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with publish(tmp_path / "target") as temporary:
            temporary.write_bytes(b"half")
            temporary.with_name("of the writer").touch()
            assert temporary.parent.parent == tmp_path  # of one file system, so that a rename is one step
            if moment == "writing":
                interrupt()

    if moment == "renaming":
        monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_publication_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    with pytest.raises(FileNotFoundError), publish(tmp_path / "target") as temporary:
        temporary.with_name("nowhere").read_bytes()
    assert contents(tmp_path) == {"target": b"old"}


# --- the store --------------------------------------------------------------------------------------------------------


def test_the_store_opens_without_reading_the_shards(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out, tokens=["cls", "patches"], shard_size=1)
    opened: list[str] = []
    module = importlib.import_module("vitbackbone.store.tensors")
    monkeypatch.setattr(module, "safe_open", lambda path, **o: (opened.append(path.name), safe_open(path, **o))[1])
    third, fifth = features_of(out, 3), features_of(out, 5)
    fifth.write_bytes(b"damaged")
    store = FeatureStore(out)
    assert len(store) == len(store.paths) == len(store.labels) == 7
    assert opened == []
    store.patches(3)
    store.patches(3)
    assert opened == [third.name]
    with pytest.raises(ValueError, match=rf"{fifth.name} is damaged .* run the same extraction again"):
        store.patches(5)


def test_the_features_of_one_shard_are_mapped_not_copied(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    store = extract(backbone(), photos, out, tokens=["cls", "patches"])
    address = store.cls.__array_interface__["data"][0]
    name = store.table.names[0]
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    assert any(start <= address < stop for start, stop in spans)
    store.cls[:] = 0  # the map is private: what is on disk stays
    assert FeatureStore(out).cls.any()


def test_a_store_pickles(photos: Path, tmp_path: Path) -> None:
    store = extract(backbone(), photos, tmp_path / "f", tokens=["patches"], layers=[0, 1]).layer(0)
    store.patches(0)
    copied = pickle.loads(pickle.dumps(store))  # noqa: S301  # our own
    np.testing.assert_array_equal(copied.patches(2), store.patches(2))


def test_a_store_says_what_it_has_not(photos: Path, tmp_path: Path) -> None:
    store = extract(backbone(num_registers=1), photos, tmp_path / "f")
    with pytest.raises(ValueError, match=r"has no patches, only cls; .* --tokens cls,patches"):
        store.patches(0)
    with pytest.raises(ValueError, match="has no registers"):
        _ = store.registers
    with pytest.raises(ValueError, match=r"has no layer 0; it stores \[1\] of 2"):
        store.layer(0)
    for directory in (photos, tmp_path / "nowhere", photos / "cat/0.jpg"):
        with pytest.raises(ValueError, match=r"is not a feature store: it has no latest\.json and no snapshots/"):
            FeatureStore(directory)


@pytest.mark.parametrize("use", [FeatureStore, verify, lambda out: extract(backbone(), out, out)])
def test_a_store_of_the_first_edition_is_refused(photos: Path, use: Callable[[Path], object]) -> None:
    (photos / "manifest.json").write_text(json.dumps({"schema": 2, "model": {}}))
    before = contents(photos)
    with pytest.raises(ValueError, match="is a store of the first edition, which this version does not read"):
        use(photos)
    assert contents(photos) == before


def test_a_folder_name_does_not_become_a_column(photos: Path, tmp_path: Path) -> None:
    store = extract(backbone(), photos, tmp_path / "run=1")
    assert store.index.schema.names == INDEX.names  # pyarrow reads run=1 as a partition unless told otherwise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": ["cls", "words"]}, "want at least one of cls, registers, patches"),
        ({"tokens": []}, "want at least one of cls, registers, patches"),
        ({"tokens": ["registers"]}, "vit has no register tokens"),
        ({"layers": [2]}, "want block indices from -2 to 1"),
        ({"layers": [-1, 1]}, "names a layer twice"),
        ({"dtype": "int8"}, "dtype='int8'; want one of float32, float16, bfloat16"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"shard_size": 0}, "shard_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"resolution": 0}, "resolution must be at least 1 pixel"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    photos: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        extract(backbone(), photos, tmp_path / "f", **options)
    assert not (tmp_path / "f").exists()


def test_a_backbone_without_cls_gives_patches(photos: Path, tmp_path: Path) -> None:
    model = backbone(cls=False, pool="mean")
    with pytest.raises(ValueError, match="vit has no CLS token"):
        extract(model, photos, tmp_path / "f")
    store = extract(model, photos, tmp_path / "f", tokens=["patches"])
    assert store.patches(0).shape == (16, 4, 4)


def test_the_fingerprint_of_the_weights_sees_every_change() -> None:
    model = backbone()
    base = weights_sha256(model)
    assert weights_sha256(copy.deepcopy(model)) == base
    assert weights_sha256(copy.deepcopy(model).bfloat16()) != base
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.blocks[1].mlp.fc2.bias[-1] = torch.nextafter(changed.blocks[1].mlp.fc2.bias[-1], torch.tensor(1.0))
    assert weights_sha256(changed) != base
    same_bytes = [  # under another name, in another shape, of another dtype
        torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(shape, dtype=dtype))})
        for name, shape, dtype in (
            ("a", (2, 3), torch.float16),
            ("b", (2, 3), torch.float16),
            ("a", (3, 2), torch.float16),
            ("a", (2, 3), torch.bfloat16),
        )
    ]
    assert len({weights_sha256(module) for module in same_bytes}) == 4


def test_a_store_can_be_read_by_whoever_may_read_other_files(photos: Path, tmp_path: Path) -> None:
    extract(backbone(), photos, tmp_path / "f", progress=False)
    reference = tmp_path / "reference"
    reference.write_bytes(b"")
    modes = {path.stat().st_mode for path in (tmp_path / "f").rglob("*") if path.is_file()}
    assert modes == {reference.stat().st_mode}


@pytest.mark.parametrize(("tokens", "images"), [(["cls"], 1000), (["cls", "patches"], 255)])
def test_a_shard_stays_small_enough_to_hold_in_memory(
    photos: Path, tmp_path: Path, tokens: list[str], images: int
) -> None:
    """256 MiB: a photo of 512 x 512 pixels has 4096 + 1 tokens of 64 float32 values."""
    store = extract(backbone(dim=64), photos, tmp_path / "f", tokens=tokens, resolution=512, progress=False)
    assert store.manifest["shard_size"] == images


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    for device in ("warp", "meta"):
        with pytest.raises(ValueError, match=f"device='{device}'"):
            extract(backbone(), photos, tmp_path / "f", device=device, progress=False)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("readable", [True, False])
def test_routes_are_compared_only_for_images_that_can_be_read(
    readable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    optimise = route.optimize
    monkeypatch.setattr(route, "optimize", lambda *given: (asked.append(given), optimise(*given))[1])
    for module in ("route", "run"):
        monkeypatch.setattr(f"vitbackbone.store.{module}.AUTO_FROM", 3)
    for i in range(3):
        save(tmp_path / "photos" / f"{i}.png", i)
        if not readable:
            (tmp_path / "photos" / f"{i}.png").write_bytes(b"no image")
    extract(tiny_vit(), tmp_path / "photos", tmp_path / "f", progress=False)
    assert len(asked) == readable
