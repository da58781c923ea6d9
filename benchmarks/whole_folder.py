"""Measure the share of what decoding and the forward allow together, over a whole folder of photos.

    python -m benchmarks.whole_folder --count 10000

Decoding and the forward share the cores. So the upper limit of both together is
1 / (1 / decoding + 1 / forward), with the rate of each alone, on all cores. The speed of a machine drifts within
minutes. So `extract` runs slice by slice, of 500 photos each, and both stages are measured before and after each
slice. The limit of a slice is the mean of the two. All times are means, because a slice cannot leave out its slow
moments either.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.folder import MODEL, photos
from benchmarks.peers import from_timm
from benchmarks.timing import DEVICE, machine, noise
from vitbackbone import Photo, Preprocess, extract, optimize

SLICE = 500  # photos


def measure(folder: Path, count: int, batch: int, seconds: float, name: str) -> str:
    """Return the rate of `extract`, its limit, and the share, for each slice and for all."""
    photos(folder / "photos", count)
    _, backbone = from_timm(name)
    fast = optimize(backbone)
    x = noise(batch, 3, *backbone.preprocess.image_size)
    some = [(folder / "photos" / f"{i:05d}.jpg").read_bytes() for i in range(12)]
    slices = count // SLICE

    def stages() -> tuple[float, float]:
        """Return the seconds that a photo takes to decode and to embed."""
        return decoding(backbone.preprocess, some, seconds), each(lambda: fast.forward_prefix(x, [-1]), seconds) / batch

    found, took, limits = [stages()], [], []
    for i in range(slices):
        began = time.perf_counter()
        extract(
            fast,
            folder / "photos",
            folder / "store",
            batch_size=batch,
            shard_size=SLICE,
            device=DEVICE,
            slice=(i, slices),
            progress=False,
        )
        took.append(time.perf_counter() - began)
        found.append(stages())
        limits.append(SLICE * sum(map(sum, found[-2:])) / 2)
        print(f"slice {i + 1} of {slices}: {SLICE / took[-1]:.1f} of {SLICE / limits[-1]:.1f} images/s", flush=True)
    decode, forward = (len(found) / sum(stage) for stage in zip(*found, strict=True))
    shares = sorted(limit / seconds for limit, seconds in zip(limits, took, strict=True))
    return (
        f"{count} photos, CLS of {name}, batches of {batch}, by {fast.runtime.route}: {count / sum(took):.1f} images/s,"
        f" {sum(limits) / sum(took):.0%} of the {count / sum(limits):.1f} that decoding ({decode:.1f} alone) and the "
        f"forward ({forward:.1f} alone) allow together. The slices have {shares[0]:.0%} to {shares[-1]:.0%}."
    )


def decoding(preprocess: Preprocess, files: list[bytes], seconds: float) -> float:
    """Return the seconds of wall time that a photo takes in as many threads as there are cores."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        some = files * threads
        return each(lambda: list(pool.map(lambda data: preprocess.pixels(Photo(data)), some)), seconds) / len(some)


def each(work: Callable[[], object], seconds: float) -> float:
    """Return the mean seconds of a call, of as many calls as begin within `seconds`. The first does not count."""
    work()
    began, calls = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        work()
        calls += 1
    return took / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="photos to make, a multiple of 500")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--seconds", type=float, default=4, help="seconds that each stage is measured, each time")
    parser.add_argument("--model", default=MODEL, metavar="NAME", help=f"a model of timm (default: {MODEL})")
    args = parser.parse_args()
    if args.count < SLICE or args.count % SLICE:
        parser.error(f"--count is {args.count}; want a multiple of {SLICE}")
    print(f"{machine()}, {torch.get_num_threads()} threads\n", flush=True)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photos").mkdir()
        print(measure(Path(folder), args.count, args.batch_size, args.seconds, args.model))


if __name__ == "__main__":
    main()
