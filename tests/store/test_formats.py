"""Exports: each format is opened by its own reader and holds the features of the store, to the bit."""

import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import cases, save_photo, tiny_vit
from vitbackbone.cli import main
from vitbackbone.cli.arguments import parser
from vitbackbone.store import FORMATS, FeatureStore, export, extract
from vitbackbone.store.formats import exporting

KINDS = ["cls", "registers", "patches"]


def make(folder: Path, dtype: str = "float16", **fields: Any) -> FeatureStore:
    """A store of 7 images of several sizes, one of which fails, and one of which is a copy."""
    for i in range(6):
        save_photo(folder / "photos" / ("cats" if i % 2 else "dogs") / f"{i} ü.png", 20 + 3 * i, 31, seed=i)
    data = (folder / "photos/dogs/0 ü.png").read_bytes()
    (folder / "photos/dogs/copy.png").write_bytes(data)
    (folder / "photos/dogs/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return extract(
        tiny_vit(num_registers=2),
        folder / "photos",
        folder / "store",
        tokens=fields.pop("tokens", KINDS),
        dtype=dtype,
        shard_size=3,
        keep_aspect=True,
        resolution=16,
        progress=False,
        **fields,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make(tmp_path_factory.mktemp("store"))


def equal(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def patch_rows(store: FeatureStore, i: int) -> np.ndarray:
    """The patches of an image, (h, w, D)."""
    return store.patches(i).transpose(1, 2, 0)


# ---- each format in its reader ------------------------------------------------------------------------------------


def check_table(store: FeatureStore, rows: list[dict[str, Any]]) -> None:
    """Compare the rows of a table with the store. `patches` and `registers` may be flat."""
    assert [row["path"] for row in rows] == store.paths
    assert [row["label"] for row in rows] == store.labels.tolist()
    assert [row["class"] for row in rows] == [store.class_names[label] for label in store.labels]
    for i, row in enumerate(rows):
        equal(np.array(row["cls"], np.float16), store.cls[i])
        equal(np.array(row["registers"], np.float16).reshape(2, -1), store.registers[i])
        grid = tuple(int(side) for side in row["grid"])
        assert grid == store.patches(i).shape[1:]
        equal(np.array(row["patches"], np.float16).reshape(*grid, -1), patch_rows(store, i))


def nested(value: Any) -> Any:
    return [nested(each) for each in value] if isinstance(value, list | np.ndarray) else value


def by_pandas(folder: Path) -> list[dict[str, Any]]:
    table = import_module("pandas").read_parquet(folder)
    assert table["cls"][0].dtype == np.float16
    return [{name: nested(value) for name, value in row.items()} for row in table.to_dict("records")]


def by_polars(folder: Path) -> list[dict[str, Any]]:
    polars = import_module("polars")
    table = polars.read_parquet(folder / "*.parquet")
    assert isinstance(table.schema["cls"], polars.Array)
    return table.to_dicts()


def by_duckdb(folder: Path) -> list[dict[str, Any]]:
    duckdb = import_module("duckdb")
    files = f"read_parquet('{folder}/*.parquet')"
    distances = duckdb.sql(f"SELECT array_distance(cls::FLOAT[16], cls::FLOAT[16]) FROM {files} LIMIT 1").fetchall()
    assert distances == [(0,)]
    found = duckdb.sql(f"SELECT * FROM read_parquet('{folder}/*.parquet', filename=true) ORDER BY filename")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def by_lance(folder: Path) -> list[dict[str, Any]]:
    pytest.importorskip("lance")
    table = import_module("lance").dataset(folder / "features.lance").to_table()
    assert table.schema.field("cls").type.value_type == "halffloat"
    return table.to_pylist()


def by_lancedb(folder: Path) -> list[dict[str, Any]]:
    pytest.importorskip("lancedb")
    return import_module("lancedb").connect(folder).open_table("features").to_arrow().to_pylist()


TABLES: dict[str, tuple[str, Callable[[Path], list[dict[str, Any]]]]] = {
    "pandas": ("parquet", by_pandas),
    "polars": ("parquet", by_polars),
    "duckdb": ("parquet", by_duckdb),
    "lance": ("lance", by_lance),
    "lancedb": ("lance", by_lancedb),
}


@pytest.mark.parametrize(
    "reader", [pytest.param(each, marks=[pytest.mark.slow] * (each == "lancedb")) for each in TABLES]
)
def test_tables_hold_the_features(store: FeatureStore, reader: str, tmp_path: Path) -> None:
    pytest.importorskip(reader)
    format, read = TABLES[reader]
    export(store, format, tmp_path / "out")
    check_table(store, read(tmp_path / "out"))


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_arrays_hold_the_features(format: str, dtype: str, store: FeatureStore, tmp_path: Path) -> None:
    library = pytest.importorskip({"zarr": "zarr", "hdf5": "h5py"}[format])
    if dtype != "float16":
        store = make(tmp_path, dtype)
    export(store, format, tmp_path / "out")
    if format == "zarr":
        file = library.open_group(tmp_path / "out/features.zarr", mode="r")
        paths, classes = file["path"][:].tolist(), file["class"][:].tolist()
        assert file.metadata.zarr_format == 3
    else:
        file = library.File(tmp_path / "out/features.h5")
        paths, classes = (file[name].asstr()[:].tolist() for name in ("path", "class"))
    assert paths == store.paths
    assert classes == [store.class_names[label] for label in store.labels]
    equal(file["label"][:], store.labels)
    equal(file["cls"][:], store.cls)
    equal(file["registers"][:], store.registers)
    equal(file["width"][:], store.images["width"].to_numpy())
    offsets, grid = file["offsets"][:], file["grid"][:]
    equal(grid, store.grids)
    assert file["patches"].shape[0] == offsets[-1]
    for i in range(len(store)):
        found = file["patches"][offsets[i] : offsets[i + 1]].reshape(*grid[i], -1)
        equal(found, patch_rows(store, i))


def test_webdataset_holds_the_features(store: FeatureStore, tmp_path: Path) -> None:
    files = export(store, "webdataset", tmp_path / "out")
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        with tarfile.open(file) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                opened = tar.extractfile(member)
                assert opened is not None
                found.setdefault(key, {})[ending] = opened.read()
    assert list(found) == sorted(found)
    for i, sample in enumerate(found.values()):
        assert json.loads(sample["json"])["path"] == store.paths[i]
        equal(np.load(io.BytesIO(sample["npy"]), allow_pickle=False), store.cls[i])
        equal(np.load(io.BytesIO(sample["registers.npy"]), allow_pickle=False), store.registers[i])
        equal(np.load(io.BytesIO(sample["patches.npy"]), allow_pickle=False), patch_rows(store, i))
    assert len(found) == len(store)


@pytest.mark.slow
def test_webdataset_itself_reads_it(store: FeatureStore, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    files = export(store, "webdataset", tmp_path / "out")
    samples = list(webdataset.WebDataset([str(file) for file in files], shardshuffle=False).decode())
    assert [sample["json"]["path"] for sample in samples] == store.paths
    equal(np.stack([sample["npy"] for sample in samples]), store.cls)


def test_npy_is_read_as_clip_retrieval_reads_it(store: FeatureStore, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export(store, "npy", tmp_path / "out")
    arrays = sorted((tmp_path / "out/img_emb").glob("*.npy"))
    equal(np.concatenate([np.load(file, mmap_mode="r") for file in arrays]), store.cls)
    tables = sorted((tmp_path / "out/metadata").glob("*.parquet"))
    assert [path for file in tables for path in pq.read_table(file)["image_path"].to_pylist()] == store.paths


@pytest.mark.parametrize("format", cases(FORMATS, ["hdf5"]))
def test_bfloat16_and_single_kinds_are_exported(format: str, tmp_path: Path) -> None:
    library = FORMATS[format][1]
    if library is not None:
        pytest.importorskip(library)
    store = make(tmp_path, "bfloat16", tokens=["cls"])
    assert export(store, format, tmp_path / "out")
    if format == "hdf5":
        equal(import_module("h5py").File(tmp_path / "out/features.h5")["cls"][:], store.cls)
    assert store.cls.dtype == np.float32
    assert torch.equal(torch.from_numpy(store.cls), torch.from_numpy(store.cls).bfloat16().float())


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_store_without_features_is_no_export(format: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/bad.png").write_bytes(b"?")
    store = extract(tiny_vit(), tmp_path / "photos", tmp_path / "store", progress=False)
    with pytest.raises(ValueError, match=r"no image of .*store has features.*FeatureStore\('.*store'\)\.failed"):
        export(store, format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- whole or not at all ------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("format", cases((each for each in FORMATS if each != "lance"), ["webdataset"]))  # random names
def test_an_export_again_is_the_same_and_nothing_else(store: FeatureStore, format: str, tmp_path: Path) -> None:
    export(store, format, tmp_path / "out")
    before = content(tmp_path / "out")
    export(store, format, tmp_path / "out")
    after = content(tmp_path / "out")
    assert list(after) == list(before)
    if format != "hdf5":  # it stores times
        assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("format", cases(FORMATS, ["npy"]))
def test_an_export_of_a_grown_store_replaces_the_older_one(format: str, tmp_path: Path) -> None:
    library = FORMATS[format][1]
    if library is not None:
        pytest.importorskip(library)
    old = make(tmp_path, tokens=["cls"])
    export(old, format, tmp_path / "out")
    for i in range(8, 16):
        save_photo(tmp_path / "photos/cats" / f"{i}.png", 20, 31, seed=i)
    grown = make(tmp_path, tokens=["cls"])
    export(grown, format, tmp_path / "out")
    export(grown, format, tmp_path / "new")
    assert len(grown) == len(old) + 8
    if format != "lance":
        assert list(content(tmp_path / "out")) == list(content(tmp_path / "new"))
    else:
        assert len(by_lance(tmp_path / "out")) == len(grown)
    record = json.loads((tmp_path / "out/_export.json").read_text())
    assert record["snapshot"] == grown.snapshot.number


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.promise(1)
def test_an_export_that_fails_leaves_the_older_one(
    store: FeatureStore, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(exporting, "_exchanged", lambda *_: False)
    export(store, "npy", tmp_path / "out")
    before = content(tmp_path / "out")
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(np, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            export(store, "npy", tmp_path / "out")
    assert content(tmp_path / "out") == before
    export(store, "parquet", tmp_path / "out")
    assert set(content(tmp_path / "out")) == {"_export.json", "00000.parquet", "00001.parquet", "00002.parquet"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.promise(2)
def test_an_export_that_is_killed_leaves_the_older_one(tmp_path: Path) -> None:
    store = make(tmp_path)
    export(store, "npy", tmp_path / "out")
    before = content(tmp_path / "out")
    code = (
        "import os, signal, sys, numpy\n"
        "from vitbackbone.store import FeatureStore, export\n"
        "saves = []\n"
        "def save(*_, **__):\n"
        "    saves.append(1)\n"
        "    if len(saves) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "numpy.save = save\n"
        "export(FeatureStore(sys.argv[1]), 'npy', sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert content(tmp_path / "out") == before
    export(store, "npy", tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_exports_at_the_same_time_leave_each_other_alone(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_place = exporting._take_place

    def others_come_first(temporary: Path, folder: Path) -> None:
        monkeypatch.setattr(exporting, "_take_place", take_place)
        export(store, "npy", folder)
        export(store, "npy", folder.with_suffix(""))
        take_place(temporary, folder)

    monkeypatch.setattr(exporting, "_take_place", others_come_first)
    (tmp_path / ".out.mine.tmp").mkdir()
    files = export(store, "parquet", tmp_path / "out.v2")
    assert len(files) == 3
    assert set(files) | {tmp_path / "out.v2/_export.json"} == set((tmp_path / "out.v2").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {".out.mine.tmp", "out", "out.v2"}


def test_an_export_through_a_link_replaces_what_it_leads_to(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for format in ("npy", "parquet"):
        files = export(store, format, tmp_path / "link")
        assert all(file.parent.is_relative_to(tmp_path / "link") and file.is_file() for file in files)
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {*(file.name for file in files), "_export.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link"}
    monkeypatch.chdir(tmp_path / "disk")
    export(store, "csv", ".")
    assert (tmp_path / "disk/00000.csv").is_file()


@pytest.mark.parametrize("strange", ["notes.txt", "img_emb/img_emb_7.npy", "link"])
def test_a_folder_with_other_files_is_not_replaced(store: FeatureStore, strange: str, tmp_path: Path) -> None:
    export(store, "npy", tmp_path / "out")
    file = tmp_path / "out" / strange
    if strange == "link":
        file.symlink_to(tmp_path)
    else:
        file.write_text("mine")
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match="has files that no export wrote"):
        export(store, "npy", tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_the_command_takes_the_folder_either_way(store: FeatureStore, tmp_path: Path) -> None:
    command, options = ["export", str(store.directory)], ["--format", "parquet", "-q"]
    assert main([*command, *options, "--out", str(tmp_path / "a")]) == 0
    assert main([*command, str(tmp_path / "b"), *options]) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert main([*command, str(tmp_path / "b"), *options, "--out", str(tmp_path / "a")]) == 2


def test_the_command_knows_every_format() -> None:
    action = next(each for each in parser().commands["export"]._actions if each.dest == "format")
    assert list(action.choices or []) == list(FORMATS)


def test_a_missing_library_is_named_with_its_extra(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("zarr", "h5py", "lance"):
        monkeypatch.setitem(sys.modules, library, None)
    for format, extra in (("zarr", "zarr"), ("hdf5", "hdf5"), ("lance", "lance")):
        with pytest.raises(ImportError, match=rf"pip install 'vitbackbone\[{extra}\]'"):
            export(store, format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format 'xml'; want one of npy"):
        export(store, "xml", tmp_path / "out")
