"""What `prune` removes, and that it takes nothing from a run, a reader or another prune."""

import os
import shutil
import time
from importlib import import_module
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from tests.helpers import save_photo, tiny_vit
from tests.store.small import FOURS, meanwhile, rows, ten_photos
from vitbackbone.files import LocalStorage
from vitbackbone.store import FeatureStore, extract, history, prune, verify
from vitbackbone.store.layout import lease_key
from vitbackbone.store.workers.leases import PRUNE, RUN, Leases


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return ten_photos(tmp_path / "photos")


@pytest.mark.promise(36)
def test_prune_keeps_what_its_snapshots_need(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    states = []
    for seed in (90, 91, 92):
        states.append(rows(extract(tiny_vit(), photos, out, **FOURS)))
        save_photo(photos / "3.png", 40, 50, seed=seed)
    assert [one.number for one in history(out)] == [6, 5, 4, 3, 2, 1]
    old = FeatureStore(out, snapshot=2)
    assert prune(out, keep=3).snapshots == 3
    assert [one.number for one in history(out)] == [7, 6, 5, 4]
    assert rows(FeatureStore(out, snapshot=4)) == states[1]
    assert rows(FeatureStore(out)) == states[2]
    assert verify(out).problems == ()
    removed = prune(out)
    assert removed.objects > 0
    assert (rows(FeatureStore(out)), verify(out).problems) == (states[2], ())
    assert prune(out).objects == 0
    with pytest.raises(ValueError, match="snapshot 2 was pruned while it was open; open the store again"):
        _ = old.cls
    (out / "snapshots" / f"{history(out)[-1].number:08}.json").unlink()
    assert verify(out).problems != ()
    with pytest.raises(ValueError, match="keep=0; want at least 1"):
        prune(out, keep=0)


@pytest.mark.promise(36)
def test_a_run_that_begins_during_a_prune_loses_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wants an object that no snapshot needs yet, and that the prune is about to remove."""
    out, twin = tmp_path / "out", tmp_path / "twin"
    extract(tiny_vit(), photos, out, **FOURS)
    shutil.copytree(out, twin)
    save_photo(photos / "3.png", 40, 50, seed=90)
    extract(tiny_vit(), photos, twin, **FOURS)
    shutil.copytree(twin / "objects", out / "objects", dirs_exist_ok=True)
    begun, delete = [], LocalStorage.delete

    def after_a_begin(storage: LocalStorage, key: str) -> None:
        if not begun and key.startswith("objects/"):
            begun.append(Thread(target=extract, args=(tiny_vit(), photos, out), kwargs=FOURS))
            begun[0].start()
            begun[0].join(3)  # it would end in this time
        delete(storage, key)

    monkeypatch.setattr(LocalStorage, "delete", after_a_begin)
    assert prune(out).objects
    begun[0].join()
    assert verify(out).problems == ()
    np.testing.assert_array_equal(FeatureStore(out).cls, FeatureStore(twin).cls)


@pytest.mark.promise(36)
@pytest.mark.parametrize("kind", [RUN, PRUNE])
def test_prune_begins_only_without_a_run_or_another_prune(photos: Path, tmp_path: Path, kind: str) -> None:
    """Their leases stay. A clock of this machine that is an hour ahead of the storage's does not end them."""
    out = tmp_path / "out"
    extract(tiny_vit(), photos, out, **FOURS)
    storage, key = LocalStorage(out), lease_key(f"{kind}other")
    assert storage.create(key, b"{}")
    with pytest.raises(BlockingIOError, match="an extraction or another prune is at work"):
        prune(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitbackbone.store.workers.leases.time.time", lambda now=time.time: now() + 3600)
        with pytest.raises(BlockingIOError, match=r"prune in (2\d|30) seconds"):
            prune(out)
    os.utime(out / key, (time.time() - 31,) * 2)
    prune(out)
    assert storage.head(key) is None


@pytest.mark.promise(36)
def test_the_lease_of_a_run_is_written_again_if_another_machine_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbackbone.store.workers.leases.TERM", 0.3)
    storage = LocalStorage(tmp_path)
    with Leases(storage).kept() as leases:
        leases.claim_run()
        key = lease_key(f"{RUN}{leases.token}")
        storage.delete(key)
        deadline = time.monotonic() + 20
        while storage.head(key) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert storage.head(key) is None


@pytest.mark.promise(29)
@pytest.mark.parametrize("step", ["_read_records", "_check_objects"])
def test_a_run_and_a_prune_meanwhile_are_no_problem_of_a_store(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    out, module = tmp_path / "out", import_module("vitbackbone.store.verify")
    extract(tiny_vit(), photos, out, **FOURS)
    original, changes = getattr(module, step), [1, 2]

    def after_a_change(*arguments: object) -> object:
        if changes:
            save_photo(photos / "3.png", 40, 50, seed=90 + changes.pop())
            extract(tiny_vit(), photos, out, **FOURS)
            prune(out)
        return original(*arguments)

    monkeypatch.setattr(module, step, after_a_change)
    assert verify(out).problems == ()
    assert not changes


@pytest.mark.promise(36)
def test_prune_waits_for_runs_at_work(photos: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []

    def pruned() -> None:
        with pytest.raises((BlockingIOError, ValueError)) as error:
            prune(out)
        said.append(str(error.value))

    extract(meanwhile(pruned), photos, out, **FOURS)
    assert "an extraction or another prune is at work" in said[0]
