"""Folders, globs and lists: every image is a row, other files do no harm, and skipped files are counted."""

import codecs
import importlib
import io
import os
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers import save_photo, tiny_vit
from vitbackbone.store import FeatureStore, export, extract
from vitbackbone.store.sources import folder as folder_module
from vitbackbone.store.sources.locate import Unreadable, locators, read_bytes
from vitbackbone.store.sources.source import list_inputs


def fill(root: Path, *names: str, format: str = "JPEG") -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, i // 256, 9)).save(root / name, format)
    return root


def reasons(source: Path | str) -> dict[str, str | None]:
    inputs = list_inputs(source)
    found: dict[str, str | None] = {}
    for path, at in zip(inputs.paths, locators(inputs.root, inputs.table, [-1] * len(inputs)), strict=True):
        try:
            read_bytes(at)
            found[path] = None
        except Unreadable as error:
            found[path] = error.reason
    return found


def said(source: Path | str, *words: str) -> bool:
    return any(all(word in note for word in words) for note in list_inputs(source).notes)


@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_files_are_images_by_name_or_content_and_the_others_are_counted(tmp_path: Path, pattern: str) -> None:
    root = fill(tmp_path / "in", *["a.jpg", "b.jfif", "c.jpe", "d.pjpeg", "e.JPG", "photo", "IMG.0001", "g.jpg~"])
    for format, ending in (("PNG", ".bin2"), ("GIF", ".1"), ("WEBP", ""), ("BMP", "x"), ("TIFF", ""), ("PPM", "")):
        fill(root, f"content-{format}{ending}", format=format)
    for name in ("f.heic", "g.avif", "h.jp2", "i.jxl"):
        (root / name).write_bytes(b"no picture")
    for name in ("notes.txt", "data.json", "film.mp4", "raw.dng", "odd.xyz", "nothing", "BMW"):
        (root / name).write_bytes(b"BMW, P5 and others" if name == "BMW" else b"II*\0 what is not an image")
    (root / "odd.xyz").write_bytes(b"text")
    (root / "nothing").write_bytes(b"")
    inputs = list_inputs(root / pattern if pattern else root)
    video = find_spec("av") is not None  # a row that says why it cannot be read
    assert len(inputs) == 8 + 6 + 4 + video
    assert [note for note in inputs.notes if note.startswith("6 files ignored")]


def test_what_is_no_plain_file_is_a_row_by_its_name_and_is_never_opened_for_its_content(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "a.jpg")
    for name in ("pipe.jpg", "pipe"):
        os.mkfifo(root / name)
    for name in ("socket.jpg", "socket"):
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(root / name))
    (root / "null.jpg").symlink_to("/dev/zero")
    (root / "gone.jpg").symlink_to("nowhere")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "folder.jpg").mkdir()
    assert reasons(root) == {
        "a.jpg": None,
        "folder.jpg": "not a file",
        "gone.jpg": "missing",
        "null.jpg": "not a file",
        "pipe.jpg": "not a file",
        "self.jpg": "unreadable",
        "socket.jpg": "not a file",
    }
    assert said(root, "2 files ignored")


def test_a_folder_that_cannot_be_read_is_said_and_the_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "in", "a/1.jpg", "locked/2.jpg", "z/3.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folder_module.os, "scandir", refuse)
    for source in (root, root / "**/*.jpg"):
        assert [path.split("in/")[-1] for path in list_inputs(source).paths] == ["a/1.jpg", "z/3.jpg"]
        assert said(source, "folders that cannot be read", "locked/ (Permission denied)")


