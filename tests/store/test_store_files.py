"""Files of a store that somebody edited or lost, and places where none can be written: a sentence that names them."""

import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from tests.helpers import save_photo, tiny_vit
from vitbackbone.store import FeatureStore, export, extract, verify


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


def edited(file: Path, *keys: str, value: object) -> None:
    whole = json.loads(file.read_bytes())
    part = whole
    for key in keys[:-1]:
        part = part[key]
    if value is None:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    file.write_text(json.dumps(whole))


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


@pytest.mark.parametrize(("keys", "value"), WRONG)
def test_a_wrong_key_of_the_manifest_is_named(store: Path, keys: tuple[str, ...], value: object) -> None:
    edited(store / "manifest.json", *keys, value=value)
    for use in (FeatureStore, verify, again):
        with pytest.raises(ValueError, match=rf"out.*manifest\.json has (?s:.)*{keys[0]}"):
            use(store)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"null", b"[]", b"[" * 100_000, b'{"schema": 2}', b"\0" * 99])
def test_a_manifest_that_is_no_manifest_is_named(store: Path, data: bytes) -> None:
    (store / "manifest.json").write_bytes(data)
    for use in (FeatureStore, verify, again):
        with pytest.raises(ValueError, match=r"out.*manifest"):
            use(store)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rows", "2"), ("rows", -1), ("rows", 10**9), ("read", 10**9), ("read", None), ("sha256", 5), ("copies", True)],
)
def test_a_wrong_marker_is_named_and_its_shard_done_again(store: Path, key: str, value: object) -> None:
    file = store / "shards" / "00001.json"
    before = file.read_bytes()
    edited(file, key, value=value)
    with pytest.raises(ValueError, match=r"incomplete: 1 of 2 .*00001\.json is damaged"):
        FeatureStore(store)
    assert [problem[0] for problem in verify(store).problems] == [file]
    again(store)
    assert file.read_bytes() == before


def drop_rows(file: Path) -> None:
    save_file({name: tensor[:1].contiguous() for name, tensor in load_file(file).items()}, file)


def drop_tensor(file: Path) -> None:
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "cls"}, file)


@pytest.mark.parametrize("damage", [drop_rows, drop_tensor, lambda file: file.write_bytes(b"x" * 99), Path.unlink])
def test_a_shard_of_another_shape_is_named_where_it_is_read(store: Path, damage: Callable[[Path], object]) -> None:
    damage(store / "shards" / "00001.safetensors")
    for read in (lambda: FeatureStore(store).cls, lambda: FeatureStore(store).patches(3)):
        with pytest.raises(ValueError, match=r"00001\.safetensors is damaged .*run the same extraction again"):
            read()


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"PAR1"), Path.unlink])
def test_a_damaged_index_is_named(store: Path, damage: Callable[[Path], object]) -> None:
    damage(store / "index" / "00000.parquet")
    with pytest.raises(ValueError, match=r"index/00000\.parquet is damaged"):
        _ = FeatureStore(store).index


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.replace_schema_metadata({"class_names": "[1]", "shards": "[]"}),
        lambda table: table.replace_schema_metadata({"class_names": "{", "shards": "[]"}),
        lambda table: table.replace_schema_metadata({}),
        lambda table: table.drop_columns(["path"]),
        lambda table: table.set_column(3, "label", pa.array([9] * len(table))),
        lambda table: table.set_column(3, "label", pa.array([None] * len(table), pa.int64())),
    ],
)
def test_a_damaged_plan_is_named(store: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    file = store / "inputs" / "00000.parquet"
    pq.write_table(change(pq.ParquetFile(file).read()), file, row_group_size=2)
    with pytest.raises(ValueError, match=r"inputs(/00000\.parquet)? is damaged"):
        again(store)


@pytest.mark.parametrize("name", ["lock.json", "lock-inputs.json", "lock-0-of-2.json"])
@pytest.mark.parametrize("data", [b"", b"[]", b'{"pid": "x"}', b"[" * 10**5, b'{"pid": -1, "host": "a"}', b"\xff"])
def test_a_lock_that_says_not_who_is_named(store: Path, name: str, data: bytes) -> None:
    (store / name).write_bytes(data)
    with pytest.raises(BlockingIOError, match=rf"delete .*{name}"):
        again(store)


def test_a_place_where_no_folder_can_be_is_refused_in_a_sentence(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("?")
    (tmp_path / "link").symlink_to("nowhere")
    cases = {
        tmp_path / "file": "file is a file, and not a folder",
        tmp_path / "file" / "below": "file is a file, and not a folder",
        tmp_path / "link": "link is a link that leads nowhere",
        "s3://bucket/store": "is an address",
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
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert len(extract(tiny_vit(), made / "photos", tmp_path / "out", **options)) == 4
