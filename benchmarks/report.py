"""Run all benchmarks, in an hour on two cores. Writes `docs/performance.md`, its plot and the summary in the README.

python -m benchmarks.report
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import timm
import torch
import transformers

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import forward, reading, sizes
from benchmarks.parity import replace_between
from benchmarks.peak import report as peaks
from benchmarks.timing import ON_GPU, machine, markdown

ROOT = Path(__file__).parent.parent
ON_PAPER = (
    "By calculation, 1,000,000 x 768 has ten times the values, and so takes ten times as long. Memory grows by blocks "
    "twice as wide, 13 MB of float32 each, and by 6 MB of labels. scikit-learn needs ten times its memory."
)
NAME = "performance-cuda" if ON_GPU else "performance"  # name of the page, its plot and the place in the README


def versions() -> str:
    names = {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
    if not ON_GPU:
        import onnxruntime
        import openvino

        names |= {"ONNX Runtime": onnxruntime.__version__, "OpenVINO": openvino.__version__.split("-")[0]}
    return ", ".join(f"{name} {version}" for name, version in names.items())


def alone(name: str, *arguments: str) -> str:
    """Return the text of a benchmark that runs in its own process, so that its memory is measured alone."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    return text.removeprefix(f"{machine()}, {torch.get_num_threads()} threads").strip()


def sections(seconds: float) -> Iterator[tuple[str, str]]:
    yield "The machine's own peak", peaks()
    text, rows = forward.report(forward.MODELS, [], forward.PRECISIONS, seconds)
    yield "The forward", text
    mixed = sizes.mixed(seconds)
    yield "Images of mixed sizes", mixed
    text, found = sizes.resolution(sizes.SIDES, seconds / 2)
    yield "Resolution", text
    draw(rows, found, ROOT / "docs" / f"{NAME}.png")
    replace_between(ROOT / "README.md", NAME, summary(rows))
    workers, count = (os.cpu_count() or 1, 2048) if ON_GPU else (1, 160)
    options = {"workers": workers, "count": count, "seconds": 2 * seconds}
    yield "From a folder to features", alone("folder", *(f"--{name}={value}" for name, value in options.items()))
    if ON_GPU:  # the rest is the CPU's
        return
    files = [reading.made(*size, seed) for seed, size in enumerate(reading.SIZES)]
    yield "Reading photos", reading.report(files, 224, rounds=5)
    yield "45 values of C on 50,000 x 768, against one fit of scikit-learn", alone("probes", "sweep")
    lazy = alone("probes", "lazy", "--samples", "200000", "--width", "384")
    yield "A probe on rows that stay on the disk", f"{lazy}\n\n{ON_PAPER}"


def summary(rows: list[forward.Row]) -> str:
    """Return the table of the README: the speed of the best peer and of ours, in multiples of timm in float32."""
    precisions = [each for each in forward.PRECISIONS if ("ours", each) in rows[0].seconds]
    lines = []
    for row in rows:
        cells = []
        for precision in precisions:
            peers = {name: row.seconds[name, precision] for name in forward.PEERS if (name, precision) in row.seconds}
            best = min(peers, key=peers.__getitem__, default="")
            cells += [
                f"{row.timm / peers[best]:.2f} {best}" if best else "",
                f"**{row.timm / row.ours(precision):.2f}**",
            ]
        lines.append((row.model, row.batch, f"{1000 * row.timm:.0f}", *cells))
    columns = [name for precision in precisions for name in (f"{precision}, best peer", "ours")]
    return (
        f"{markdown(['model', 'batch', 'timm, ms', *columns], lines)}\n\n"
        f"{machine()}, {torch.get_num_threads()} threads; {versions()}."
    )


def draw(rows: list[forward.Row], found: list[sizes.Size], path: Path) -> None:
    figure, (bars, lines, memory) = plt.subplots(
        1, 3, figsize=(15, 4.6), width_ratios=(2.4, 1, 1), layout="constrained"
    )
    names = [name for name in [*forward.PEERS, "ours"] if any((name, "fp32") in row.seconds for row in rows)]
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [row.timm / row.seconds.get((name, "fp32"), float("nan")) for row in rows]
        places = [x + i * width for x in range(len(rows))]
        bars.bar(
            places, heights, width, label=name, color="#d1495b" if name == "ours" else plt.cm.Blues(0.35 + 0.15 * i)
        )
    labels = ["\n".join([*row.model.split("_")[1:3], f"batch {row.batch}"]) for row in rows]
    bars.set_xticks([x + 0.4 - width / 2 for x in range(len(rows))], labels, fontsize=7)
    bars.set_ylabel("times as fast as timm, float32")
    bars.axhline(1, color="black", linewidth=0.6)
    bars.legend(fontsize=8, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    patches = [size.patches for size in found]
    lines.loglog(patches, [size.theirs for size in found], "o-", color=plt.cm.Blues(0.6), label="timm")
    lines.loglog(patches, [size.seconds for size in found], "o-", color="#d1495b", label="ours")
    lines.set_ylabel("seconds for one image")
    lines.legend(fontsize=8)
    # A linear axis from 0, because a small network may take no measurable memory.
    memory.semilogx(patches, [size.memory for size in found], "o-", color="#d1495b", label="ours", clip_on=False)
    memory.set_ylim(0, 1.1 * max(1, *(size.memory for size in found)))
    memory.set_ylabel("MiB beside the weights")
    for axes, title in ((bars, ""), (lines, "Time"), (memory, "Memory")):
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (lines, memory):
        axes.set_xlabel("patches of one image, ViT-S/16")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=45, help="seconds for each table row; at least three rounds run"
    )
    args = parser.parse_args()
    text = f"""# Performance

Measured by `make bench` on {machine()}, {torch.get_num_threads()} threads, {platform.system()}; {versions()}. All
contestants of a table run in one process, in turn, and the medians count. The machine's speed drifts, so a ratio means
more than a time, and differences under 10 % are noise. The weights are random. A ratio above 1 is faster.

![The forward, and time and memory by resolution]({NAME}.png)
"""
    with torch.inference_mode():
        for title, section in sections(args.seconds):
            print(f"\n## {title}\n\n{section}", flush=True)
            text += f"\n## {title}\n\n{section}\n"
            (ROOT / "docs" / f"{NAME}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