def test_folders_nested_deeper_than_python_recurses_are_listed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    here = os.open(tmp_path / "in", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    file = os.open("deep.png", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, data.getvalue())
    os.close(file)
    os.close(here)
    for source in (tmp_path / "in", tmp_path / "in/**/*.png"):
        assert list(reasons(source).values()) == [None]
    fill(tmp_path / "in", "a.png", format="PNG")
    (tmp_path / "in" / ("e" * 250)).mkdir()
    here = os.open(tmp_path / "in" / ("e" * 250), os.O_RDONLY)
    for _ in range(20):  # beyond what one path may have
        os.mkdir("e" * 250, dir_fd=here)
        here = os.open("e" * 250, os.O_RDONLY, dir_fd=here)
    assert len(list_inputs(tmp_path / "in")) == 2
    assert said(tmp_path / "in", "folders that cannot be read", "File name too long")
    subprocess.run(["rm", "-r", tmp_path / "in"], check=True)  # deeper than Python's own removal recurses


def clique(root: Path, count: int) -> Path:
    """Folders that each hold a link to every other: as many paths as permutations."""
    for i in range(count):
        fill(root / f"f{i:02}", f"{i}.jpg")
    for i in range(count):
        for j in range(count):
            (root / f"f{i:02}" / f"to{j}").symlink_to(f"../f{j:02}")
    return root


@pytest.mark.parametrize("pattern", [None, "**/*.jpg", "**/**/*.jpg"])
def test_a_clique_of_links_lists_each_file_once(tmp_path: Path, pattern: str | None) -> None:
    root = clique(tmp_path / "in", 14)
    source = root / pattern if pattern else root
    assert len(list_inputs(source)) == 14
    assert said(source, "links", "not followed")


def test_a_link_to_the_source_itself_is_no_class(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "cat/0.jpg", "dog/1.jpg")
    (root / "again").symlink_to(root)
    assert list_inputs(root).paths == ("cat/0.jpg", "dog/1.jpg")
    assert said(root, "circles", "not followed")


def test_a_clique_outside_the_source_ends_and_loses_no_file(tmp_path: Path) -> None:
    pool = clique(tmp_path / "pool", 12)
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "way").symlink_to(pool / "f00")
    names = {Path(path).name for path in list_inputs(tmp_path / "in").paths}
    assert names == {f"{i}.jpg" for i in range(12)}
    assert len(list_inputs(tmp_path / "in")) < 30


def test_links_to_folders_outside_and_to_hidden_ones_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "pool", "x/1.jpg")
    root = fill(tmp_path / "in", ".pool/2.jpg", "cat/0.jpg")
    (root / "cat" / "more").symlink_to(root / ".pool")
    (root / "cat" / "out").symlink_to(tmp_path / "pool")
    (root / "dog").symlink_to(tmp_path / "pool")
    inputs = list_inputs(root)
    assert inputs.paths == ("cat/0.jpg", "cat/more/2.jpg", "cat/out/x/1.jpg", "dog/x/1.jpg")
    assert inputs.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("**/*.jpg", ["a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg", "top.jpg"]),
        ("**/**/*.jpg", ["a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg", "top.jpg"]),
        ("**", ["a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg", "top.jpg"]),
        ("a/**/*.jpg", ["a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg"]),
        ("**/b/**/*.jpg", ["a/b/2.jpg", "a/b/c/3.jpg"]),
        ("**/b/*.jpg", ["a/b/2.jpg"]),
        ("*/[12].jpg", ["a/1.jpg"]),
        ("**/[!12].jpg", ["a/b/c/3.jpg"]),
        ("**/.hid/*.jpg", [".hid/4.jpg"]),
    ],
)
def test_a_glob_lists_each_match_once(
    tmp_path: Path, pattern: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "top.jpg", "a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg", ".hid/4.jpg")
    assert list(list_inputs(pattern).paths) == wanted
    assert [os.path.relpath(path, tmp_path) for path in list_inputs(str(tmp_path / pattern)).paths] == wanted


def test_a_glob_of_a_fixed_depth_lists_no_file_through_a_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "in", "cat/1.jpg", "cat/more/2.jpg")
    (root / "cat" / "back").symlink_to(root)
    monkeypatch.chdir(root)
    assert len(list_inputs("../in/cat/*.jpg")) == 1
    for pattern, count in (("*/*.jpg", 1), ("*/*/*.jpg", 1), ("*/*/*/*.jpg", 0)):
        if count:
            assert len(list_inputs(root / pattern)) == count
            assert list_inputs(root / pattern).notes == ()
        else:
            with pytest.raises(ValueError, match="found no image there"):
                list_inputs(root / pattern)
    assert len(list_inputs(root / "*/*")) == 1
    assert list_inputs(root / "*/*").notes == ()


