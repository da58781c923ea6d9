"""A store over many runs: snapshots, duplicates, and sources that change, vanish and come back."""

import csv
import multiprocessing
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from tests.helpers import save_photo, tiny_vit
from tests.store.small import FOURS, meanwhile, rows, ten_photos
from vitbackbone.cli import main
from vitbackbone.contract import Features
from vitbackbone.contract.geometry import Images
from vitbackbone.files import LocalStorage
from vitbackbone.images import ImageError, Photo
from vitbackbone.model.vit import ViT
from vitbackbone.store import FeatureStore, extract, prune, verify
from vitbackbone.store.sources.locate import GONE_REMEDY, REMEDIES, Reason
from vitbackbone.store.workers.leases import Leases


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return ten_photos(tmp_path / "photos")


def shards(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.glob("objects/*/*.safetensors")}


def expected(photos: Path) -> dict[str, torch.Tensor]:
    """The CLS token of each photo that can be read, by a forward of its own."""
    model = tiny_vit()
    found = {}
    for file in sorted(photos.iterdir()):
        try:
            pixels = model.preprocess.normalise(model.preprocess.pixels(Photo(file.read_bytes())))
        except ImageError:
            continue
        with torch.no_grad():
            found[file.name] = model(pixels[None]).cls[0]
    return found


def test_any_course_of_changes_ends_with_the_features_of_what_is_there(photos: Path, tmp_path: Path) -> None:
    """Files are added, changed, copied, damaged, taken away and put back, several between two runs."""
    random = np.random.default_rng(1)
    out, away = tmp_path / "out", tmp_path / "away"
    away.mkdir()
    last: dict[str, torch.Tensor] = {}  # of each name that ever was there
    for step in range(7):
        for _ in range(int(random.integers(1, 5))):
            names = sorted(file.name for file in photos.iterdir())
            name, other = random.choice(names, 2, replace=False).tolist()
            kind = random.choice(["add", "change", "copy", "damage", "take", "back", "swap"])
            if kind == "add":
                save_photo(photos / f"new-{step}-{random.integers(99)}.png", 40, 50, seed=int(random.integers(10**6)))
            elif kind == "change":
                save_photo(photos / name, 40, 50, seed=int(random.integers(10**6)))
            elif kind == "copy":
                shutil.copy(photos / name, photos / other)
            elif kind == "damage":
                (photos / name).write_bytes(b"damaged by %d" % random.integers(2))
            elif kind == "take" and len(names) > 4:
                (photos / name).rename(away / name)
            elif kind == "swap":
                (photos / name).rename(away / "swapped")
                (photos / other).rename(photos / name)
                (away / "swapped").rename(photos / other)
            for file in list(away.iterdir()) if kind == "back" else []:
                file.rename(photos / file.name)
        before = shards(out)
        store = extract(tiny_vit(), photos, out, **FOURS)
        there = {file.name for file in photos.iterdir()}
        last = {name: row for name, row in last.items() if name not in there} | expected(photos)
        found = dict(zip(store.paths, store.cls, strict=True))
        assert set(found) == set(last), step
        for name, row in last.items():
            np.testing.assert_allclose(found[name], row, atol=1e-5, err_msg=f"{step}: {name}")
        assert {name: data for name, data in shards(out).items() if name in before} == before
        assert verify(out).problems == ()
        gone = {
            path
            for path, is_gone in zip(*(store.index[n].to_pylist() for n in ("path", "gone")), strict=True)
            if is_gone
        }
        assert gone == set(store.index["path"].to_pylist()) - there


@pytest.mark.promise(32)
def test_a_changed_image_is_redone_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before, kept = rows(extract(tiny_vit(), photos, out, **FOURS)), shards(out)
    save_photo(photos / "5.png", 40, 50, seed=99)
    seen: list[int] = []
    model = tiny_vit()
    model.norm.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    after = rows(extract(model, photos, out, **FOURS))
    assert seen == [1]
    assert {path for path in after if after[path] != before[path]} == {"5.png"}
    assert {name: shards(out)[name] for name in kept} == kept


