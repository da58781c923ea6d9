"""Files that cannot be read are rows with a reason, and harm no other."""

import os
import pickle
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from tests.store.small import TINY, backbone, direct, picture, save
from vitbackbone.contract.features import Features
from vitbackbone.contract.geometry import Images
from vitbackbone.images import Photo
from vitbackbone.images.preprocess import Preprocess
from vitbackbone.model.vit import ViT
from vitbackbone.store import extract, list_inputs
from vitbackbone.store.sources.locate import Locator, Unreadable, content_sha256, locators
from vitbackbone.store.workers.reader import ImageReader


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


@dataclass(frozen=True)
class Noted(Preprocess):
    def pixels(self, photo: Photo, *options: Any) -> torch.Tensor:
        THREADS.append(threading.get_ident())
        time.sleep(0.01)
        warnings.simplefilter("error")  # as a decoder that other threads interrupt
        return super().pixels(photo, *options)


THREADS: list[int] = []


@pytest.mark.promise(21)
@pytest.mark.parametrize("count", [1, 3])
def test_the_computing_process_reads_in_as_many_threads_as_it_computes_with(
    photos: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """In order, with bad files among them, and without a trace in the warnings of the process."""
    spoil(photos)
    inputs = list_inputs(photos)
    asked = [(at, content_or_none(at)) for at in locators(inputs.root, inputs.table, [-1] * len(inputs))]
    reader = ImageReader(Noted(image_size=(32, 32)), None, False, "exact")
    expected = [reader[one] for one in asked]
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    THREADS.clear()
    with warnings.catch_warnings():
        before = list(warnings.filters)
        found = reader.__getitems__(asked)
        assert count == 1 or warnings.filters == before
    assert (len(set(THREADS)) > 1) == (count > 1)
    assert [outcome for outcome, _ in found] == [outcome for outcome, _ in expected]
    assert any(outcome.reason for outcome, _ in found)
    assert all(a is b is None or torch.equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))


def content_or_none(at: Locator) -> bytes | None:
    try:
        return content_sha256(at)
    except Unreadable:
        return None
