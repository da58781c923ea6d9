"""Files of a store that somebody edited or lost, and places where none can be written: a sentence that names them."""

import copy
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from tests.helpers import save_photo, tiny_vit
from vitbackbone.files import LocalStorage
from vitbackbone.store import FeatureStore, export, extract, verify
from vitbackbone.store.layout import LATEST, snapshot_key
from vitbackbone.store.objects import put_json, put_table
from vitbackbone.store.records import Part, seal
from vitbackbone.store.snapshots import latest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, and a store of two shards beside it."""
    root = tmp_path_factory.mktemp("made")
    for i in range(4):
        save_photo(root / "photos" / "ab"[i % 2] / f"{i}.png", seed=i)
    extract(tiny_vit(), root / "photos", root / "out", shard_size=2, tokens=["cls", "patches"], progress=False)
    return root


@pytest.fixture
def store(made: Path) -> Any:
    """The store, whose files are put back afterwards."""
    files = {file: file.read_bytes() for file in (made / "out").rglob("*") if file.is_file()}
    yield made / "out"
    for file in (made / "out").rglob("*"):
        if file.is_file() and file not in files:
            file.unlink()
    for file, data in files.items():
        if file.is_dir():
            file.rmdir()
        file.write_bytes(data)


def again(store: Path) -> FeatureStore:
    options = {"shard_size": 2, "tokens": ["cls", "patches"], "progress": False}
    return extract(tiny_vit(), store.parent / "photos", store, **options)


def edited(record: dict[str, Any], *keys: str, value: object) -> dict[str, Any]:
    whole = copy.deepcopy(record)
    part = whole
    for key in keys[:-1]:
        part = part[key]
    if value is None:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    return whole


WRONG: list[tuple[tuple[str, ...], object]] = [
    (("layers",), None),
    (("layers",), "2"),
    (("layers",), []),
    (("layers",), [99]),
    (("layers",), [True]),
    (("tokens",), ["words"]),
    (("tokens",), []),
    (("dtype",), "float64"),
    (("shard_size",), 0),
    (("shard_size",), "2"),
    (("runtime",), None),
    (("runtime", "precision"), "fp4"),
    (("model", "spec"), None),
    (("model", "spec", "depth"), "deep"),
    (("model", "spec", "dims"), [1]),
    (("model", "weights_sha256"), 7),
    (("preprocessing", "resolution"), "large"),
]


def resealed(store: Path, **changes: object) -> None:
    """Give the last snapshot other fields, as somebody who knows how records are sealed."""
    place = LocalStorage(store)
    last = latest(place)
    assert last is not None
    for key in (snapshot_key(last.number), LATEST):
        (store / key).write_bytes(seal(last.model_copy(update=changes)))


@pytest.mark.parametrize(("keys", "value"), WRONG)
def test_a_wrong_key_of_the_manifest_is_named(store: Path, keys: tuple[str, ...], value: object) -> None:
    wrong = edited(FeatureStore(store).manifest, *keys, value=value)
    resealed(store, manifest=put_json(LocalStorage(store), wrong))
    for use in (FeatureStore, again):
        with pytest.raises(ValueError, match=rf"manifest has (?s:.)*{keys[0]}"):
            use(store)
    assert any("manifest has" in problem for _, problem in verify(store).problems)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"null", b"[]", b"[" * 100_000, b'{"schema": 3}', b"\0" * 99])
def test_a_record_that_is_no_record_is_named(store: Path, data: bytes) -> None:
    for name in ("latest.json", "snapshots/00000002.json"):
        (store / name).write_bytes(data)
    for use in (FeatureStore, again):
        with pytest.raises(
            ValueError, match=r"snapshots/00000002\.json (?s:.*) and so is its copy .*; delete it to go back"
        ):
            use(store)
    assert [file for file, _ in verify(store).problems] == ["latest.json"]
    (store / "snapshots/00000002.json").unlink()  # as the sentence says
    assert len(again(store)) == 4


def every_file(store: Path) -> list[Path]:
    return sorted(file for file in store.rglob("*") if file.is_file())


def test_any_flipped_bit_and_any_lost_file_is_noticed(store: Path) -> None:
    """Each file of the store is damaged in turn: records, tables, features."""
    assert verify(store).problems == ()
    random = np.random.default_rng(0)
    for file in every_file(store):
        whole = file.read_bytes()
        name = str(file.relative_to(store))
        for at in {0, len(whole) - 1, *random.integers(0, len(whole), 3).tolist()}:
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(random.integers(8))]) + whole[at + 1 :])
            assert name in {problem[0] for problem in verify(store).problems}, (name, at)
        file.unlink()
        assert name in {problem[0] for problem in verify(store).problems}, name
        file.write_bytes(whole)


def part_of(store: Path, table: str) -> Path:
    name = getattr(FeatureStore(store).snapshot, table)[0].name
    return store / "objects" / name[:2] / name


@pytest.mark.parametrize("table", ["rows", "results"])
@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"PAR1"), Path.unlink])
def test_a_damaged_table_is_named_and_written_again(store: Path, table: str, damage: Callable[[Path], object]) -> None:
    index, features = FeatureStore(store).index, FeatureStore(store).cls[:]
    file = part_of(store, table)
    damage(file)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        _ = FeatureStore(store).index
    check_healed(again(store), index, features)


def check_healed(store: FeatureStore, index: pa.Table, features: np.ndarray) -> None:
    assert store.index.equals(index)
    assert np.array_equal(store.cls[:], features)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["path"]),
        lambda table: table.set_column(5, "label", pa.array(["a"] * len(table))),
        lambda table: table[:1],
    ],
)
def test_a_table_of_another_shape_is_named_and_written_again(
    store: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    index, features = FeatureStore(store).index, FeatureStore(store).cls[:]
    part = FeatureStore(store).snapshot.rows[0]
    (wrong,) = put_table(LocalStorage(store), iter([change(pq.ParquetFile(part_of(store, "rows")).read())]), ())
    resealed(store, rows=(Part(name=wrong.name, rows=part.rows),))
    with pytest.raises(ValueError, match=rf"{wrong.name} is damaged"):
        _ = FeatureStore(store).index
    check_healed(again(store), index, features)


def drop_rows(file: Path) -> None:
    save_file({name: tensor[:1].contiguous() for name, tensor in load_file(file).items()}, file)


def drop_tensor(file: Path) -> None:
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "cls"}, file)


@pytest.mark.parametrize("damage", [drop_rows, drop_tensor, lambda file: file.write_bytes(b"x" * 99), Path.unlink])
def test_a_shard_of_another_shape_is_named_where_it_is_read(store: Path, damage: Callable[[Path], object]) -> None:
    name = FeatureStore(store).table.names[1]
    damage(store / "objects" / name[:2] / name)
    for read in (lambda: FeatureStore(store).cls, lambda: FeatureStore(store).patches(3)):
        with pytest.raises(ValueError, match=rf"{name} is damaged .*run the extraction on its source again"):
            read()


def test_a_place_where_no_folder_can_be_is_refused_in_a_sentence(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("?")
    (tmp_path / "link").symlink_to("nowhere")
    cases = {
        tmp_path / "file": "file is a file, and not a folder",
        tmp_path / "file" / "below": "file is a file, and not a folder",
        tmp_path / "link": "link is a link that leads nowhere",
        "ftp://host/store": "is an address|has the scheme ftp://",
    }
    for out, message in cases.items():
        with pytest.raises(ValueError, match=message):
            extract(tiny_vit(), made / "photos", out, progress=False)
        with pytest.raises(ValueError, match=message):
            export(FeatureStore(made / "out"), "npy", out)


def test_a_limit_of_a_files_size_is_an_error_that_says_what_to_do(made: Path, tmp_path: Path) -> None:
    options = {"tokens": ["patches"], "resolution": 160, "progress": False}
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large, for .*`ulimit -f`.*complete shards are kept"):
            extract(tiny_vit(), made / "photos", tmp_path / "out", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert len(extract(tiny_vit(), made / "photos", tmp_path / "out", **options)) == 4