@pytest.mark.promise(30)
def test_a_duplicate_survives_its_original(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copy(photos / "1.png", photos / "twin.png")
    before = rows(extract(tiny_vit(), photos, out, **FOURS))
    (photos / "1.png").unlink()
    save_photo(photos / "2.png", 40, 50, seed=99)
    store = extract(tiny_vit(), photos, out, **FOURS)
    assert rows(store)["twin.png"] == rows(store)["1.png"] == before["twin.png"]
    assert prune(out, gone=True).rows == 1
    assert rows(FeatureStore(out)) == {path: row for path, row in rows(store).items() if path != "1.png"}
    assert FeatureStore(out).index["same_as"].to_pylist() == [None] * 10
    assert verify(out).problems == ()
    assert rows(extract(tiny_vit(), photos, out, **FOURS)) == rows(FeatureStore(out))


@pytest.mark.promise(30)
def test_a_duplicate_is_computed_if_its_original_vanishes_before(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "1.png", photos / "twin.png")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        extract(meanwhile(interrupt), photos, out, **FOURS)
    (photos / "1.png").unlink()
    store = extract(tiny_vit(), photos, out, **FOURS)
    assert set(store.paths) >= {"twin.png", "1.png"}  # by the content of the one that is left
    assert store.failed == []


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.promise(27)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_slice_keeps_to_its_snapshot_while_another_plans_anew(photos: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"

    def other_slice() -> None:
        shutil.copy(photos / "0.png", photos / "8.png")
        save_photo(photos / "5.png", 40, 50, seed=99)
        save_photo(photos / "new.png", 40, 50, seed=98)
        extract(tiny_vit(), photos, out, slice=(1, 2), **FOURS)

    extract(meanwhile(other_slice), photos, out, slice=(0, 2), workers=workers, **FOURS)
    store = extract(tiny_vit(), photos, out, **FOURS)
    afresh = extract(tiny_vit(), photos, tmp_path / "afresh", **FOURS)
    assert set(store.paths) == set(afresh.paths)
    for path, row in zip(afresh.paths, afresh.cls, strict=True):
        np.testing.assert_allclose(rows(store)[path], row, atol=1e-5, err_msg=path)
    assert verify(out).problems == ()


@pytest.mark.promise(28)
def test_an_open_reader_keeps_its_snapshot(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = extract(tiny_vit(), photos, out, tokens=["cls", "patches"], **FOURS)
    want, maps = rows(first), [first.patches(i).copy() for i in range(10)]
    reader = FeatureStore(out)
    (photos / "1.png").write_bytes(b"damaged")
    save_photo(photos / "0.png", 40, 50, seed=99)
    extract(tiny_vit(), photos, out, tokens=["cls", "patches"], **FOURS)
    for store in (reader, FeatureStore(out, snapshot=2)):
        assert rows(store) == want
        for i in range(10):
            np.testing.assert_array_equal(store.patches(i), maps[i])
    assert FeatureStore(out).failed[0][0] == "1.png"
    with pytest.raises(ValueError, match="has no snapshot 9; it has 1 to 4"):
        FeatureStore(out, snapshot=9)
    with pytest.raises(ValueError, match="is incomplete"):
        FeatureStore(out, snapshot=1)


def test_a_reader_opens_the_last_complete_snapshot_while_a_run_is_at_work(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(tiny_vit(), photos, out, **FOURS)
    save_photo(photos / "new.png", 40, 50, seed=98)
    found = []
    extract(meanwhile(lambda: found.extend([FeatureStore(out), FeatureStore(out, partial=True)])), photos, out, **FOURS)
    assert [(store.snapshot.number, len(store), store.missing) for store in found] == [(2, 10, 0), (3, 10, 1)]
    assert found[1].index["status"].to_pylist() == ["ok"] * 10 + ["pending"]


def as_folder(photos: Path) -> Path:
    return photos


def as_list(photos: Path) -> Path:
    with (photos.parent / "list.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([["path"], *([f"photos/{i}.png"] for i in range(10))])
    return photos.parent / "list.csv"


def as_archive(photos: Path) -> Path:
    (photos.parent / "tars").mkdir()
    with tarfile.open(photos.parent / "tars" / "a.tar", "w") as tar:
        for i in range(10):
            tar.add(photos / f"{i}.png", f"{i}.png")
    return photos.parent / "tars" / "a.tar"


@pytest.mark.promise(31)
@pytest.mark.parametrize("source", [as_folder, as_list, as_archive])
def test_a_source_that_goes_away_in_the_midst_comes_back_without_options(
    photos: Path, tmp_path: Path, source: Callable[[Path], Path]
) -> None:
    given, out = source(photos), tmp_path / "out"
    gone = photos if given.suffix == ".csv" else given

    def back() -> None:
        (tmp_path / "away").rename(gone)

    extract(meanwhile(lambda: gone.rename(tmp_path / "away")), given, out, **FOURS)
    assert {row["reason"] for row in FeatureStore(out).index.to_pylist() if row["status"] == "failed"} == {"missing"}
    back()
    store = extract(tiny_vit(), given, out, **FOURS)
    assert (len(store), store.failed) == (10, [])
    gone.rename(tmp_path / "away")  # and in between two runs
    if given == gone:
        with pytest.raises(ValueError, match="no such file or folder"):
            extract(tiny_vit(), given, out, **FOURS)
    else:
        assert rows(extract(tiny_vit(), given, out, **FOURS)) == rows(store)
        assert FeatureStore(out).index["gone"].to_pylist() == [True] * 10
    back()
    again = meanwhile(interrupt)  # nothing is computed
    assert rows(extract(again, given, out, **FOURS)) == rows(store)
    assert FeatureStore(out).index["gone"].to_pylist() == [False] * 10


@pytest.mark.promise(33)
def test_every_failed_row_says_what_would_heal_it(photos: Path, tmp_path: Path) -> None:
    assert set(REMEDIES) == set(get_args(Reason))
    for name, data in (("empty.png", b""), ("text.png", b"hello"), ("cut.png", (photos / "1.png").read_bytes()[:200])):
        (photos / name).write_bytes(data)
    index = extract(tiny_vit(), photos, tmp_path / "out", **FOURS).index
    for status, reason, remedy in zip(
        *(index[name].to_pylist() for name in ("status", "reason", "remedy")), strict=True
    ):
        assert (status == "failed") == (reason is not None) == (remedy is not None)
        assert remedy is None or remedy == REMEDIES[reason]
    assert index["status"].to_pylist().count("failed") == 3
    (photos / "cut.png").unlink()
    (photos / "1.png").unlink()
    rows = extract(tiny_vit(), photos, tmp_path / "out", **FOURS).index.to_pylist()
    gone = {row["path"]: row["remedy"] for row in rows if row["gone"]}
    assert gone == {"cut.png": GONE_REMEDY, "1.png": None}


@pytest.mark.promise(34)
@pytest.mark.slow
def test_processes_and_slices_make_the_same_objects(photos: Path, tmp_path: Path) -> None:
    extract(tiny_vit(), photos, tmp_path / "one", **FOURS)
    extract(tiny_vit(), photos, tmp_path / "four", devices=["cpu"] * 4, **FOURS)
    for i in (2, 0, 1):
        extract(tiny_vit(), photos, tmp_path / "slices", slice=(i, 3), **FOURS)
    names = [{file.name for file in (tmp_path / out).glob("objects/*/*")} for out in ("one", "four", "slices")]
    assert names[0] == names[1] == names[2]


class Slow(ViT):
    def forward_layers(self, images: Images, *args: object, **kwargs: object) -> tuple[Features, ...]:
        time.sleep(0.5)
        return super().forward_layers(images, *args, **kwargs)


@pytest.mark.promise(35)
def test_sigterm_drops_the_shard_gives_its_claim_back_and_exits_143(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitbackbone.cli.commands.extract as module

    out = tmp_path / "out"
    slow = Slow(tiny_vit().config).eval()
    slow.load_state_dict(tiny_vit().state_dict())
    monkeypatch.setattr(module, "load", lambda _: slow)
    command = ["extract", str(photos), "--out", str(out), "--shard-size", "4", "--batch-size", "4", "--quiet"]
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(main(command)))
    process.start()
    deadline = time.monotonic() + 60
    while not list(out.glob("leases/[0-9a-f]*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert not list(out.glob("leases/*"))
    assert not list(out.glob(".unfinished/*"))
    assert len(extract(slow, photos, out, **FOURS)) == 10


@pytest.mark.promise(35)
def test_a_signal_while_a_claim_is_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    create = storage.create

    def interrupted(key: str, data: bytes) -> bool:
        create(key, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "create", interrupted)
    leases = Leases(storage)
    with pytest.raises(KeyboardInterrupt):
        leases.claim("a" * 64)
    assert not list(tmp_path.glob("leases/*"))


def test_log_and_prune_are_commands(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (photos / "bad.png").write_bytes(b"?")
    extract(tiny_vit(), photos, out, **FOURS)
    (photos / "1.png").unlink()
    extract(tiny_vit(), photos, out, **FOURS)
    assert main(["log", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["snapshot", "3", "2", "1"]
    assert main(["log", str(out), "--json"]) == 0
    assert '"gone": 1' in capsys.readouterr().out
    assert main(["prune", str(out), "--gone"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("rows of images that are gone: 1\n")
    assert "removed snapshots: 3, files: " in text
    assert FeatureStore(out).index["path"].to_pylist() == ["0.png", *(f"{i}.png" for i in range(2, 10)), "bad.png"]
    assert main(["log", str(photos)]) == 2
