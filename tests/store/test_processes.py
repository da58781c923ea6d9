"""Processes for several devices: what ends them, and what they leave behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import tiny_vit
from tests.store.small import backbone
from vitbackbone.store import extract
from vitbackbone.store.workers import processes

OPTIONS = {"shard_size": 2, "batch_size": 2, "progress": False}
SECONDS = 100  # after which a run counts as one that hangs


def until(found: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not found() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.promise(34)
def test_a_process_that_hangs_does_not_hold_up_the_end(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.1)
    ended, woken = threading.Event(), []

    def stop_one() -> None:
        until(multiprocessing.active_children)
        one = multiprocessing.active_children()[0]
        os.kill(one.pid or 0, signal.SIGSTOP)
        if not ended.wait(SECONDS):
            woken.append(one)
            os.kill(one.pid or 0, signal.SIGCONT)

    thread = threading.Thread(target=stop_one)
    thread.start()
    store = extract(tiny_vit(), photos, tmp_path / "f", devices=("cpu", "cpu"), **OPTIONS)
    ended.set()
    thread.join()
    assert len(store) == 7
    assert not woken
    assert not multiprocessing.active_children()


SCRIPT = """
import sys
from tests.helpers import tiny_vit
from vitbackbone.store import extract

if __name__ == "__main__":
    extract(tiny_vit(), sys.argv[1], sys.argv[2], devices=("cpu", "cpu"), progress=False)
"""


@pytest.mark.slow
def test_ctrl_c_while_processes_start_prints_no_traceback_of_theirs(photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, script, photos, tmp_path / "f"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment) as run:
        until(lambda: len(children(run.pid)) == 2)
        time.sleep(0.5)  # they import torch
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate(timeout=SECONDS)
    assert said.count("Traceback") == 1  # of the script itself
    assert not list(tmp_path.glob("f/leases/*"))


def children(pid: int) -> list[str]:
    listed = subprocess.run(["ps", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "spawn_main" in line]


def test_an_interrupt_of_the_progress_bar_gives_all_leases_back(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tqdm.std.tqdm.update", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps it
        extract(tiny_vit(), photos, tmp_path / "f", **OPTIONS)
    assert not list(tmp_path.glob("f/leases/*"))
    assert not [thread for thread in threading.enumerate() if thread.name == "leases"]
    del kept


def test_a_backbone_that_cannot_be_sent_is_refused_in_a_sentence(photos: Path, tmp_path: Path) -> None:
    model = backbone()
    model.blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"cannot be sent to other processes .*; it may have no hooks"):
        extract(model, photos, tmp_path / "f", devices=("cpu", "cpu"), **OPTIONS)
    assert not list(tmp_path.glob("f/leases/*"))


def test_devices_are_all_or_several(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="devices='cpu'; want 'all' or several"):
        extract(tiny_vit(), photos, tmp_path / "f", devices="cpu", **OPTIONS)
    assert not (tmp_path / "f").exists()
