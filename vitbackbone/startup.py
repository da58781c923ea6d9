"""Ctrl-C while the command still imports its libraries, which takes seconds: no traceback, exit code 130."""

import os
import signal
import sys
import threading
from pathlib import Path


def _is_the_command() -> bool:
    """Return whether this process was started as `vitbackbone` or `python -m vitbackbone`."""
    if "-m" in sys.orig_argv[:-1]:
        return sys.orig_argv[sys.orig_argv.index("-m") + 1].split(".")[0] == "vitbackbone"
    return Path(sys.argv[0]).stem == "vitbackbone"


def _stop(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def started() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again, which the command handles from now on."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if (
    _is_the_command()
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _stop)
