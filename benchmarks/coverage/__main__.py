"""Try every architecture of timm and every model type of transformers, and write what each does to docs/coverage.md.

python -m benchmarks.coverage                        # all, about a quarter of an hour on two cores
python -m benchmarks.coverage --family "vision_*"    # the architectures of some modules, printed
python -m benchmarks.coverage --sample 20            # 20 architectures, printed with an estimate for all
"""

import argparse
import fnmatch
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from benchmarks.coverage import timm as timm_coverage
from benchmarks.coverage import transformers as transformers_coverage
from benchmarks.coverage.rows import Row, reasons, summary, table
from benchmarks.parity import replace_between, versions

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
PARTS: dict[str, tuple[Callable[[], list[str]], Callable[[str], Row]]] = {
    "timm": (timm_coverage.names, timm_coverage.examine),
}
FRESH = 64  # architectures, after which a new process begins: the memory that large ones leave behind adds up


def measure(names: Sequence[str], examine: Callable[[str], Row], jobs: int, keep: Path | None = None) -> list[Row]:
    """Return the row of each name, from several processes. `keep`: a file that saves them for a later call."""
    rows = [Row(**json.loads(line)) for line in keep.read_text().splitlines()] if keep and keep.exists() else []
    done = {row.name: row for row in rows}
    left = [name for name in names if name not in done]
    random.Random(0).shuffle(left)  # large ones spread evenly, so that the time that is left is estimated well
    with tqdm(total=len(left), unit="architecture") as bar:
        for start in range(0, len(left), FRESH * jobs):
            with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
                for row in pool.map(examine, left[start : start + FRESH * jobs]):
                    done[row.name] = row
                    bar.update()
                    if keep:
                        with keep.open("a") as file:
                            file.write(json.dumps(asdict(row)) + "\n")
    return [done[name] for name in names]


def page(rows: Sequence[Row]) -> str:
    """Return the part of the page that describes one library."""
    return "\n\n".join(
        [
            f"{len(rows)} architectures, tried with {versions()}.",
            summary(rows),
            reasons(rows),
            table(rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--part", choices=[*PARTS, "transformers"], help="one library; default: all")
    parser.add_argument("--family", default="*", metavar="GLOB", help="only families (modules) or names that match")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, drawn with a fixed seed")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="save rows there, and go on from those that it has")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    options = parser.parse_args()
    if options.part in (None, "transformers") and options.family == "*" and not options.sample:
        transformers_coverage.main([])
    for part in [part for part in PARTS if options.part in (None, part)]:
        every, examine = PARTS[part]
        chosen = every()
        total = len(chosen)
        if options.family != "*":
            chosen = [name for name in chosen if fnmatch.fnmatch(name, options.family)]
        if options.sample:
            chosen = random.Random(0).sample(chosen, min(options.sample, len(chosen)))
        start = time.monotonic()
        rows = measure(chosen, examine, options.jobs, options.keep)
        minutes = (time.monotonic() - start) / 60
        if len(chosen) == total:
            replace_between(PAGE, part, page(rows))
        else:
            print(summary(rows), reasons(rows), table(rows), sep="\n\n")
            print(f"\nAll {total} take about {minutes * total / max(len(chosen), 1):.0f} minutes.")


if __name__ == "__main__":
    main()
