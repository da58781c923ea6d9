"""The same bytes from a Ray cluster, whoever of it dies meanwhile."""

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import save_photo
from vitbackbone import load_backbone
from vitbackbone.store import RayCluster, extract, verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]

# Large enough that the faults come in mid-run.
OPTIONS = {"shard_size": 2, "batch_size": 2, "resolution": 160, "tokens": ["cls", "patches"], "progress": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(40):
        save_photo(folder / f"{i:02}.png", 60, 70, seed=i)
    (folder / "07.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("one") / "out"
    extract(load_backbone("nano"), photos, out, **OPTIONS)
    return objects(out)


def objects(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.glob("objects/*/*")}


@pytest.fixture
def cluster() -> "Iterator[object]":
    """A head for the driver, and two nodes of two CPUs each, of processes of their own."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        made.nodes = [made.add_node(num_cpus=2), made.add_node(num_cpus=2)]
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def kill_an_actor(_: object) -> None:
    """Ray calls its processes by what they do."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found = file.read_bytes().startswith(b"ray::MapWorker")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if found:
            return os.kill(int(file.parent.name), signal.SIGKILL)
    raise AssertionError("no actor runs")


def kill_a_node(cluster: object) -> None:
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)


@pytest.mark.promise(34)
def test_shards_are_those_of_one_process_after_an_actor_and_a_node_were_killed(
    photos: Path, tmp_path: Path, expected: dict[str, bytes], cluster: object
) -> None:
    out = tmp_path / "out"
    happened: list[int] = []  # how many shards were done at each fault

    def after(shards: int, fault: Callable[[object], None]) -> None:
        while (done := len(list(out.glob("done/*.json")))) < shards:
            time.sleep(0.05)
        fault(cluster)
        happened.append(done)

    def faults() -> None:
        after(2, kill_an_actor)
        after(6, kill_a_node)

    thread = threading.Thread(target=faults, daemon=True)
    thread.start()
    store = extract(load_backbone("nano"), photos, out, cluster=RayCluster(actors=2), **OPTIONS)
    thread.join(timeout=10)
    assert len(happened) == 2
    assert max(happened) < 20
    assert objects(out) == expected
    assert [path for path, _ in store.failed] == ["07.png"]
    assert verify(out).problems == ()
