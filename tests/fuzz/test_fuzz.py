"""A sample of the fuzzing that `make fuzz` runs at length; and the fuzzing finds planted faults."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import __main__ as fuzzing
from tests.fuzz import targets
from tests.fuzz.mutations import MUTATIONS, mutate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("inputs", "seed"), [(60, 0), pytest.param(1000, 1, marks=pytest.mark.slow)])
def test_a_sample_of_inputs_keeps_every_promise(inputs: int, seed: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", str(inputs), "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_mutation_is_seeded_and_changes_something(mutation) -> None:
    data = bytes(range(256)) * 3
    results = [bytes(mutation(bytearray(data), Random(seed))) for seed in range(20)]
    assert results == [bytes(mutation(bytearray(data), Random(seed))) for seed in range(20)]
    assert sum(result != data for result in results) >= 15


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_the_shortest_files_are_mutated_too(length: int) -> None:
    for seed in range(200):
        assert isinstance(mutate(bytes(length), Random(seed)), bytes)


def test_an_exception_that_is_not_promised_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: int) -> targets.Outcome:
        raise KeyError(index)

    monkeypatch.setitem(targets.TARGETS, "image", fail)
    assert fuzzing.run_one("image", 3).broken == "KeyError: 3"


def test_other_pixels_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = targets.by_pillow

    def other(data: bytes):
        pixels = exact(data)
        return None if pixels is None else 255 - pixels

    found = [targets.image(index) for index in range(60)]
    assert any(outcome.rows for outcome in found)
    assert not any(outcome.differs or outcome.broken for outcome in found)
    monkeypatch.setattr(targets, "by_pillow", other)
    assert any(targets.image(index).differs for index in range(60))


def test_an_input_that_ends_its_process_is_a_fault_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run, starts = subprocess.run, []

    def dies_at_two(command: list[str], **options):
        start, stop = int(command[-2]), int(command[-1])
        starts.append(start)
        last = 2 if start <= 2 < stop else stop
        script = f"""import json, os, signal
for index in range({start}, {last}):
    print(json.dumps(dict(index=index, peak=1, rows=1, reasons=0, differs=False, broken="", what="")))
import sys; sys.stdout.flush()
if {last} < {stop}: os.kill(os.getpid(), signal.SIGSEGV)"""
        return run([sys.executable, "-c", script], **options)

    monkeypatch.setattr(subprocess, "run", dies_at_two)
    found = fuzzing.outcomes("image", 0, 5)
    assert starts == [0, 3]
    assert [line["index"] for line in found] == list(range(5))
    assert [line["broken"] for line in found] == ["", "", "the process ended: SIGSEGV", "", ""]
    assert fuzzing.table({"image": found}).splitlines()[1].split() == ["image", "5", "4", "0", "1", "0", "1"]
