"""The promises of extraction with a store in a bucket, behind a proxy that injects faults."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from tests.buckets import Service, going_to, put_folder, serving_buckets
from tests.helpers import save_photo, tiny_vit
from tests.servers import Faults, proxy, quick_repeats, repeat_quickly
from vitbackbone.files import open_storage
from vitbackbone.store import FeatureStore, extract, history, verify
from vitbackbone.store.layout import object_key

pytest.importorskip("obstore", reason="buckets need the extra 'cloud'")
pytestmark = pytest.mark.usefixtures(quick_repeats.__name__)

SETTINGS = {"tokens": ["cls", "patches"], "shard_size": 2, "batch_size": 2, "progress": False}


@pytest.fixture(scope="module", params=["s3", pytest.param("az", marks=pytest.mark.slow)])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving_buckets(request.param, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def faults(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    faults = Faults()
    with proxy(service.server, faults) as url, going_to(url, monkeypatch, service.environment(url)):
        yield faults


@pytest.fixture
def out(faults: Faults, service: Service) -> str:
    return f"{service.bucket(f'out-{uuid4().hex}')}/store"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(12):
        save_photo(tmp_path / "photos" / f"{i:02}.png", 30 + i, 40, seed=i)
    return tmp_path / "photos"


def run(source: Path | str | None, out: Path | str, **options: object) -> FeatureStore:
    return extract(tiny_vit(), source, out, **{**SETTINGS, **options})


def objects(out: Path | str) -> dict[str, bytes]:
    """The objects that are named by their content, and nothing that is left of a run."""
    storage = open_storage(out)
    found = {stored.key: storage.get(stored.key) for stored in storage.list()}
    left = {key for key in found if not key.startswith("leases/run-")}  # of killed runs, until their deadline
    assert {key.partition("/")[0] for key in left} <= {"objects", "snapshots", "latest.json"}
    return {key: data for key, data in found.items() if key.startswith("objects/")}


def features(out: Path | str) -> set[str]:
    return {key for key in objects(out) if key.endswith(".safetensors")}


def killed_run(environment: dict[str, str], photos: str, out: str) -> None:
    os.environ.update(environment)
    with pytest.MonkeyPatch.context() as patch:
        repeat_quickly(patch)
        run(photos, out)


FAULTY = {"refused": 0.05, "lost": 0.05, "cut": 0.05, "failed": 0.02}


@pytest.mark.slow
@pytest.mark.promise(2)
def test_after_kills_and_faults_the_bucket_has_the_objects_of_an_uninterrupted_run(
    faults: Faults, service: Service, photos: Path, request: pytest.FixtureRequest
) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    environment = {name: os.environ[name] for name in service.environment("")}
    bucket = service.bucket("killed")
    run(photos, f"{bucket}/whole")
    whole = objects(f"{bucket}/whole")
    for kind, share in FAULTY.items():
        setattr(faults, kind, share)

    def start(out: str) -> multiprocessing.Process:
        process = processes.Process(target=killed_run, args=(environment, str(photos), out))
        process.start()
        return process

    start(f"{bucket}/warm").join()  # the first one waits for the server of forks
    times = []
    for name in ("first", "second"):
        began = time.monotonic()
        start(f"{bucket}/{name}").join()
        times.append(time.monotonic() - began)
    lasts = min(times)  # one that waited for the service would be killed after its end
    moments = random.Random(0)
    kills = rounds = 0
    while kills < request.config.getoption("--kills"):
        out = f"{bucket}/{rounds}"
        for _ in range(3):
            process = start(out)
            process.join(moments.uniform(0, 1.2 * lasts))
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        run(photos, out)
        assert features(out) == {key for key in whole if key.endswith(".safetensors")}
        assert verify(out, progress=False).problems == ()
        store = FeatureStore(out)
        np.testing.assert_array_equal(store.cls, FeatureStore(f"{bucket}/whole").cls)
        rounds += 1
    assert sum(faults.counts.values()) > rounds


@pytest.mark.promise(2)
def test_the_store_in_a_bucket_is_the_store_on_the_disk(faults: Faults, out: str, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    for kind, share in FAULTY.items():
        setattr(faults, kind, share)
    run(photos, out)
    assert objects(out) == objects(tmp_path / "out")
    faults.refused = faults.lost = faults.cut = faults.failed = 0
    before = len(faults.requests)
    run(photos, out)  # nothing is left to do
    written = [path for method, path, _ in faults.requests[before:] if method == "PUT"]
    assert not [path for path in written if path.endswith((".safetensors", ".parquet")) or "snapshots" in path]


@pytest.mark.slow
@pytest.mark.promise(5, 34)
def test_several_workers_share_a_store_in_a_bucket(faults: Faults, out: str, photos: Path, tmp_path: Path) -> None:
    """Threads stand for processes: they share only the bucket."""
    run(photos, tmp_path / "out")
    faults.lost, faults.refused = 0.05, 0.05
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run(photos, out)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert features(out) == features(tmp_path / "out")
    np.testing.assert_array_equal(FeatureStore(out).cls, FeatureStore(tmp_path / "out").cls)


@pytest.mark.promise(20, 34)
def test_a_helper_lists_nothing_and_computes_what_is_planned(
    faults: Faults, out: str, photos: Path, tmp_path: Path, service: Service
) -> None:
    with pytest.raises(ValueError, match="is not a store yet; give the source"):
        run(None, out)
    source = f"{service.bucket('helped')}/photos"
    put_folder(photos, open_storage(source))
    assert run(source, out, slice=(0, 3)).missing > 0
    faults.requests.clear()
    store = run(None, out)
    assert not [path for _, path, _ in faults.requests if re.search("list-type|comp=list", path) and "helped" in path]
    np.testing.assert_array_equal(store.cls, run(photos, tmp_path / "out").cls)
    with pytest.raises(ValueError, match="other settings"):
        run(None, out, dtype="float16")


@pytest.mark.slow
@pytest.mark.promise(3, 29)
def test_a_flipped_bit_anywhere_in_the_bucket_is_noticed_and_repaired(faults: Faults, out: str, photos: Path) -> None:
    run(photos, out)
    storage, whole = open_storage(out), objects(out)
    needed = {*map(object_key, history(out)[0].objects()), *features(out)}
    assert verify(out, progress=False).problems == ()
    chance = random.Random(0)
    for key in sorted(stored.key for stored in storage.list()):
        good = storage.get(key)
        at = chance.randrange(len(good))
        storage.put(key, good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        if key != "latest.json":  # a hint, which the list of snapshots corrects
            assert [problem for problem in verify(out, progress=False).problems if key in str(problem)], key
        if key in needed:
            run(photos, out)
            assert whole.items() <= objects(out).items()
        storage.put(key, good)
    assert verify(out, progress=False).problems == ()


@pytest.mark.promise(6)
def test_other_settings_are_refused_in_a_bucket(faults: Faults, out: str, photos: Path) -> None:
    run(photos, out)
    with pytest.raises(ValueError, match=rf"{out} was made with other settings"):
        run(photos, out, dtype="float16")


@pytest.mark.slow
@pytest.mark.promise(31)
def test_a_source_in_a_bucket_that_is_away_for_a_while_comes_back(
    faults: Faults, out: str, photos: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbackbone.files.cloud_requests.PATIENCE", 0.3)
    url = f"{service.bucket('source')}/photos"
    source = open_storage(url)
    put_folder(photos, source)
    good, missing = source.get("03.png"), source.get("05.png")
    source.put("03.png", good[:100])
    source.delete("05.png")
    store = run(url, out)
    assert [path for path, _ in store.failed] == ["03.png"]
    source.put("03.png", good)
    source.put("05.png", missing)
    store = run(url, out)
    assert store.failed == []
    assert sorted(store.paths) == sorted(path.name for path in photos.iterdir())
    on_disk = run(photos, photos.parent / "disk")
    order = np.argsort(store.paths)
    np.testing.assert_array_equal(store.cls[order], on_disk.cls[np.argsort(on_disk.paths)])


@pytest.mark.slow
@pytest.mark.promise(30, 32)
def test_a_changed_object_is_redone_alone_and_a_deleted_one_keeps_its_features(
    faults: Faults, out: str, photos: Path, service: Service
) -> None:
    url = f"{service.bucket('changing')}/photos"
    source = open_storage(url)
    put_folder(photos, source)
    first = run(url, out)
    before, rows = features(out), dict(zip(first.paths, first.cls, strict=True))
    source.put("03.png", source.get("00.png") + b"x")
    source.delete("05.png")
    faults.lost = faults.refused = 0.05
    second = run(url, out)
    assert before <= features(out)
    assert len(features(out)) == len(before) + 1
    for path, row in zip(second.paths, second.cls, strict=True):
        np.testing.assert_allclose(row, rows["00.png" if path == "03.png" else path], atol=1e-5)
    assert "05.png" in second.paths


@pytest.mark.slow
@pytest.mark.promise(28)
def test_an_open_reader_keeps_its_snapshot(faults: Faults, out: str, photos: Path) -> None:
    reader = run(photos, out)
    before, paths = reader.cls.copy(), list(reader.paths)
    save_photo(photos / "00.png", 30, 40, seed=100)
    save_photo(photos / "99.png", 30, 40, seed=101)
    newer = run(photos, out)
    np.testing.assert_array_equal(reader.cls, before)
    assert list(reader.paths) == paths
    assert len(newer) == 13
    assert not np.array_equal(newer.cls[0], before[0])
    older = FeatureStore(out, snapshot=reader.snapshot.number)
    np.testing.assert_array_equal(older.cls, before)


@pytest.mark.slow
@pytest.mark.promise(18)
def test_workers_read_a_bucket_in_processes_of_their_own(
    faults: Faults, out: str, photos: Path, tmp_path: Path, service: Service
) -> None:
    source = f"{service.bucket('workers')}/photos"
    put_folder(photos, open_storage(source))
    faults.refused = faults.cut = 0.05
    store = run(source, out, workers=2)
    assert store.failed == []
    np.testing.assert_array_equal(store.cls, run(photos, tmp_path / "out").cls)


@pytest.mark.slow
@pytest.mark.promise(19, 35)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_keeps_what_is_done_and_gives_its_leases_back(
    faults: Faults, out: str, photos: Path, tmp_path: Path, number: int, code: int
) -> None:
    for i in range(80):
        shutil.copy(photos / f"{i % 12:02}.png", photos / f"copy-{i}.png")
        with (photos / f"copy-{i}.png").open("ab") as file:
            file.write(b"%d" % i)  # another content
    faults.slow = 1.0
    arguments = ["extract", str(photos), "--out", out, "--shard-size", "4", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "vitbackbone", *arguments])
    storage = open_storage(out)
    deadline = time.monotonic() + 200
    while not any(storage.list("done/")):
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == code
    assert not list(storage.list("leases/"))
    done = {stored.key for stored in storage.list("objects/")}
    faults.slow = 0
    assert subprocess.run([sys.executable, "-m", "vitbackbone", *arguments]).returncode == 0
    assert done <= {stored.key for stored in storage.list("objects/")}
    assert json.loads(open_storage(out).get("snapshots/00000002.json"))["record"]["counts"]["failed"] == 0
