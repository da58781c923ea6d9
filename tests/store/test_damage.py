"""Damaged and lost files of a store: noticed by their checksums, and written again by the next run."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import cases
from tests.store.small import TINY, Interrupted, backbone, contents, features_of, objects, save
from vitbackbone.files import LocalStorage
from vitbackbone.store import FeatureStore, extract, history, prune, verify
from vitbackbone.store.objects import Damaged
from vitbackbone.store.records import Snapshot

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
@pytest.mark.parametrize("kind", cases(DAMAGE, {"flipped bit", "lost"}))
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
@pytest.mark.parametrize("kind", cases(DAMAGE, {"flipped bit"}))
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
@pytest.mark.parametrize("kind", cases(DAMAGE, {"flipped bit"}))
@pytest.mark.parametrize("work", ["work", "lost work", "no source"])
def test_a_damaged_shard_that_waits_is_computed_again_however_the_run_goes_on(
    photos: Path, tmp_path: Path, kind: str, work: str
) -> None:
    """Also if the list of work is damaged too, and if a run without a source helps."""
    out = tmp_path / "f"
    torch.manual_seed(0)
    stopped = Interrupted(TINY).eval()
    stopped.limit = 1
    with pytest.raises(KeyboardInterrupt):
        extract(stopped, photos, out, shard_size=3)
    spoiled(next(out.glob("objects/*/*.safetensors")), kind)
    if work == "lost work":
        name = history(out)[0].work[0].name
        spoiled(out / "objects" / name[:2] / name, kind)
    model = backbone()
    store = extract(model, None if work == "no source" else photos, out, shard_size=3)
    assert [count for count, _ in model.seen] == [3, 3, 1]
    assert verify(out).problems == ()
    np.testing.assert_array_equal(store.cls, extract(backbone(), photos, tmp_path / "whole", shard_size=3).cls)


@pytest.mark.promise(3)
def test_a_damaged_manifest_of_a_store_that_has_grown_is_written_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain route of the first run is known by the name of its manifest."""
    out = tmp_path / "f"
    extract(backbone(), photos, out, shard_size=3)
    name = history(out)[0].manifest
    spoiled(out / "objects" / name[:2] / name, "flipped bit")
    save(photos / "dog" / "9.png", 9)
    monkeypatch.setattr("vitbackbone.store.run.AUTO_FROM", 5)
    monkeypatch.setattr("vitbackbone.store.workers.route.AUTO_FROM", 5)
    assert len(extract(backbone(), photos, out, shard_size=3)) == 8
    assert verify(out).problems == ()


@pytest.mark.promise(3)
@pytest.mark.parametrize("table", ["manifest", "classes"])
def test_what_a_run_cannot_write_again_is_said_with_what_to_do(photos: Path, tmp_path: Path, table: str) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out, shard_size=3)
    name = TABLES[table](history(out)[0])
    spoiled(out / "objects" / name[:2] / name, "flipped bit")
    size, message = 3, "the source has other classes now.*Run once on the source with the classes of before"
    if table == "manifest":
        size, message = 2, "Give the options of the run that made it, or another --out"
    else:
        save(photos / "eel" / "9.png", 9)
    with pytest.raises(ValueError, match=message):
        extract(backbone(), photos, out, shard_size=size)


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


TABLES: dict[str, Callable[[Snapshot], str]] = {
    "manifest": lambda snapshot: snapshot.manifest,
    "classes": lambda snapshot: snapshot.classes,
    "rows": lambda snapshot: snapshot.rows[0].name,
    "work": lambda snapshot: snapshot.work[0].name,
    "results": lambda snapshot: snapshot.results[0].name,
}


