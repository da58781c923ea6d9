"""A second run: what is missing or damaged is done again, and another run is refused."""

import copy
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import cases
from tests.store.small import TINY, Watched, backbone, contents, features_of, objects, picture, save, write_list
from vitbackbone.contract.features import Features
from vitbackbone.contract.geometry import Images
from vitbackbone.files import LocalStorage, publish
from vitbackbone.store import FeatureStore, extract, history, prune, verify
from vitbackbone.store.objects import Damaged
from vitbackbone.store.records import Snapshot


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


@pytest.mark.promise(2)
def test_a_run_that_was_killed_after_its_last_snapshot_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original = tmp_path / "f", LocalStorage.delete

    def killed(self: LocalStorage, key: str) -> None:
        if key.startswith("done/"):
            raise KeyboardInterrupt
        original(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(backbone(), photos, out, shard_size=3)
    assert len(list(out.glob("done/*"))) == 3
    assert len(FeatureStore(out)) == 7
    again = backbone()
    extract(again, photos, out, shard_size=3)
    assert not hasattr(again, "seen")
    assert [*out.glob("done/*"), *out.glob("leases/*")] == []
    assert [one.why for one in history(out)] == ["results", "plan"]


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
    ("healed", ["rows 1"], remove_some, "1 of its images are not in the source now; their features stay"),
    ("bare", ["results"], remove_some, "1 of its images are not in the source now, and their features are damaged"),
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
