"""The benchmark of a probe on rows that stay on the disk."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_each_fit_runs_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "benchmarks.probes", "lazy", "--samples", "2000", "--width", "32"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for fit in ("LinearProbe, one C", "LinearProbe, 45 C", "scikit-learn, one C"):
        assert f"| {fit} |" in done.stdout