@pytest.mark.parametrize("inside", ["photos/features", "photos"])
def test_a_store_in_its_own_source_is_left_out_and_runs_again(tmp_path: Path, inside: str) -> None:
    root = fill(tmp_path / "photos", "cat/1.jpg", "dog/2.jpg")
    out = tmp_path / inside
    first = extract(tiny_vit(), root, out, progress=False)
    (out / "objects" / "picture.png").write_bytes((root / "cat/1.jpg").read_bytes())
    again = extract(tiny_vit(), root, out, progress=False)
    assert first.paths == again.paths == ["cat/1.jpg", "dog/2.jpg"]
    assert again.class_names == ["cat", "dog"]
    assert said(root, "feature store")


def test_a_run_over_names_and_times_of_every_kind(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"in \xe9 \\xe9")
    odd = os.fsdecode(b"caf\xe9")
    names = [f"{odd}/1.png", f"{'n' * 251}.png", "new\nline/2.png", "old.png", "far.png", "epoch.png"]
    for i, name in enumerate(names):
        save_photo(root / name, seed=i)
    for name, time in (("far.png", 10413792000), ("old.png", -5_000_000_000), ("epoch.png", 0)):
        os.utime(root / name, (time, time))
    store = extract(tiny_vit(), root, tmp_path / "out", progress=False)
    assert store.failed == []
    assert len(store) == 6
    assert store.class_names == ["caf\\udce9", "new\nline"]
    assert FeatureStore(tmp_path / "out").labels.tolist() == store.labels.tolist()
    assert FeatureStore(tmp_path / "out").snapshot.root == str(root)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").rglob("*.safetensors")}
    extract(tiny_vit(), root, tmp_path / "out", progress=False)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").rglob("*.safetensors")}


def test_a_store_in_a_folder_whose_name_is_not_utf8_is_read(tmp_path: Path) -> None:
    for i in range(3):
        save_photo(tmp_path / "in" / f"{i}.png", 16 + 8 * i, seed=i)
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    plain, other = (
        extract(tiny_vit(), tmp_path / "in", out, tokens=("cls", "patches"), keep_aspect=True, progress=False)
        for out in (tmp_path / "out", odd)
    )
    assert np.array_equal(plain.cls, other.cls)
    assert all(np.array_equal(plain.patches(i), other.patches(i)) for i in range(3))
    export(plain, "parquet", odd / "table")
    if find_spec("lance") is not None:
        with pytest.raises(ValueError, match="UTF-8; give another output folder"):
            export(plain, "lance", odd / "lance")


