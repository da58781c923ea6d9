"""How the cost of a store grows with its inputs and its shards: CPU time and memory, and the exponents.

    python -m benchmarks.store_scale --paths 10000 100000 1000000

The inputs are distinct byte strings in a parquet file and no images, so that all but the decoding and the forward is
measured: listing, checksums, planning, claims, records, the snapshot, a second run that checks everything, and opening.
Each size runs in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from math import log
from pathlib import Path

STEPS = ("first run", "second run", "open", "index")


def measure(folder: Path, paths: int, shards: int) -> dict[str, float]:
    """Return the CPU seconds of each step, and the MiB by which the peak of memory grew."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from vitbackbone import FeatureStore, Preprocess, ViT, ViTConfig, extract

    torch.set_num_threads(1)
    config = ViTConfig(image_size=(16, 16), patch_size=16, dim=8, depth=1, num_heads=1, mlp_dim=8)
    backbone = ViT(config, Preprocess((16, 16)), name="tiny").eval()
    with pq.ParquetWriter(folder / "inputs.parquet", pa.schema({"path": pa.string(), "image": pa.binary()})) as writer:
        for start in range(0, paths, 10_000):
            numbers = range(start, min(start + 10_000, paths))
            names = [f"folder-{i // 1000:05}/photo-{i:08}.jpg" for i in numbers]
            writer.write_table(pa.table({"path": names, "image": [b"%08d is not a picture" % i for i in numbers]}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, size = folder / "out", -(-paths // shards)
    cpu = [time.process_time()]
    for _ in range(2):
        extract(backbone, folder / "inputs.parquet", out, shard_size=size, batch_size=1000, progress=False)
        cpu.append(time.process_time())
    store = FeatureStore(out)
    assert (store.snapshot.counts.failed, store.snapshot.counts.shards) == (paths, -(-paths // size))
    cpu.append(time.process_time())
    assert len(store.index) == paths
    cpu.append(time.process_time())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    steps = dict(zip(STEPS, (after - at for at, after in pairwise(cpu)), strict=True))
    return {"paths": paths, "shards": shards, **steps, "MiB": grown / 1024}


def report(title: str, key: str, rows: list[dict[str, float]]) -> None:
    """Print the rows, and between two of them the exponents of growth in `key`. Counts are whole, costs are not."""
    costs = [name for name, value in rows[0].items() if isinstance(value, float)]
    print(f"\n{title}\n" + "".join(f" {name:>12}" for name in rows[0]))
    for row in rows:
        print("".join(f" {value:>12.2f}" if name in costs else f" {value:>12}" for name, value in row.items()))
    for few, many in pairwise(rows):
        grown = (log(many[name] / few[name]) / log(many[key] / few[key]) for name in costs)
        print(f"{'exponent':>{13 * (len(few) - len(costs))}}" + "".join(f" {exponent:>12.2f}" for exponent in grown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, nargs="+", default=[10_000, 100_000], metavar="N")
    parser.add_argument("--shards", type=int, nargs="+", default=[500, 2000, 8000], metavar="N")
    parser.add_argument("--one", type=int, nargs=2, metavar="N", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), *args.one)))
        return

    def run(paths: int, shards: int) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.store_scale", "--one", str(paths), str(shards)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    report("shards of 1,000 inputs", "paths", [run(paths, -(-paths // 1000)) for paths in args.paths])
    most = max(args.shards)
    report(f"{most} inputs in more and more shards", "shards", [run(most, shards) for shards in args.shards])


if __name__ == "__main__":
    main()
