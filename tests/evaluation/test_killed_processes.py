"""Every protocol with `nano` in a process that is killed, and that another process resumes."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tests.evaluation.runs import RUNS, start, written
from vitbackbone import load_backbone
from vitbackbone.evaluation import PROTOCOLS, run, training
from vitbackbone.evaluation.methods import dense_head

CONTEXT = multiprocessing.get_context("forkserver")


def work(name: str, folder: Path, out: str, calls: int | None) -> None:
    """Run a protocol. The process is killed when the backbone is called once more than `calls` times."""
    dense_head.CHECKPOINTS, run.CHUNK, training.KEEP_SECONDS = 1, 2, -1.0  # so that there is something to resume from
    backbone, count = load_backbone("nano"), 0

    def step(*_: object) -> None:
        nonlocal count
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    backbone.blocks[0].register_forward_pre_hook(step)
    start(name, backbone, folder, out)
    (folder / f"{out}.calls").write_text(str(count))


def ended(*arguments: object) -> int | None:
    CONTEXT.set_forkserver_preload([__name__])
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def check(name: str, folder: Path) -> None:
    assert ended(name, folder, "whole", None) == 0
    calls = int((folder / "whole.calls").read_text())
    assert calls > 1
    assert ended(name, folder, "killed", calls // 2) == -signal.SIGKILL
    assert not (folder / "killed/results.json").exists()
    assert ended(name, folder, "killed", None) == 0
    assert written(folder / "killed") == written(folder / "whole")
    resumed = int((folder / "killed.calls").read_text())
    assert resumed <= calls
    assert ended(name, folder, "killed", 0) == 0  # nothing is computed again
    assert written(folder / "killed") == written(folder / "whole")


def test_every_protocol_has_a_run() -> None:
    assert {each.protocol for each in RUNS.values()} == {*PROTOCOLS}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_process_loses_nothing(name, tmp_path) -> None:
    check(name, tmp_path)
