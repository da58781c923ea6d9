"""Faults that are really injected: kills, a full disk, locks of the dead, processes that vanish, no memory."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import photo, randomise, save_photo, tiny_vit
from vitbackbone.contract.features import Features
from vitbackbone.contract.geometry import Images
from vitbackbone.files import LocalStorage
from vitbackbone.images import Photo
from vitbackbone.images.preprocess import Preprocess
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.vit import ViT
from vitbackbone.store import FeatureStore, extract, history, verify
from vitbackbone.store.layout import lease_key
from vitbackbone.store.records import seal
from vitbackbone.store.results import read_tasks
from vitbackbone.store.snapshots import latest
from vitbackbone.store.workers import pull as pull_module
from vitbackbone.store.workers.leases import Lease

# From a process that has imported torch already; a kill loop would wait for that.
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(12):
        save_photo(tmp_path / "photos" / f"{i:02}.png", 30 + i, 40, seed=i)
    return tmp_path / "photos"


def objects(directory: Path) -> dict[str, bytes]:
    """The files that are named by their content. The records of snapshots also hold times."""
    return {f.name: f.read_bytes() for f in directory.glob("objects/*/*")}


def is_intact(directory: Path) -> bool:
    """Whether every file is undamaged, and no unfinished file and no claim of a shard is left."""
    left = [*directory.glob(".unfinished/*"), *directory.glob("leases/[0-9a-f]*"), *directory.glob("done/*")]
    return not left and verify(directory).problems == ()


FIXED = {"tokens": ["cls", "patches"], "shard_size": 2, "batch_size": 2, "progress": False}


def run(photos: Path, out: Path, **options: object) -> FeatureStore:
    return extract(tiny_vit(), photos, out, **{**FIXED, **options})


class Stopped(ViT):
    """Is interrupted in the first forward."""

    def __init__(self, config: ViTConfig, stops: bool = True) -> None:
        super().__init__(config)
        randomise(self)
        self.stops = stops

    def forward_layers(self, images: Images, *args: object, **kwargs: object) -> tuple[Features, ...]:
        if self.stops:
            raise KeyboardInterrupt
        return super().forward_layers(images, *args, **kwargs)


def in_process(work: Callable[[], object]) -> multiprocessing.Process:
    process = FORK.Process(target=work)
    process.start()
    return process


@pytest.mark.promise(2)
def test_after_kills_at_random_moments_the_store_is_the_uninterrupted_one(
    photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run(photos, tmp_path / "warm")  # the first run also loads libraries
    began = time.monotonic()
    run(photos, tmp_path / "whole")
    lasts = time.monotonic() - began
    whole = objects(tmp_path / "whole")
    moments = random.Random(0)
    kills = rounds = 0
    while kills < request.config.getoption("--kills"):
        out = tmp_path / f"killed-{rounds}"
        for _ in range(3):
            process = in_process(lambda out=out: run(photos, out))
            process.join(moments.uniform(0, 1.2 * lasts))
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        run(photos, out)
        assert objects(out) == whole
        assert is_intact(out)
        rounds += 1


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.promise(4)
def test_a_full_disk_is_an_error_that_says_what_to_do_and_the_run_goes_on_when_there_is_room(
    photos: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "300k") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(220 * 1024))
        with pytest.raises(
            OSError, match=r"No space left on device, for .*; free some space and run the same extraction again"
        ):
            run(photos, disk / "out")
        kept = objects(disk / "out")
        assert not (disk / "out" / ".unfinished").exists()
        assert list((disk / "out").glob("done/*.json"))
        ballast.unlink()
        run(photos, disk / "out")
        assert all(objects(disk / "out")[name] == data for name, data in kept.items())
        run(photos, tmp_path / "whole")
        assert objects(disk / "out") == objects(tmp_path / "whole")
        assert is_intact(disk / "out")


@pytest.mark.promise(5)
def test_runs_at_the_same_time_share_the_work_and_end_in_one_store(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "whole")
    together = [in_process(lambda: run(photos, tmp_path / "out")) for _ in range(3)]
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0, 0, 0]
    assert objects(tmp_path / "out") == objects(tmp_path / "whole")
    assert is_intact(tmp_path / "out")
    assert [one.why for one in history(tmp_path / "out")] == ["results", "plan"]


@pytest.mark.promise(5)
@pytest.mark.parametrize("age", [60.0, -3600.0])
def test_a_claim_is_taken_over_after_its_term_or_when_nothing_else_is_left(
    photos: Path, tmp_path: Path, age: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free worker repeats the last shards of a worker that is gone or slow."""
    monkeypatch.setattr(pull_module, "PATIENCE", 0.1)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        extract(Stopped(tiny_vit().config).eval(), photos, out, **FIXED)
    place = LocalStorage(out)
    snapshot = latest(place)
    assert snapshot is not None
    for task in read_tasks(place, snapshot, snapshot.work[0]):
        assert place.create(lease_key(task.key), seal(Lease(token="another", written=0.0)))
        os.utime(out / lease_key(task.key), (time.time() - age,) * 2)
    before = time.monotonic()
    store = extract(Stopped(tiny_vit().config, stops=False).eval(), photos, out, **FIXED)
    assert len(store) == 12
    assert time.monotonic() - before < 60
    assert is_intact(out)


