"""How every file gets into a store: whole, and by the one process that writes it."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vitbackbone.files import leftovers, publish

# What to do where the system refuses to write.
LIMITS = {
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), or give a smaller --shard-size to another --out,",
}


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Publish a file as its one writer: remove what killed writers left of it, and say what to do on a full disk."""
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
        raise OSError(code, f"{text}: what is done is kept", str(target.parent)) from error


def check_folder(folder: Path) -> None:
    """Raise `ValueError` if files cannot be put into a folder of that name."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", re.sub(":/", "://", str(folder), count=1)):
        raise ValueError(f"{folder}: addresses are not written; give a folder of this machine, and copy it afterwards")
    for path in (folder, *folder.parents):
        if os.path.lexists(path) and not path.is_dir():
            kind = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "a file"
            raise ValueError(f"{path} is {kind}, where a folder is wanted; give another --out")


def _is(error: Exception, code: int) -> bool:
    """Tell whether the system's error is behind this one. safetensors and pyarrow say it in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == code
    return f"os error {code})" in str(error) or os.strerror(code) in str(error)
