"""Cost of the linear probe: of 45 values of C against one fit of scikit-learn, and of rows that stay on the disk.

    python -m benchmarks.probes sweep --samples 50000 --width 768             # in memory
    python -m benchmarks.probes sweep --samples 50000 --width 768 --decay 0   # the same of features not correlated
    python -m benchmarks.probes lazy --samples 200000 --width 384 --dtype float16   # seconds and peak memory

`sweep` times in one process, in turn: the medians, their ratio, and the accuracy on fresh samples of the C that was
chosen and of the one that a naive sweep chooses (`--naive`, which takes minutes). `lazy` measures one process for the
probe and one for scikit-learn on the whole array: the peak of what is allocated, and of what is resident above the
imports, which has pages of the file too; the system takes these back when it needs them.
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
from heads.probes import PRESETS


@dataclass(frozen=True)
class Mapped:
    """Rows of a `.npy` file, read when asked for."""

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
        """Read through a map of its own, so that pages of the file that were read do not stay with the process."""
        for start in range(0, len(self), rows):
            yield np.load(self.array.filename, mmap_mode="r")[self.index[start : start + rows]]


def samples(args: argparse.Namespace, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features of overlapping classes, a few directions stronger than the others, 10,000 samples at a time."""
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
    """scikit-learn's fit of scaled features."""
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
            subprocess.run([sys.executable, __file__, "one", "--fit", fit, "--folder", folder], check=True)


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
    """Largest resident memory of this program so far, in MB. Linux alone says: `getrusage` has its parent's too."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sweep", "lazy", "one"], help="`one` is what `lazy` runs")
    parser.add_argument("--samples", type=int, default=50_000, metavar="N")
    parser.add_argument("--width", type=int, default=768, metavar="F")
    parser.add_argument("--decay", type=float, default=0.75, help="of directions: strength = rank ** -decay")
    parser.add_argument("--classes", type=int, default=10, metavar="K")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--dtype", default="float16", choices=["float16", "float32"])
    parser.add_argument("--naive", action="store_true", help="the sweep without warm starts too")
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    {"sweep": sweep, "lazy": lazy, "one": one}[args.what](args)


if __name__ == "__main__":
    main()
