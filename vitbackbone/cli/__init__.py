"""The `vitbackbone` command: the one place where backbone, extraction, heads and pictures are put together."""

import argparse
import logging
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vitbackbone.cli.arguments import parser
from vitbackbone.cli.errors import expected, keep_traceback, sentence
from vitbackbone.cli.own_heads import own_heads
from vitbackbone.cli.places import check_device_name, check_places
from vitbackbone.cli.streams import ReaderGone, guarded_streams
from vitbackbone.cli.text import printable

WRONG_INPUT = 2
OUR_FAULT = 70  # EX_SOFTWARE of sysexits.h


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 means that everything was done, 1 that some input could not be read or something is damaged, 2 that the input is
    wrong or the result could not be written, 70 that the program is at fault, 130 Ctrl-C, 143 SIGTERM, and 141 that
    the reader of the output is gone.
    """
    with guarded_streams():
        try:
            return _run(_parsed(argv))
        except ReaderGone:
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            print("interrupted; what is done is kept", file=sys.stderr)
            return 128 + signal.SIGINT


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        return parser().parse_args(argv)
    finally:
        sys.stdout.flush()  # --help and --version print, and end the process


def _run(arguments: argparse.Namespace) -> int:
    try:
        with _log_on_stderr(arguments), own_heads():
            check_places(arguments)
            check_device_name(arguments)
            code: int = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except ReaderGone:
        raise
    except Exception as error:
        return _explain(error, arguments)


def _explain(error: Exception, arguments: argparse.Namespace) -> int:
    print(f"vitbackbone {arguments.command}: {sentence(error)}", file=sys.stderr)
    if arguments.verbose:
        traceback.print_exception(error)
    if expected(error):
        return WRONG_INPUT
    print(f"This is a fault of vitbackbone. Please report it with {keep_traceback(error)}", file=sys.stderr)
    return OUR_FAULT


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _log_on_stderr(arguments: argparse.Namespace) -> Iterator[None]:
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
