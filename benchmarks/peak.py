"""Measure the fastest matrix products of this machine, and compute the peak of its instructions.

python -m benchmarks.peak
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import DEVICE, ON_GPU, cpu_info, machine, markdown, noise, wait_for
from vitbackbone.contract import Precision
from vitbackbone.runtime import Int8Weights, PackedLinear, Steps, int8_trouble, onednn, trouble

# (M, K, N): linears of ViT-B at batch 1, 8 and 32, and a square.
SHAPES = [(197, 768, 3072), (1576, 768, 3072), (1576, 3072, 768), (6304, 768, 3072), (2048, 2048, 2048)]
LARGE = [
    (6304, 768, 3072),
    (50432, 1024, 4096),
    (50432, 4096, 1024),
    (8192, 8192, 8192),
]  # for a GPU, with linears of ViT-L
ROUNDS = 7
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Float32 operations of a core in one cycle: lanes × two operations of a multiply-add × units.
PER_CYCLE = {
    ("AuthenticAMD", 23, 0): 16,  # Zen 1 and +: two units of 128 bits
    ("AuthenticAMD", 23, 48): 32,  # Zen 2: two of 256
    ("AuthenticAMD", 25, 0): 32,  # Zen 3, Zen 4: two of 256
    ("AuthenticAMD", 26, 0): 64,  # Zen 5: two of 512
    ("GenuineIntel", 6, 0): 64,  # servers since Skylake: two of 512
}
# How many times as many operations an instruction for narrower numbers does, by Linux's name of it.
WIDER: dict[Precision, tuple[str, int]] = {"bf16": ("avx512_bf16", 2), "int8": ("avx512_vnni", 4)}


def products(precision: Precision, shape: tuple[int, int, int]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield the ways to multiply that a network may take."""
    m, k, n = shape
    if precision == "int8":
        if not ON_GPU and not int8_trouble():
            x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
            weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
            kernel = onednn(Int8Weights(weight, torch.full((n,), 1e-3), torch.zeros(n)))
            yield "packed", partial(kernel, x, Steps(0.02, 128), None, Steps(0.05, 128))
        return
    dtype = DTYPES[precision]
    linear = nn.Linear(k, n).to(DEVICE).requires_grad_(False)
    x, weight = noise(m, k).to(dtype), linear.weight.to(dtype)
    yield "torch", partial(F.linear, x, weight)
    if not ON_GPU and not trouble(dtype):
        yield "packed", partial(PackedLinear(linear, None, dtype), x)


def sweep(precision: Precision) -> list[tuple[str, tuple[int, int, int], float]]:
    """Return way, shape and median rate, in 10⁹ operations a second, of each product."""
    found = []
    for shape in LARGE if ON_GPU else SHAPES:
        m, k, n = shape
        for way, run in products(precision, shape):
            wait_for(run())
            times = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                wait_for(run())
                times.append(time.perf_counter() - began)
            found.append((way, shape, 2e-9 * m * k * n / statistics.median(times)))
    return found


def measured(precision: Precision) -> float:
    """Return the rate of the fastest product, in 10⁹ operations a second."""
    return max(speed for _, _, speed in sweep(precision))


def has_bfloat16() -> bool:
    """Tell whether the processor has instructions for bfloat16. Without them it is emulated."""
    return ON_GPU or any(flag in cpu_info().get("flags", "") for flag in ("avx512_bf16", "amx_bf16"))


def theoretical() -> tuple[float, str] | None:
    """Return the peak in float32, in 10⁹ operations a second, and its factors.

    It is computed from the instruction set and the clock that Linux gives.
    """
    info = cpu_info()
    try:
        vendor, family, model = info["vendor_id"], int(info["cpu family"]), int(info["model"])
        clock = float(info["cpu MHz"]) / 1e3
    except (KeyError, ValueError):
        return None
    known = [flops for (v, f, m), flops in sorted(PER_CYCLE.items()) if (v, f) == (vendor, family) and m <= model]
    if ON_GPU or not known:
        return None
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    return threads * clock * known[-1], f"{threads} cores x {clock:.2f} GHz x {known[-1]} operations a cycle"


def report() -> str:
    """Return a table of the sweep, and a line on the peak of the instructions."""
    rows = []
    for precision in PRECISIONS:
        if precision == "bf16" and not has_bfloat16():
            continue
        rows += [
            (precision, way, " x ".join(map(str, shape)), f"{speed:.0f}") for way, shape, speed in sweep(precision)
        ]
    return "\n\n".join(filter(None, [markdown(["precision", "way", "M x K x N", "GFLOP/s"], rows), promised()]))


def promised() -> str:
    found, flags = theoretical(), cpu_info().get("flags", "")
    if found is None:
        return ""
    wider = [f", {factor * found[0]:.0f} in {name}" for name, (flag, factor) in WIDER.items() if flag in flags]
    return (
        f"By its instructions: {found[0]:.0f} in float32 ({found[1]}){''.join(wider)}. The clock is the one that Linux "
        "gives; a virtual machine is told the lowest, and runs above it."
    )


if __name__ == "__main__":
    print(machine(), report(), sep="\n\n")
