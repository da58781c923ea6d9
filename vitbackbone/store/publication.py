"""Publish the files of a store: whole, by a single writer, with advice on a full disk."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vitbackbone.files import leftovers, publish

# Advice for each error of the system on a write.
LIMITS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`), or give another --out and a smaller --shard-size,",
}


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Publish a file as its only writer. Removes what killed writers left of it.

    Raises `OSError` with advice if the disk is full.
    """
    for path in leftovers(target):
        shutil.rmtree(path)
    try:
        with publish(target) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        code = next((code for code in LIMITS if _is(error, code)), None)
        if code is None:
            raise
        text = f"{os.strerror(code)}, for {target.name}; {LIMITS[code]} and run the same extraction again"
        raise OSError(code, f"{text}: complete shards are kept", str(target.parent)) from error


def check_folder(folder: Path) -> None:
    """Raise `ValueError` if a path cannot be a folder to write into."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", re.sub(":/", "://", str(folder), count=1)):
        raise ValueError(f"{folder} is an address; give a folder of this machine, and copy it afterwards")
    for path in (folder, *folder.parents):
        if os.path.lexists(path) and not path.is_dir():
            kind = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "a file"
            raise ValueError(f"{path} is {kind}, and not a folder; give another --out")


def _is(error: Exception, code: int) -> bool:
    """Tell whether an error has this cause. safetensors and pyarrow name the cause only in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == code
    return f"os error {code})" in str(error) or os.strerror(code) in str(error)
