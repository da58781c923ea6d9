"""JSON output."""

import argparse
import json
import math
from os import PathLike, fspath
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, for other programs")


def print_json(value: Any) -> None:
    """Print a value as one line of JSON in ASCII, which `jq` and every terminal read, whatever a file is called.

    NumPy numbers and arrays become numbers and lists, paths become strings, and nan and infinity become null.
    """
    print(json.dumps(_plain(value), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
