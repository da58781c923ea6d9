"""Files that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def _umask() -> int:
    """It can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


UMASK = _umask()


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Gives a path in a temporary folder beside `target` to write to; at the end, the file is flushed to disk and
    renamed. A folder, as who writes may make files of its own beside it: safetensors does.

    On an exception, Ctrl-C among them, neither is left. A kill leaves one of `leftovers`.
    """
    folder = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    folder.mkdir()
    temporary = folder / target.name
    try:
        yield temporary
        temporary.chmod(0o666 & ~UMASK)  # safetensors makes its files private; a store is as readable as other files
        _flush(temporary)
        temporary.replace(target)
    finally:
        shutil.rmtree(folder)
    _flush(target.parent)  # the rename itself


def leftovers(target: Path) -> list[Path]:
    """What is temporary beside `target`, of publications that go on and of processes that were killed."""
    return [path for path in target.parent.glob(".*.tmp") if path.name.startswith(f".{target.name}.")]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
