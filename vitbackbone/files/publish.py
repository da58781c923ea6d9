"""Files that are there whole or not at all, alone or several together.

A file is written in a private folder beside its place and renamed. The folder's name cannot be guessed and it is made
anew, so that no link can be planted there. A rename replaces a link at the target and does not follow it.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
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
    folder = _private_folder(target)
    temporary = folder / target.name
    try:
        yield temporary
        _finish(temporary)
        temporary.replace(target)
    finally:
        shutil.rmtree(folder)
    _flush(target.parent)  # the rename itself


def publish_text(target: Path, text: str) -> None:
    """Write a small file in UTF-8, and make its folder if it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def publish_together(folder: Path, name: str) -> Iterator[Path]:
    """Gives a temporary folder to write files to. At the end all of them go into `folder`, made if missing, as one:
    `read_together` finds either all of the old ones or all of the new ones, whenever the writer is killed.

    `name`: a name for the files taken together; `read_together` is given the same.
    On an exception the old files stay. A kill leaves one of `leftovers(folder / name)`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = _ready(folder, name)
    temporary = _private_folder(folder / name)
    try:
        yield temporary
        for file in temporary.iterdir():
            _finish(file)
        _flush(temporary)
        _settle(folder, name)  # what a killed writer had ready
        temporary.replace(ready)  # from here on the new files count
        _flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # renamed, it is gone already
    _settle(folder, name)


def read_together(folder: Path, name: str, files: Sequence[str]) -> list[bytes]:
    """The contents of files that `publish_together` wrote: from `folder`, or from where a killed writer had them ready.
    Raises `FileNotFoundError` that lists the missing files, and `OSError` if one cannot be read."""
    while True:
        ready = _ready(folder, name)
        moving = ready.is_dir() and not ready.is_symlink()
        places = [ready / file if moving and (ready / file).is_file() else folder / file for file in files]
        missing = [place.name for place in places if not place.is_file()]
        try:
            if not missing:
                found = [place.read_bytes() for place in places]
        except FileNotFoundError:  # a writer moved it in the meantime
            continue
        if moving == (ready.is_dir() and not ready.is_symlink()):
            break
    if missing:
        raise FileNotFoundError(errno.ENOENT, f"there is no {' and no '.join(missing)}", str(folder))
    return found


def leftovers(target: Path) -> list[Path]:
    """What is temporary beside `target`, of publications that go on and of processes that were killed."""
    return [path for path in target.parent.glob(".*.tmp") if path.name.startswith(f".{target.name}.")]


def _ready(folder: Path, name: str) -> Path:
    return folder / f".{name}.ready"


def _settle(folder: Path, name: str) -> None:
    """Move the files that are ready to their places."""
    ready = _ready(folder, name)
    if ready.is_symlink() or ready.is_file():  # none of ours
        ready.unlink()
    if not ready.is_dir():
        return
    for file in sorted(ready.iterdir()):
        file.replace(folder / file.name)
    _flush(folder)
    ready.rmdir()
    _flush(folder)


def _private_folder(target: Path) -> Path:
    folder = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    folder.mkdir(mode=0o700)
    return folder


def _finish(file: Path) -> None:
    file.chmod(0o666 & ~UMASK)  # safetensors makes its files private; these are as readable as other files
    _flush(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
