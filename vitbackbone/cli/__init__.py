"""The `vitbackbone` command, which puts backbones, feature stores, heads and pictures together."""

import sys
from collections.abc import Sequence

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: everything was done. 1: some input could not be read, or something is damaged. 2: the input is wrong, or the
    result could not be written. 70: the program is at fault. 130: Ctrl-C. 141: the reader of the output is gone.
    143: SIGTERM.
    """
    try:
        from vitbackbone.cli.command import run  # imported here so that Ctrl-C ends an import without a traceback

        return run(argv)
    except KeyboardInterrupt:
        print("interrupted; what is done is kept", file=sys.stderr)
        return INTERRUPTED
