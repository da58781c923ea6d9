"""The `vitbackbone` command: the one place where backbone, extraction, heads and pictures are put together."""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vitbackbone.cli.arguments import parser
from vitbackbone.cli.own_heads import own_heads


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 where nothing could be read or something is damaged, 2 for wrong
    input, 130 for Ctrl-C, 143 for SIGTERM and 141 where the reader of the output is gone."""
    arguments = parser().parse_args(argv)
    try:
        with _log_on_stderr(), own_heads():
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own last flush would complain
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"vitbackbone {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is done is kept", file=sys.stderr)
        return 128 + signal.SIGINT


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    log = logging.getLogger("vitbackbone")
    handler = logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
