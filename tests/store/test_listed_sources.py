"""Sources: folders, globs and lists, with their labels."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from tests.store.small import backbone, direct, save, write_list
from vitbackbone.store import extract
from vitbackbone.store.sources.source import list_inputs


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
