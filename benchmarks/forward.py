"""Measure the forward beside timm, transformers, ONNX Runtime and OpenVINO, in each precision.

    python -m benchmarks.forward
    python -m benchmarks.forward --models vit_small_patch16_224.augreg_in21k --batches 1 --precisions fp32

All run in one process, in turn. A ratio compares with timm in float32. `best peer` compares ours with the fastest of
the others in that precision. `of peak` is the share of the fastest matrix product in the precision that ours runs in.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.peak import PRECISIONS, measured
from benchmarks.peers import Field, Run, entrants
from benchmarks.timing import ON_GPU, Contestants, machine, markdown, medians, noise
from vitbackbone import ViTConfig, optimize
from vitbackbone.contract import Precision
from vitbackbone.inspection import costs

FIRST = "vit_large_patch16_224.augreg_in21k" if ON_GPU else "vit_tiny_patch16_224.augreg_in21k"
MODELS = [FIRST, "vit_base_patch16_224.augreg_in21k", "vit_small_patch14_dinov2.lvd142m"]
BATCHES = [1, 8, 32, 256] if ON_GPU else [1, 8, 32]
TOKENS = 20_000  # most tokens of a batch on a CPU by default; a round of 32 images of 1369 patches takes minutes
PEERS = ["timm", "timm, compiled", "transformers", "ONNX Runtime", "OpenVINO"]


@dataclass(frozen=True)
class Row:
    """The seconds of each contestant on one batch, by name and precision."""

    model: str
    pixels: int
    batch: int
    flops: int
    taken: dict[Precision, str]  # the precision that ours computes in, and its route
    seconds: dict[tuple[str, Precision], float]
    alone: float  # CLS alone, in float32

    @property
    def timm(self) -> float:
        return self.seconds["timm", "fp32"]

    def ours(self, precision: Precision) -> float:
        return self.seconds["ours", precision]

    def best_peer(self, precision: Precision) -> float:
        """Return the seconds of the fastest peer in this precision, or in float32 if none runs in it."""
        of = precision if any((name, precision) in self.seconds for name in PEERS) else "fp32"
        return min(self.seconds[name, of] for name in PEERS if (name, of) in self.seconds)


def usual(config: ViTConfig) -> list[int]:
    """Return the default batch sizes."""
    tokens = config.num_prefix + config.grid[0] * config.grid[1]
    return [batch for batch in BATCHES if ON_GPU or batch == 1 or batch * tokens <= TOKENS]


def measure(name: str, batches: list[int], precisions: Sequence[Precision], seconds: float) -> tuple[list[Row], Field]:
    field, backbone = entrants(name, precisions)
    assert isinstance(backbone.config, ViTConfig)
    rows = []
    for batch in batches or usual(backbone.config):
        x = noise(batch, 3, *backbone.config.image_size)
        fast = {precision: optimize(backbone, precision, sample=x) for precision in precisions}
        everyone: list[tuple[tuple[str, Precision], Run]] = [
            *(((each.name, each.precision), each.run) for each in field.contestants),
            *((("ours", precision), run) for precision, run in fast.items()),
        ]
        runs: Contestants = {f"{i}": partial(run, x) for i, (_, run) in enumerate(everyone)}
        runs["alone"] = partial(fast["fp32"].forward_prefix, x, [-1])
        times = medians(runs, seconds)
        by_name = {key: times[f"{i}"] for i, (key, _) in enumerate(everyone)}
        taken = {precision: f"{made.runtime.precision} by {made.runtime.route}" for precision, made in fast.items()}
        flops = costs(backbone.config, backbone.config.image_size, batch).flops
        rows.append(Row(name, backbone.config.image_size[0], batch, flops, taken, by_name, times["alone"]))
    return rows, field


def runs_in(path: str) -> Precision:
    """Return the precision that a route computes in. It may be higher than the one asked for."""
    return next(precision for precision in PRECISIONS if path.startswith(precision))


def table(rows: list[Row], precisions: Sequence[Precision], peaks: dict[Precision, float]) -> str:
    """Return the tables of one model."""
    names = [name for name in [*PEERS, "ours, as it is"] if any(name == each for each, _ in rows[0].seconds)]
    lines = []
    for row in rows:
        for precision in precisions:
            cells = [
                f"{row.timm / row.seconds[name, precision]:.2f}" if (name, precision) in row.seconds else ""
                for name in names
            ]
            ours = row.ours(precision)
            path = row.taken[precision]
            of_peak = f"{row.flops / ours / 1e9 / peaks[runs_in(path)]:.0%}"
            best = f"{row.best_peer(precision) / ours:.2f}"
            lines.append((row.batch, precision, *cells, f"**{row.timm / ours:.2f}**", path, best, of_peak))
    return markdown(["batch", "precision", *names, "ours", "path", "best peer", "of peak"], lines)


def report(
    models: list[str], batches: list[int], precisions: Sequence[Precision], seconds: float
) -> tuple[str, list[Row]]:
    peaks: dict[Precision, float] = {}
    sections, found = [], []
    for name in models:
        rows, field = measure(name, batches, precisions, seconds)
        for of in {runs_in(taken) for row in rows for taken in row.taken.values()} - peaks.keys():
            peaks[of] = measured(of)
        times = ", ".join(f"{1000 * row.timm:.0f} ms at batch {row.batch}" for row in rows)
        alone = ", ".join(f"{row.ours('fp32') / row.alone:.2f} at batch {row.batch}" for row in rows)
        absent = "".join(f"\n- No {who}: {why}." for who, why in field.absent.items())
        sections.append(
            f"### {name}, {rows[0].pixels} pixels\n\ntimm in float32: {times}.\n\n"
            f"{table(rows, precisions, peaks)}\n\nCLS alone, against all tokens: {alone}.{absent}"
        )
        print(sections[-1], flush=True)
        found += rows
    return "\n\n".join(sections), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument(
        "--batches",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="default: 1, 8 and 32, without those that take too long",
    )
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument(
        "--seconds", type=float, default=60, help="seconds for each table row; at least three rounds run"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(f"{machine()}, {torch.get_num_threads()} threads\n", flush=True)
    with torch.inference_mode():
        report(args.models, args.batches, args.precisions, args.seconds)


if __name__ == "__main__":
    main()
