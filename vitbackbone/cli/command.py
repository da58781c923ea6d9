"""Run a command line: parse it, call what does the work, and turn errors into sentences and exit codes."""

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vitbackbone.cli.arguments import parser
from vitbackbone.cli.errors import expected, keep_traceback, printed_traceback, sentence
from vitbackbone.cli.heads_import import our_heads
from vitbackbone.cli.interrupts import Interrupts
from vitbackbone.cli.places import check_device_name, check_places
from vitbackbone.cli.streams import ReaderGone, guarded_streams
from vitbackbone.cli.text import printable

WRONG_INPUT = 2
OUR_FAULT = 70  # EX_SOFTWARE of sysexits.h


def run(argv: Sequence[str] | None) -> int:
    """Run one command and return its exit code. Ctrl-C raises `KeyboardInterrupt`."""
    with guarded_streams(), Interrupts() as interrupts:
        try:
            return _run(_parsed(argv), interrupts)
        except ReaderGone:
            return 128 + signal.SIGPIPE
        except OSError as error:  # the result, or the text of --help or --version, could not be printed
            print(f"vitbackbone: {sentence(error)}", file=sys.stderr)
            return WRONG_INPUT


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        return parser().parse_args(argv)
    finally:
        sys.stdout.flush()  # --help and --version print, and end the process


def _run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from vitbackbone.files import no_progress_bars  # here, because its imports would slow down --help

    try:
        with _log_on_stderr(arguments), no_progress_bars(arguments.quiet), our_heads():
            check_places(arguments)
            check_device_name(arguments)
            code: int = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except ReaderGone:
        raise
    except Exception as error:
        if interrupts.came:  # an import that is interrupted may fail in another way
            raise KeyboardInterrupt from error
        return _explain(error, arguments)


def _explain(error: Exception, arguments: argparse.Namespace) -> int:
    print(f"vitbackbone {arguments.command}: {sentence(error)}", file=sys.stderr)
    if arguments.verbose:
        print(printed_traceback(error), file=sys.stderr)
    if expected(error):
        return WRONG_INPUT
    try:
        kept = f"with {keep_traceback(error)}"
    except OSError:  # nowhere to write, as on a full disk
        kept = f"with this:\n{printed_traceback(error)}"
    print(f"This is a fault of vitbackbone. Please report it {kept}", file=sys.stderr)
    return OUR_FAULT


class _Printable(logging.Formatter):
    """Escape what could steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _log_on_stderr(arguments: argparse.Namespace) -> Iterator[None]:
    """Print the notes of the package on standard error while a command runs."""
    log = logging.getLogger("vitbackbone")
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if arguments.verbose else logging.WARNING if arguments.quiet else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
