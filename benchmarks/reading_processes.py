"""How well processes that read images share the work, without the cores that they would need.

    python -m benchmarks.reading_processes

Each process waits as long as decoding takes, so that two cores can stand for sixteen. The batches are those of
`extract` for a GPU. The share is the time that all processes need together, over the time until the last batch; the
start of the processes counts.
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import torch

from benchmarks.timing import markdown
from vitbackbone.store.sources.locate import Locator
from vitbackbone.store.workers.killed_readers import Notes
from vitbackbone.store.workers.reader import Asked, ImageReader, Outcome, Read, read_batches
from vitbackbone.store.workers.shard_job import batch_spans

PIXELS = torch.zeros(3, 224, 224, dtype=torch.uint8)
SHARD = 1000


class Waiting(ImageReader):
    """Reads an image in a fixed time."""

    def __init__(self, seconds: float, processes: int) -> None:
        self.seconds, self.notes = seconds, Notes(processes)

    def __getitems__(self, asked: Sequence[Asked]) -> Read:
        time.sleep(self.seconds * len(asked))
        return [(Outcome(), PIXELS) for _ in asked]


def shards(count: int, batch: int) -> Iterator[list[list[Asked]]]:
    """Yield the batches of each shard."""
    for start in range(0, count, SHARD):
        names: list[Asked] = [(Locator(f"{i}.jpg"), None) for i in range(start, min(start + SHARD, count))]
        yield [names[span.start : span.stop] for span in batch_spans(len(names), batch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[4000, 10_000], metavar="N", help="images")
    parser.add_argument("--processes", type=int, default=16, metavar="N")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N")
    parser.add_argument("--seconds", type=float, default=0.04, help="for an image (default: 0.04)")
    args = parser.parse_args()
    rows = []
    for count in args.counts:
        began = time.perf_counter()
        reader = Waiting(args.seconds, args.processes)
        for _ in read_batches(reader, shards(count, args.batch_size), args.processes, "cpu", args.batch_size):
            pass
        took, least = time.perf_counter() - began, count * args.seconds / args.processes
        rows.append((f"{count:,}", f"{least:.1f}", f"{took:.1f}", f"{least / took:.0%}"))
    print(f"{args.processes} processes, batches of {args.batch_size}, {args.seconds} s for an image\n")
    print(markdown(["images", "least s", "s", "share"], rows))


if __name__ == "__main__":
    main()
