"""Timing of the benchmarks: all contestants in one process, in turn, and the median of each.

The machine's speed drifts, so only ratios within one run count.
"""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vitbackbone.runtime import IDLE

Contestants = dict[str, Callable[[], Any]]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
MOST = 50 if ON_GPU else 15  # rounds
WARM_UP = 2 if ON_GPU else 1  # rounds that do not count: a GPU's kernels are compiled in one, recorded in the next


def medians(
    contestants: Contestants, seconds: float = 60, least: int = 3, most: int = MOST, warm_up: int = WARM_UP
) -> dict[str, float]:
    """Return the seconds of each contestant in each round, after `warm_up` rounds that do not count.

    There are as many rounds as fit into `seconds`, from `least` to `most`.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    rounds, turn = most, 0
    bar = tqdm(total=warm_up + most, leave=False, unit="round")
    while turn < warm_up + rounds:
        began = time.perf_counter()
        for name, run in contestants.items():
            time.sleep(IDLE)
            started = time.perf_counter()
            wait_for(run())
            if turn >= warm_up:
                times[name].append(time.perf_counter() - started)
        turn += 1
        if turn == warm_up:
            rounds = min(most, max(least, int(seconds / (time.perf_counter() - began))))
            bar.total = warm_up + rounds
        bar.update()
    bar.close()
    return {name: statistics.median(each) for name, each in times.items()}


def wait_for(result: Any) -> None:
    """Wait for the GPU, which still computes after a call has returned."""
    if ON_GPU and result is not None:
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], Any]) -> float:
    """Return the peak memory of a run above the memory before it, in MiB. On Linux it is resident memory."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0])  # kB


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return p of values ~ sizes ** p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def ratio(a: float, b: float) -> str:
    return "" if math.isnan(a) or math.isnan(b) else f"{a / b:.2f}"


def machine() -> str:
    """Return the name of the processor or GPU."""
    if ON_GPU:
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores of {cpu_info().get('model name', platform.processor())}"


def cpu_info() -> dict[str, str]:
    """Return Linux's facts about the first core."""
    path = Path("/proc/cpuinfo")
    block = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in block)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
