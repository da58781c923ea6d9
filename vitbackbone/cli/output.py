"""Results as JSON."""

import argparse
import json
import math
from os import PathLike, fspath
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, which `print_json` serves."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, for other programs")


def print_json(value: Any) -> None:
    """Print a value as one line of JSON in ASCII, so that `jq` and any terminal take it whatever a file is called.

    A NumPy number or array is a number or a list, a path is a string, and a number that is not finite is null.
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
