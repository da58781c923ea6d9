"""Rates of a store and a source in a bucket, by a server in memory on this machine: what the client costs.

    python -m benchmarks.bucket

A real service adds its latency, which many requests at once hide, and its bandwidth. The numbers of requests and of
bytes are the same there.
"""

import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tests.buckets import KEYS, make_bucket, many_keys
from tests.helpers import save_photo, tiny_vit
from tests.servers import Faults, proxy
from vitbackbone.files import bucket_clients, open_storage
from vitbackbone.store import extract, list_inputs
from vitbackbone.store.sources.identity import read_contents
from vitbackbone.store.sources.remote import _bucket

IMAGES, BYTES = 2000, 60_000
MANY = 1_000_000
SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(10**6)
"""


def connect(url: str) -> None:
    """Send all later requests to this server."""
    os.environ.update({**KEYS, "AWS_ENDPOINT_URL": url})
    bucket_clients._client.cache_clear()
    _bucket.cache_clear()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of work, and the seconds of CPU that this process took."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def read_all(source: str, url: str, counting: str, faults: Faults) -> str:
    """List and read a source, at full speed and then by the proxy that counts, and describe what that took."""
    connect(url)
    inputs = list_inputs(source)  # and the client is ready
    sizes, chosen = inputs.table["bytes"].to_numpy(), np.arange(len(inputs))

    def read() -> None:
        assert all(error is None for _, _, error in read_contents(inputs.root, inputs.table, sizes, chosen))

    listing, cpu = timed(lambda: list_inputs(source))
    seconds, read_cpu = timed(read)
    connect(counting)
    faults.requests.clear()
    list_inputs(source)
    listed = len(faults.requests)
    read()
    requests = 1000 * (len(faults.requests) - listed) / IMAGES
    return (
        f"{source}, for 1,000 images: listing {1000 * listed / IMAGES:.1f} requests, {1e6 * cpu / IMAGES:.0f} ms of "
        f"CPU; reading {requests:.1f} requests, {1e6 * read_cpu / IMAGES:.0f} ms of CPU; both "
        f"{IMAGES / (listing + seconds):.0f} images/s ({IMAGES * BYTES / (listing + seconds) / 1e6:.0f} MB/s)"
    )


def main() -> None:
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        connect(url)
        make_bucket(url, "photos")
        storage = open_storage("s3://photos")
        noise = np.random.default_rng(0)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for i in range(IMAGES):
                data = noise.bytes(BYTES)
                storage.put(f"loose/{i:05}.jpg", data)
                member = tarfile.TarInfo(f"{i:05}.jpg")
                member.size = BYTES
                tar.addfile(member, io.BytesIO(data))
        storage.put("tars/0.tar", archive.getvalue())

        faults = Faults()
        counting = stack.enter_context(proxy(url, faults))
        for source in ("loose", "tars/0.tar"):
            print(read_all(f"s3://photos/{source}", url, counting, faults))

        with tempfile.TemporaryDirectory() as folder:
            for i in range(200):
                save_photo(Path(folder) / f"{i:03}.png", seed=i)
            connect(counting)
            counts = []
            for size in (20, 5):  # 10 and 40 shards
                faults.requests.clear()
                extract(tiny_vit(), folder, f"s3://photos/out-{size}", shard_size=size, progress=False)
                counts.append(len(faults.requests))
            print(f"writing: {(counts[1] - counts[0]) / 30:.1f} requests a shard, {counts[0]} in all for 10 shards")

        connect(stack.enter_context(many_keys(MANY)))
        before = peak()
        seconds, _ = timed(lambda: sum(1 for _ in open_storage("s3://many").list()))
        print(
            f"listing {MANY} keys: {MANY / seconds:.0f} keys/s with the server in this process, {peak() - before} MiB"
        )
        before = peak()
        seconds, _ = timed(lambda: list_inputs("s3://many/photos"))
        print(f"list_inputs of {MANY} keys: {seconds:.0f} s, {peak() - before} MiB more")


if __name__ == "__main__":
    main()
