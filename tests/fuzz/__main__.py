"""Mutate files at random, by a seed, and check what every reader promises.

    python -m tests.fuzz --inputs 10000
    python -m tests.fuzz --minutes 30 --seed 7
    python -m tests.fuzz --only image 123     # one input again, with its traceback

An input is a row, or it is refused with an OSError or a ValueError. Anything else is a fault: another exception, a
crash, pixels other than Pillow's, more than a minute of CPU time, or more memory than the limit. The exit code is 1 if
there is a fault.
"""

import argparse
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from tests.fuzz.targets import SHARES, TARGETS, Outcome

CPU_LIMIT = 60  # seconds of CPU time for one input
WAIT_LIMIT = 3600  # seconds that an input may wait, even on a busy machine
MEMORY_LIMIT = 6 << 30  # bytes of memory for a worker
OTHER_PIXELS = "its pixels differ from Pillow's"
CHUNK = 500  # inputs for a worker process


def run_one(target: str, index: int) -> Outcome:
    """Run one input. An exception that is not promised becomes `broken`."""
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)  # the default action of both signals ends the process
    signal.alarm(WAIT_LIMIT)
    try:
        return TARGETS[target](index)
    except Exception as error:
        return Outcome(target, broken=f"{type(error).__name__}: {error}"[:200])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def work(target: str, until: float, start: int, stop: int) -> None:
    """Run a range of inputs until a time of the monotonic clock, and print a line of JSON for each."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    for index in range(start, stop):
        if time.monotonic() > until:
            return
        outcome = run_one(target, index)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"index": index, "peak": peak, **asdict(outcome)}), flush=True)


def outcomes(target: str, start: int, stop: int, until: float = math.inf) -> list[dict[str, object]]:
    """Run a range of inputs in a process of its own. After a crash, a new process runs the inputs that remain."""
    found: list[dict[str, object]] = []
    while start < stop:
        command = [sys.executable, "-m", "tests.fuzz", "--worker", target, str(until), str(start), str(stop)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found += lines
        start += len(lines)
        if start < stop and done.returncode == 0:  # the time is over
            return found
        if start < stop:
            code = -done.returncode
            why = signal.Signals(code).name if 0 < code < 65 else f"exit code {done.returncode}"
            found.append({"index": start, "peak": 0, **asdict(Outcome(target, broken=f"the process ended: {why}"))})
            start += 1
    return found


def chunks(inputs: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """Yield (target, start, stop), the targets in turn."""
    left = {target: max(round(inputs * share), 1) for target, share in SHARES.items()}
    at = dict.fromkeys(left, seed * 10_000_000)
    while any(left.values()):
        for target in left:
            if count := min(CHUNK, left[target]):
                yield target, at[target], at[target] + count
                at[target] += count
                left[target] -= count


def table(found: dict[str, list[dict[str, object]]]) -> str:
    """Return a table of the outcomes, with a line for each target."""
    header = ("", "inputs", "rows", "reasons", "not promised", "other pixels", "peak MiB")
    rows = [header]
    for target, lines in found.items():
        totals: Counter[str] = Counter()
        for line in lines:
            totals["rows"] += int(line["rows"])  # type: ignore[call-overload]
            totals["reasons"] += int(line["reasons"])  # type: ignore[call-overload]
            totals["broken"] += bool(line["broken"])
            totals["differs"] += bool(line["differs"])
        peak = max((int(line["peak"]) for line in lines), default=0)  # type: ignore[call-overload]
        counts = (len(lines), totals["rows"], totals["reasons"], totals["broken"], totals["differs"], peak)
        rows.append((target, *(f"{count:,}" for count in counts)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def faults(target: str, lines: list[dict[str, object]]) -> list[str]:
    """Return a line for each input that broke a promise."""
    wrong = [line for line in lines if line["broken"] or line["differs"]]
    return [f"{target} {line['index']}: {line['what']}: {line['broken'] or OTHER_PIXELS}" for line in wrong]


def fuzz(inputs: int, minutes: float, seed: int, workers: int) -> dict[str, list[dict[str, object]]]:
    """Run the inputs on several processes, for at most `minutes` minutes. Print faults on standard error at once."""
    found: dict[str, list[dict[str, object]]] = {target: [] for target in TARGETS}
    until = time.monotonic() + 60 * minutes

    def one(chunk: tuple[str, int, int]) -> tuple[str, list[dict[str, object]]]:
        return chunk[0], outcomes(*chunk, until) if time.monotonic() < until else []

    with ThreadPoolExecutor(workers) as pool:
        for target, lines in pool.map(one, chunks(inputs, seed)):
            found[target] += lines
            for fault in faults(target, lines):
                print(f"\r{fault}", file=sys.stderr)
            print(f"\r{sum(map(len, found.values())):,} of {inputs:,} inputs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="how many (default: 10000)")
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="stop after so many (default: 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other inputs for another seed (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--only", nargs=2, metavar=("TARGET", "INDEX"), help="run one input, with its traceback")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        target, until, start, stop = args.worker
        work(target, float(until), int(start), int(stop))
        return 0
    if args.only:
        try:
            print(TARGETS[args.only[0]](int(args.only[1])))
        except Exception:
            traceback.print_exc()
            return 1
        return 0
    found = fuzz(args.inputs, args.minutes, args.seed, args.workers)
    print(table(found))
    wrong = [fault for target, lines in found.items() for fault in faults(target, lines)]
    print("\n".join(wrong), end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
