"""Measure the linear probe: 45 values of C beside one fit of scikit-learn, and rows that stay on the disk.

    python -m benchmarks.probes sweep --samples 50000 --width 768             # in memory
    python -m benchmarks.probes sweep --samples 50000 --width 768 --decay 0   # features without correlation
    python -m benchmarks.probes lazy --samples 200000 --width 384 --dtype float16   # seconds and peak memory

`sweep` runs all in one process, in turn. It prints medians, their ratio, and the accuracy on fresh samples for the
chosen C. With `--naive`, which takes minutes, it also prints the C that a naive sweep chooses. `lazy` runs the probe in
one process, and scikit-learn on the whole array in another. It prints the peak of allocated memory, and the peak of
resident memory above the imports. Resident memory includes pages of the file, which the system can take back.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from heads import LinearProbe, hold_out
from heads.probes.linear import PRESETS


@dataclass(frozen=True)
class Mapped:
    """The rows of a `.npy` file, read on demand."""

    array: np.memmap
    index: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.index), *self.array.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> "Mapped":
        return Mapped(self.array, self.index[index])

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """Read rows through a new memory map, so that the pages do not stay with the process."""
        for start in range(0, len(self), rows):
            yield np.load(self.array.filename, mmap_mode="r")[self.index[start : start + rows]]


def samples(args: argparse.Namespace, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield features of overlapping classes, 10,000 samples at a time. A few directions are stronger than others."""
    width, num_classes = args.width, args.classes
    fixed, fresh = np.random.default_rng(0), np.random.default_rng(seed)
    axes = np.linalg.qr(fixed.standard_normal((width, width), dtype=np.float32))[0]
    mix = axes * np.arange(1, width + 1, dtype=np.float32) ** -args.decay
    centres = 0.1 * fixed.standard_normal((num_classes, width), dtype=np.float32)
    for start in range(0, count, 10_000):
        y = fresh.integers(num_classes, size=min(10_000, count - start))
        yield (centres[y] + fresh.standard_normal((len(y), width), dtype=np.float32)) @ mix.T, y


def whole(args: argparse.Namespace, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    X, y = zip(*samples(args, count, seed), strict=True)
    return np.concatenate(X), np.concatenate(y)


def plain(X: np.ndarray, y: np.ndarray, C: float) -> Any:
    """Fit scikit-learn's classifier on scaled features."""
    return LogisticRegression(C=C, max_iter=1000).fit(StandardScaler().fit_transform(X), y)


def sweep(args: argparse.Namespace) -> None:
    X, y = whole(args, args.samples, seed=1)
    X_test, y_test = whole(args, 20_000, seed=2)
    probes: list[LinearProbe] = []
    contestants: dict[str, Callable[[], object]] = {
        "scikit-learn, one C": lambda: plain(X, y, 0.316),
        "LinearProbe, one C": lambda: LinearProbe().fit(X, y),
        "LinearProbe, 45 C": lambda: probes.append(LinearProbe("dinov2").fit(X, y)),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in tqdm(range(args.rounds), leave=False):
        for name, fit in contestants.items():
            began = perf_counter()
            fit()
            times[name].append(perf_counter() - began)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    print("| fit | s | of scikit-learn's |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} | {value / seconds['scikit-learn, one C']:.2f} |")
    print(f"\nchose C = {probes[0].C_:.3g}, accuracy {100 * probes[0].score(X_test, y_test):.2f}")
    if args.naive:
        held = hold_out(y, 0.1)
        scaler = StandardScaler().fit(X)
        Z, Z_test = scaler.transform(X), scaler.transform(X_test)
        fits = [LogisticRegression(C=C, max_iter=1000).fit(Z[~held], y[~held]) for C in tqdm(PRESETS["dinov2"])]
        C = max(fits, key=lambda model: model.score(Z[held], y[held])).C
        refit = LogisticRegression(C=C, max_iter=1000).fit(Z, y)
        print(f"a naive sweep chooses C = {C:.3g}, accuracy {100 * refit.score(Z_test, y_test):.2f}")


def lazy(args: argparse.Namespace) -> None:
    count, width = args.samples, args.width
    with tempfile.TemporaryDirectory() as folder:
        file, labels = Path(folder) / "features.npy", Path(folder) / "labels.npy"
        array = np.lib.format.open_memmap(file, "w+", dtype=args.dtype, shape=(count, width))
        y, start = np.empty(count, dtype=np.int64), 0
        for X, codes in samples(args, count, seed=1):
            array[start : start + len(X)], y[start : start + len(X)] = X, codes
            start += len(X)
        del array
        np.save(labels, y)
        print(f"{count} x {width} of {args.dtype}: {file.stat().st_size / 1e6:.0f} MB\n")
        print("| fit | s | MB allocated | MB resident |\n| --- | --- | --- | --- |")
        for fit in FITS:
            command = [sys.executable, "-m", "benchmarks.probes", "one", "--fit", fit, "--folder", folder]
            subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)


FITS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "LinearProbe, one C": lambda array, y: LinearProbe().fit(Mapped(array, np.arange(len(y))), y),
    "LinearProbe, 45 C": lambda array, y: LinearProbe("dinov2").fit(Mapped(array, np.arange(len(y))), y),
    "scikit-learn, one C": lambda array, y: plain(np.asarray(array, dtype=np.float32), y, 0.316),
}


def one(args: argparse.Namespace) -> None:
    array, y = (np.load(Path(args.folder) / name, mmap_mode="r") for name in ("features.npy", "labels.npy"))
    LinearProbe().fit(np.eye(50, dtype=np.float32), np.arange(50) % 2)  # libraries and threads that start on first use
    tracemalloc.start()
    before, began = peak(), perf_counter()
    FITS[args.fit](array, y)
    allocated = tracemalloc.get_traced_memory()[1] / 1e6
    print(f"| {args.fit} | {perf_counter() - began:.1f} | {allocated:.0f} | {peak() - before:.0f} |", flush=True)


def peak() -> float:
    """Return the peak of this process's resident memory, in MB.

    Read from Linux, because `getrusage` includes the peak of the parent process.
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sweep", "lazy", "one"], help="`one` is what `lazy` runs")
    parser.add_argument("--samples", type=int, default=50_000, metavar="N")
    parser.add_argument("--width", type=int, default=768, metavar="F")
    parser.add_argument("--decay", type=float, default=0.75, help="decay of the directions: strength = rank ** -decay")
    parser.add_argument("--classes", type=int, default=10, metavar="K")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--dtype", default="float16", choices=["float16", "float32"])
    parser.add_argument("--naive", action="store_true", help="also run the sweep without warm starts")
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    {"sweep": sweep, "lazy": lazy, "one": one}[args.what](args)


if __name__ == "__main__":
    main()