@pytest.mark.parametrize("change", ["vanishes", "grows", "becomes a pipe", "shrinks"])
def test_a_file_that_changes_during_the_run_is_a_row_that_failed(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        save_photo(tmp_path / "in" / f"{i}.png", seed=i)
    file = tmp_path / "in" / "1.png"
    module = importlib.import_module("vitbackbone.store.run")
    pull = module.pull

    def changed(*args: object) -> object:
        data = file.read_bytes()
        file.unlink()
        if change in ("grows", "shrinks"):
            file.write_bytes(data * 2 if change == "grows" else data[:9])
        elif change == "becomes a pipe":
            os.mkfifo(file)
        return pull(*args)

    monkeypatch.setattr(module, "pull", changed)
    store = extract(tiny_vit(), tmp_path / "in", tmp_path / "out", progress=False)
    assert store.paths == ["0.png", "2.png"]
    assert [path for path, _ in store.failed] == ["1.png"]


# --- lists ------------------------------------------------------------------------------------------------------------


def csv_of(tmp_path: Path, text: str, encoding: str = "utf-8", mark: bytes = b"") -> Path:
    (tmp_path / "list.csv").write_bytes(mark + text.encode(encoding))
    return tmp_path / "list.csv"


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        (["cat ", " dog", "\tcat"], ("cat", "dog"), (0, 1, 0)),
        (["10", "9", "-1"], tuple(map(str, range(11))), (10, 9, -1)),
        (["10.0", "9.0", ""], tuple(map(str, range(11))), (10, 9, -1)),  # as pandas writes whole numbers with gaps
        (["10.5", "9.5", "100"], ("9.5", "10.5", "100"), (1, 0, 2)),
        (["010", "9", "0100"], ("9", "010", "0100"), (1, 0, 2)),
        (["b", "10", "9"], ("10", "9", "b"), (2, 0, 1)),
        (["  ", "x", ""], ("x",), (-1, 0, -1)),
    ],
)
def test_cells_are_stripped_and_labels_ordered(
    tmp_path: Path, labels: list[str], classes: tuple[str, ...], indices: tuple[int, ...]
) -> None:
    lines = [f" {i}.jpg ,{label}\n" for i, label in enumerate(labels)]
    inputs = list_inputs(csv_of(tmp_path, " path , label \n" + "".join(lines)))
    assert inputs.paths == ("0.jpg", "1.jpg", "2.jpg")
    assert (inputs.class_names, inputs.labels) == (classes, indices)


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE)],
)
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, encoding: str, mark: bytes) -> None:
    assert list_inputs(csv_of(tmp_path, "path,label\r\nü.jpg,a\r\n", encoding, mark)).paths == ("ü.jpg",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.jpg,1\nb.jpg,200000\n", r"list\.csv, row 3: label 200000"),
        ('path,label\n"a.jpg,cat\nb.jpg,dog\n', r"list\.csv: line \d: .*quote"),
        ('path,label\n"a"b.jpg,cat\n', r"list\.csv: line 2: .*quote"),
        ("file,label\na.jpg,1\n", r"list\.csv: the columns are \['file', 'label'\]; want 'path'"),
        ("path,path\na.jpg,b.jpg\n", r"list\.csv: 2 columns are named 'path'"),
    ],
)
def test_a_wrong_list_is_an_error_that_names_the_file_and_the_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_inputs(csv_of(tmp_path, text))


def test_quoted_cells_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    inputs = list_inputs(csv_of(tmp_path, 'path,label\n"a,""b""\nc.jpg","x\ny"\nd.jpg,z\n'))
    assert inputs.paths == ('a,"b"\nc.jpg', "d.jpg")
    assert inputs.class_names == ("x\ny", "z")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_lists_by_a_glob_are_one_list_and_paths_start_at_each_ones_folder(tmp_path: Path, ending: str) -> None:
    for i, (folder, labels) in enumerate({"one": ["b", "c"], "two": ["a", "b"]}.items()):
        fill(tmp_path / folder, "x.jpg", "y.jpg")
        made = pa.table({"path": ["x.jpg", str(tmp_path / folder / "y.jpg")], "label": labels})
        if ending == "csv":
            made.to_pandas().to_csv(tmp_path / folder / f"{i}.csv", index=False)
        else:
            pq.write_table(made, tmp_path / folder / f"{i}.parquet")
    source = str(tmp_path / "*" / f"*.{ending}")
    inputs = list_inputs(source)
    assert inputs.class_names == ("a", "b", "c")
    assert inputs.labels == (1, 2, 0, 1)
    assert list(reasons(source).values()) == [None] * 4


@pytest.mark.parametrize("values", [[True, False], [0.5, 1.5], [[1], [2]], [b"x", b"y"]])
def test_a_label_of_another_type_is_an_error_that_names_the_row(tmp_path: Path, values: list[object]) -> None:
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"], "label": values}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"list\.parquet, row 1: label .*want text or whole numbers"):
        list_inputs(tmp_path / "list.parquet")


def test_names_of_folders_may_look_like_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "run:1", "a.jpg", "b.jpg")
    pq.write_table(pa.table({"path": ["a.jpg"]}), (tmp_path / "run:1" / "list.parquet").open("wb"))
    store = extract(tiny_vit(), "run:1", "out:1", progress=False)
    assert store.paths == ["a.jpg", "b.jpg"]
    assert np.isfinite(FeatureStore("out:1").cls).all()
    assert list_inputs("run:1/list.parquet").paths == ("a.jpg",)
