"""Paths as pyarrow takes them."""

from os import PathLike
from pathlib import Path


def local(path: str | PathLike[str]) -> str:
    """Return the absolute path, because pyarrow takes a relative one such as `run:1/table.parquet` for an address."""
    return str(Path(path).absolute())
