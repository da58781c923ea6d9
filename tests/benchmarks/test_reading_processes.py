"""The benchmark of processes that share the work of reading."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_tells_the_share_of_each_count() -> None:
    options = ["--counts", "30", "1100", "--processes", "3", "--batch-size", "32", "--seconds", "0.0001"]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.reading_processes", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert [row[0] for row in rows] == ["30", "1,100"]
    assert all(0 < int(row[-1].rstrip("%")) <= 100 for row in rows), rows