@pytest.mark.promise(8)
def test_a_file_without_permission_is_a_row_and_is_tried_again(tmp_path: Path) -> None:
    """As another user if this is root, who may read everything."""
    open_to_all = Path("/tmp") / f"vitbackbone-{os.getpid()}"  # pytest's own folders are closed to others
    try:
        for i in range(2):
            save_photo(open_to_all / "photos" / f"{i}.png", seed=i)
        open_to_all.chmod(0o777)
        closed = open_to_all / "photos" / "1.png"
        closed.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            store = run(open_to_all / "photos", open_to_all / "out")
        finally:
            if root:
                os.seteuid(0)
        assert store.failed == [("1.png", "Permission denied")]
        assert store.index["reason"].to_pylist() == [None, "denied"]
        closed.chmod(0o644)
        assert run(open_to_all / "photos", open_to_all / "out").failed == []  # every run tries it again
    finally:
        shutil.rmtree(open_to_all, ignore_errors=True)


@pytest.mark.promise(13)
def test_frames_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    first, *others = [photo(30, 40, seed) for seed in range(3)]
    first.save(tmp_path / "photos/a.tif", save_all=True, append_images=others)
    first.save(tmp_path / "photos/b.png")
    store = run(tmp_path / "photos", tmp_path / "out")
    assert store.index["frames"].to_pylist() == [3, 1]
    np.testing.assert_array_equal(store.cls[0], store.cls[1])


@pytest.mark.promise(14)
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (31, 33)])
def test_odd_sizes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", size, "teal").save(tmp_path / "photos/a.png")
    store = run(tmp_path / "photos", tmp_path / "out")
    assert store.failed == []
    assert np.isfinite(store.cls).all()


@pytest.mark.promise(16)
def test_a_list_may_name_what_lies_above_it(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text("path\n../photos/00.png\n")
    store = run(tmp_path / "lists" / "list.csv", tmp_path / "out")
    assert store.paths == ["../photos/00.png"]


class NoMemory(ViT):
    def forward_layers(self, images: Images, *args: object, **kwargs: object) -> tuple[Features, ...]:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.mark.promise(17)
def test_memory_that_does_not_suffice_for_one_image_is_an_error(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"single image of 32 x 32 pixels; ask for a lower resolution"):
        extract(NoMemory(tiny_vit().config).eval(), photos, tmp_path / "out", progress=False)


class Fatal(Preprocess):
    """Kills the process that reads, as the kernel does where memory runs out."""

    def pixels(self, *_: object) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.promise(18)
def test_a_killed_worker_is_named_and_nothing_hangs(photos: Path, tmp_path: Path) -> None:
    model = ViT(tiny_vit().config, preprocess=Fatal(image_size=(32, 32))).eval()
    with pytest.raises(ChildProcessError, match=r"reads images was killed .*fewer workers"):
        extract(model, photos, tmp_path / "out", workers=1, progress=False)


class Crashing(Preprocess):
    """Crashes at a picture of 9 x 9 pixels, as a decoder does that reads where it must not."""

    def pixels(self, photo: Photo, *args: object) -> torch.Tensor:
        if photo.size == (9, 9):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().pixels(photo, *args)


@pytest.mark.promise(18)
@pytest.mark.parametrize("afresh", [pytest.param(False, marks=pytest.mark.slow), True])
def test_images_that_crash_a_reader_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, afresh: bool) -> None:
    monkeypatch.setattr("vitbackbone.store.workers.reader.has_clients", lambda: afresh)
    for i in range(40):  # the third crashes, so that no forward comes before it
        save_photo(tmp_path / "photos" / f"{i:02}\x1b.png", 9 if i == 2 else 8, 9, seed=i)
    model = ViT(tiny_vit().config, preprocess=Crashing(image_size=(32, 32))).eval()
    with pytest.raises(ChildProcessError) as raised:
        extract(model, tmp_path / "photos", tmp_path / "out", workers=2, progress=False)
    told = str(raised.value)
    begun = re.search(r"killed while it read (\S* to \S*) \(", told)
    assert begun, told
    first, last = (int(Path(name).name[:2]) for name in begun[1].split(" to "))
    assert first <= 2 <= last < first + 8
    assert "\x1b" not in told
    assert "move it away" in told
    (tmp_path / "photos/02\x1b.png").unlink()
    assert len(extract(model, tmp_path / "photos", tmp_path / "out", workers=2, progress=False)) == 39


@pytest.mark.promise(20)
def test_103_images_over_4_workers_are_a_row_each(tmp_path: Path) -> None:
    for i in range(103):
        save_photo(tmp_path / "photos" / f"{i:03}.png", 8, 9, seed=i)
    store = run(tmp_path / "photos", tmp_path / "out", workers=4, batch_size=3, shard_size=10)
    assert store.paths == [f"{i:03}.png" for i in range(103)]
    alone = run(tmp_path / "photos", tmp_path / "alone", batch_size=1, shard_size=103)
    np.testing.assert_allclose(store.cls, alone.cls, atol=1e-5)


MILLION = """
import resource, sys
import pyarrow as pa, pyarrow.parquet as pq
from tests.helpers import tiny_vit
from vitbackbone.store import extract
folder, count = sys.argv[1], int(sys.argv[2])
paths = pa.table({"path": [f"folder-{i // 1000:04}/photo-{i:07}.jpg" for i in range(count)]})
pq.write_table(paths, f"{folder}/list.parquet")
model = tiny_vit()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = extract(model, f"{folder}/list.parquet", f"{folder}/out", shard_size=10_000, engine="native", progress=False)
assert (len(store), store.snapshot.counts.failed) == (0, count)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.promise(23)
def test_a_million_paths_take_little_more_memory_than_a_thousand(tmp_path: Path) -> None:
    """The peak in KiB of a process of its own; the list of a million names is 30 MB of text."""
    grown = {}
    for count in (1000, 1_000_000):
        (tmp_path / str(count)).mkdir()
        command = [sys.executable, "-c", MILLION, str(tmp_path / str(count)), str(count)]
        grown[count] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"\npeak above the start: {grown}")
    assert grown[1_000_000] - grown[1000] < 400_000
