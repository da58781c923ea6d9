"""Ctrl-C at any time: exit code 130 and no traceback."""

import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from vitbackbone.cli import main
from vitbackbone.cli.commands.extract import terminable
from vitbackbone.cli.interrupts import Interrupts

INTERRUPTED_IMPORT = """
import signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
from vitbackbone.cli import main
sys.exit(main({line!r}))
"""
LATE = ["numpy.linalg", "torch", "torch.nn", "torchvision", "timm", "pyarrow", "sklearn", "heads"]


@pytest.mark.parametrize(
    "module",
    ["argparse", "vitbackbone.cli.arguments", "numpy", *(pytest.param(m, marks=pytest.mark.slow) for m in LATE)],
)
def test_ctrl_c_during_an_import(module: str) -> None:
    code = INTERRUPTED_IMPORT.format(module=module, line=["probe", "/no/store"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    if done.returncode == 2:
        pytest.skip(f"this command does not import {module}")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; what is done is kept\n")


class Dying:
    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def test_an_interrupt_in_a_destructor_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    before, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    try:
        with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:  # noqa: PT012
            Dying(signal.SIGINT)
            time.sleep(30)
        assert interrupts.came
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert sys.unraisablehook is hook
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("", "")


@pytest.mark.promise(35)
@pytest.mark.parametrize("keyboard", [signal.default_int_handler, signal.SIG_IGN], ids=["shell", "background job"])
def test_a_termination_in_a_destructor_is_not_lost(keyboard: Any) -> None:
    before = signal.signal(signal.SIGINT, keyboard)
    try:
        with pytest.raises(SystemExit) as ended, Interrupts(), terminable():  # noqa: PT012
            Dying(signal.SIGTERM)
            time.sleep(30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 143


def test_an_import_that_answers_an_interrupt_with_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def list_backbones(*_: object) -> list[str]:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("half imported") from None
        return []

    monkeypatch.setattr("vitbackbone.checkpoints.list_backbones", list_backbones)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        assert main(["models"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("", "interrupted; what is done is kept\n")
