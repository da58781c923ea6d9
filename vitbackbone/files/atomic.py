"""Atomic writing: files appear whole or not at all, alone or several together.

A file is written in a private folder beside its place and then renamed. The folder is new and its name cannot be
guessed, so nobody can plant a link there. A rename replaces a link at the target and does not follow it.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def _umask() -> int:
    """Return the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


UMASK = _umask()


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield a path to write to, in a temporary folder beside `target`. At the end, the file is flushed to disk and
    renamed to `target`. The folder keeps the writer's own temporary files apart, such as those of safetensors.

    An exception or Ctrl-C leaves nothing new. A kill leaves a folder that `leftovers` finds.
    """
    folder = _private_folder(target)
    temporary = folder / target.name
    try:
        yield temporary
        _finish(temporary)
        temporary.replace(target)
    finally:
        shutil.rmtree(folder)
    flush(target.parent)  # the rename itself


def publish_text(target: Path, text: str) -> None:
    """Write a small file in UTF-8, and make its folder if it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def publish_together(folder: Path, name: str) -> Iterator[Path]:
    """Yield a temporary folder to write files to. At the end, all of them move into `folder`, which is made if missing.
    Whenever the writer is killed, `read_together` finds either all old files or all new ones.

    `name`: a name for this group of files; pass the same to `read_together`.
    An exception leaves the old files. A kill leaves a folder that `leftovers(folder / name)` finds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = _ready(folder, name)
    temporary = _private_folder(folder / name)
    try:
        yield temporary
        for file in temporary.iterdir():
            _finish(file)
        flush(temporary)
        _settle(folder, name)  # files that a killed writer had ready
        temporary.replace(ready)  # from here on the new files count
        flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after the rename it is gone already
    _settle(folder, name)


def read_together(folder: Path, name: str, files: Sequence[str]) -> list[bytes]:
    """Return the contents of files that `publish_together` wrote. They are in `folder`, or in the folder where a killed
    writer had them ready. Raises `FileNotFoundError` that lists missing files, and `OSError` if one cannot be read."""
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


def beside(target: Path) -> Path:
    """Return a new name for a temporary folder beside `target`. Nobody can guess it."""
    return target.with_name(f".{target.name}.{uuid4().hex}.tmp")


def leftovers(target: Path) -> list[Path]:
    """Return the temporary folders beside `target`, of running writers and of killed ones."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.tmp")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _ready(folder: Path, name: str) -> Path:
    return folder / f".{name}.ready"


def _settle(folder: Path, name: str) -> None:
    """Move the files that are ready to their places."""
    ready = _ready(folder, name)
    if ready.is_symlink() or ready.is_file():  # not made here
        ready.unlink()
    if not ready.is_dir():
        return
    for file in sorted(ready.iterdir()):
        file.replace(folder / file.name)
    flush(folder)
    ready.rmdir()
    flush(folder)


def _private_folder(target: Path) -> Path:
    folder = beside(target)
    folder.mkdir(mode=0o700)
    return folder


def _finish(file: Path) -> None:
    with_usual_permissions(file)
    flush(file)


def with_usual_permissions(file: Path) -> None:
    """Give a file the permissions that a new file has. safetensors makes private files."""
    file.chmod(0o666 & ~UMASK)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
