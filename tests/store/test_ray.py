"""The same objects from a Ray cluster, whichever process dies meanwhile, in a folder and in a bucket."""

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.buckets import going_to, moto
from tests.helpers import randomise, save_photo, tiny_vit
from vitbackbone.contract.features import Features
from vitbackbone.contract.geometry import Images
from vitbackbone.files import open_storage
from vitbackbone.model.vit import ViT
from vitbackbone.store import RayCluster, extract, verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("obstore") is None, reason="buckets need the extra 'cloud'"),
]

SHARDS = 20
OPTIONS = {"shard_size": 2, "batch_size": 2, "tokens": ["cls", "patches"], "progress": False}
SECONDS = 0.5  # of a forward, so that the faults come in mid-run


class Slow(ViT):
    seconds = 0.0

    def forward_layers(self, images: Images, layers: Sequence[int], norm: bool = True) -> tuple[Features, ...]:
        time.sleep(self.seconds)
        return super().forward_layers(images, layers, norm)


def backbone(seconds: float = 0.0) -> Slow:
    torch.manual_seed(0)
    made = Slow(tiny_vit().config)
    randomise(made)
    made.seconds = seconds
    return made.eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(2 * SHARDS):
        save_photo(folder / f"{i:02}.png", 60, 70, seed=i)
    (folder / "07.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("one") / "out"
    extract(backbone(), photos, out, **OPTIONS)
    return objects(out)


def objects(out: Path | str) -> dict[str, bytes]:
    storage = open_storage(out)
    return {stored.key: storage.get(stored.key) for stored in storage.list("objects/")}


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """The head of a cluster for the driver, without CPUs. All its processes go to an S3 server."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, moto() as url, going_to(url, patch):
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            ray.init(address=made.address, log_to_driver=False)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def cluster(head: Any) -> Iterator[Any]:
    """Two nodes of two CPUs each, of processes of their own."""
    nodes = [head.add_node(num_cpus=2) for _ in range(2)]
    head.nodes = nodes
    yield head
    for node in nodes:
        if node in head.worker_nodes:
            head.remove_node(node)


def kill_an_actor(_: Any) -> None:
    """Ray calls its processes by what they do."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found = file.read_bytes().startswith(b"ray::MapWorker")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if found:
            return os.kill(int(file.parent.name), signal.SIGKILL)
    raise AssertionError("no actor runs")


def kill_a_node(cluster: Any) -> None:
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)


@pytest.mark.promise(34)
@pytest.mark.parametrize("place", ["a folder", "a bucket"])
def test_shards_are_those_of_one_process_after_an_actor_and_a_node_were_killed(
    place: str, photos: Path, tmp_path: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    out = "s3://photos/features" if place == "a bucket" else tmp_path / "out"
    happened: list[int] = []  # how many shards were done at each fault

    def after(shards: int, fault: Callable[[Any], None]) -> None:
        storage = open_storage(out)
        while (done := sum(1 for _ in storage.list("done/"))) < shards:
            time.sleep(0.05)
        fault(cluster)
        happened.append(done)

    def faults() -> None:
        after(2, kill_an_actor)
        after(6, kill_a_node)

    thread = threading.Thread(target=faults, daemon=True)
    thread.start()
    store = extract(backbone(SECONDS), photos, out, cluster=RayCluster(actors=2), **OPTIONS)
    thread.join(timeout=10)
    assert len(happened) == 2
    assert max(happened) < SHARDS
    assert objects(out) == expected
    assert [path for path, _ in store.failed] == ["07.png"]
    assert verify(out).problems == ()