@pytest.mark.promise(3)
@pytest.mark.parametrize("kind", cases(DAMAGE, {"flipped bit"}))
@pytest.mark.parametrize("table", TABLES)
def test_a_damaged_table_of_the_last_snapshot_is_written_again(
    photos: Path, tmp_path: Path, kind: str, table: str
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "f"
    extract(backbone(), photos, whole, shard_size=3)
    torch.manual_seed(0)
    run = Interrupted(TINY).eval()
    run.limit = 1 if table == "work" else 100
    with suppress(KeyboardInterrupt):
        extract(run, photos, out, shard_size=3)
    name = TABLES[table](history(out)[0])
    spoiled(out / "objects" / name[:2] / name, kind)
    assert f"objects/{name[:2]}/{name}" in [file for file, _ in verify(out).problems]
    store = extract(backbone(), photos, out, shard_size=3)
    assert objects(out) == objects(whole)
    assert verify(out).problems == ()
    assert store.index.equals(FeatureStore(whole).index)
    np.testing.assert_array_equal(store.cls, FeatureStore(whole).cls)


@pytest.mark.promise(3)
def test_rows_that_are_planned_anew_get_no_old_result(photos: Path, tmp_path: Path) -> None:
    """The new plan has other images in the shards of the same numbers."""
    out = tmp_path / "f"
    save(photos / "cat" / "00.png", 99)
    extract(backbone(), photos, out, shard_size=3)
    (photos / "cat" / "00.png").unlink()
    name = history(out)[0].rows[0].name
    spoiled(out / "objects" / name[:2] / name, "flipped bit")
    store = extract(backbone(), photos, out, shard_size=3)
    expected = extract(backbone(), photos, tmp_path / "whole", shard_size=3)
    assert store.paths == expected.paths
    np.testing.assert_array_equal(store.cls, expected.cls)
    prune(out)
    assert verify(out).problems == ()


def rename(photos: Path) -> None:
    for file in [*photos.rglob("*.*")]:
        file.rename(file.with_name(f"new-{file.name}"))


def rename_a_class(photos: Path) -> None:
    (photos / "cat").rename(photos / "kitten")


def remove_some(photos: Path) -> None:
    (photos / "cat" / "0.jpg").unlink()


def move(photos: Path) -> None:
    photos.rename(photos.with_name("elsewhere"))


LOST: list[tuple[str, list[str], Callable[[Path], None], str]] = [
    ("refused", ["rows 0"], rename, r"table is damaged, .* rows of 3 of the 7 images .* lost. None of the others"),
    ("refused", ["rows", "rows 1", "rows 2"], move, r"rows of all its 7 images are lost.*not in .*photos"),
    ("healed", ["rows", "rows 1", "rows 2"], rename, "rows of 7 of its 7 images were lost with a damaged table"),
    ("healed", ["rows", "rows 1", "rows 2", "classes"], rename_a_class, "get new rows; the features of the others are"),
    ("healed", ["rows 1"], remove_some, "images that are not in the source now: 1; their features stay"),
    (
        "bare",
        ["results"],
        remove_some,
        "not in the source now, and whose features are damaged or were never computed: 1",
    ),
]


@pytest.mark.promise(3)
@pytest.mark.parametrize(
    ("end", "tables", "change", "message"),
    [case if case[0] != "healed" else pytest.param(*case, marks=pytest.mark.slow) for case in LOST],
)
def test_a_lost_table_and_a_changed_source_are_told_apart(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: str,
    tables: list[str],
    change: Callable[[Path], None],
    message: str,
) -> None:
    """The run refuses what it cannot know, and says which features are lost and what to do."""
    monkeypatch.setattr("vitbackbone.store.objects.PART", 3)
    out = tmp_path / "f"
    extract(backbone(), photos, out, shard_size=3)
    snapshot = history(out)[0]
    for table in tables:
        kind, _, number = table.partition(" ")
        name = getattr(snapshot, kind)[int(number)].name if number else TABLES[kind](snapshot)
        (out / "objects" / name[:2] / name).unlink()
    change(photos)
    source = photos if photos.exists() else photos.with_name("elsewhere")
    if end == "refused":
        with pytest.raises(ValueError, match=message):
            extract(backbone(), source, out, shard_size=3)
        return
    store = extract(backbone(), source, out, shard_size=3)
    assert re.search(message, caplog.text)
    assert "built from different inputs" not in caplog.text
    gone = store.index.filter(store.index["gone"])["status"].to_pylist()
    assert gone == ({"bare": ["failed"], "healed": ["ok"] * ("features stay" in message)}[end])
    there = sorted(str(file.relative_to(source)) for file in source.rglob("*.*"))
    assert sorted(set(store.paths) - {"cat/0.jpg"}) == [path for path in there if path != "cat/0.jpg"]
    prune(out)
    assert verify(out).problems == ()


@pytest.mark.promise(30)
def test_an_answer_that_is_garbled_once_is_no_damage(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of an image that is gone could not be computed again."""
    out = tmp_path / "f"
    extract(backbone(), photos, out, shard_size=3)
    (photos / "cat/0.jpg").unlink()
    before = FeatureStore(out).cls.copy()
    seen: set[str] = set()
    for name in ("get", "get_range"):

        def garbled(self: LocalStorage, key: str, *part: int, read: Callable[..., bytes]) -> bytes:
            data, first = read(self, key, *part), key not in seen
            seen.add(key)
            return data[:-1] + b"?" if first else data

        monkeypatch.setattr(LocalStorage, name, partialmethod(garbled, read=getattr(LocalStorage, name)))
    store = extract(backbone(), photos, out, shard_size=3)
    np.testing.assert_array_equal(store.cls, before)
    assert store.snapshot.counts.gone == 1
    seen.clear()
    assert verify(out).problems == ()


STORED: dict[str, Any] = {"tokens": ("cls", "registers", "patches"), "layers": (0, 1), "keep_aspect": True}


def everything(store: FeatureStore) -> list[np.ndarray]:
    """Read all features by every way that a reader has."""
    found = [store.grids]
    for layer in store.layers:
        one, order = store.layer(layer), np.arange(len(store))[::-2]
        found += [one.cls, one.registers, one.read("cls", order), *map(one.patches, range(len(one)))]
    return found


@pytest.mark.promise(3)
@pytest.mark.parametrize("mapped", [True, False])
def test_no_reader_returns_a_flipped_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    out = tmp_path / "f"
    want = everything(extract(backbone(num_registers=2), photos, out, shard_size=3, **STORED))
    if not mapped:
        monkeypatch.setattr(LocalStorage, "local_path", lambda self, key: None)
    file = features_of(out, 1)
    whole, random = file.read_bytes(), np.random.default_rng(0)
    for at in random.integers(0, len(whole), 60).tolist():
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(random.integers(8))]) + whole[at + 1 :])
        with suppress(Damaged):
            found = everything(FeatureStore(out))
            assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True)), at
    length = int.from_bytes(whole[:8], "little")
    at = 8 + length + json.loads(whole[8 : 8 + length])["patches"]["data_offsets"][0]
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    store = FeatureStore(out)
    np.testing.assert_array_equal(store.patches(4), want[-3])
    with pytest.raises(Damaged, match=r"\(patches: the checksum of image 0 of the shard differs\); run the extraction"):
        store.patches(3)


@pytest.mark.promise(30)
def test_a_range_that_is_garbled_once_is_read_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f"
    want = everything(extract(backbone(num_registers=2), photos, out, shard_size=3, **STORED))
    monkeypatch.setattr(LocalStorage, "local_path", lambda self, key: None)
    read, seen = LocalStorage.get_range, set()

    def garbled(self: LocalStorage, key: str, start: int, length: int) -> bytes:
        data, first = read(self, key, start, length), (key, start) not in seen
        seen.add((key, start))
        return data[:-1] + bytes([data[-1] ^ 1]) if first and start > 8 and data[:1] != b"{" else data

    monkeypatch.setattr(LocalStorage, "get_range", garbled)
    found = everything(FeatureStore(out))
    assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True))
    assert len(seen) > 20


def test_an_array_may_be_changed_and_read_again(photos: Path, tmp_path: Path) -> None:
    store = extract(backbone(), photos, tmp_path / "f", tokens=["cls", "patches"])
    for read in (lambda: store.cls, lambda: store.patches(2), lambda: store.read("cls", [1])):
        want = read().copy()
        read()[:] = 0
        vars(store).pop("cls", None)
        np.testing.assert_array_equal(read(), want)


def test_an_error_of_a_damaged_file_reaches_another_process(tmp_path: Path) -> None:
    error = Damaged(LocalStorage(tmp_path), "objects/ab/abc.json", "it is missing")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  # our own bytes


@pytest.mark.promise(29)
@pytest.mark.parametrize("kind", cases(DAMAGE, {"flipped bit"}))
def test_a_damaged_old_snapshot_is_named_and_pruned(photos: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out, shard_size=3)
    work = history(out)[1].work[0].name
    spoiled(out / "objects" / work[:2] / work, kind)
    spoiled(out / "snapshots/00000001.json", kind)
    named = dict(verify(out).problems)
    assert named.keys() - {f"objects/{work[:2]}/{work}"} == {"snapshots/00000001.json"}
    assert all("`vitbackbone prune`" in text for text in named.values())
    assert [snapshot.number for snapshot in history(out)] == [2]
    assert len(extract(backbone(), photos, out, shard_size=3)) == 7
    prune(out)
    assert verify(out).problems == ()


@pytest.mark.promise(29)
def test_a_record_in_the_place_of_an_older_one_is_named_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    extract(backbone(), photos, out, shard_size=7)
    (out / "snapshots/00000001.json").write_bytes((out / "snapshots/00000002.json").read_bytes())
    [(name, text)] = verify(out).problems
    assert name == "snapshots/00000001.json"
    assert re.search("is the record of snapshot 2; `vitbackbone prune`", text)
    prune(out)
    assert verify(out).problems == ()


@pytest.mark.promise(36)
def test_prune_needs_no_record_but_the_copy_of_the_last(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    store = extract(backbone(), photos, out, shard_size=7)
    shutil.rmtree(out / "snapshots")
    prune(out)
    np.testing.assert_array_equal(FeatureStore(out).cls, store.cls)
    assert verify(out).problems == ()
