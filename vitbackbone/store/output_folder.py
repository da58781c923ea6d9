"""Check a folder that a command writes into."""

import os
import re
from pathlib import Path


def check_folder(folder: Path) -> None:
    """Raise `ValueError` if a path cannot be a folder to write into."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", re.sub(":/", "://", str(folder), count=1)):
        raise ValueError(f"{folder} is an address; give a folder of this machine, and copy it afterwards")
    for path in (folder, *folder.parents):
        if os.path.lexists(path) and not path.is_dir():
            kind = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "a file"
            raise ValueError(f"{path} is {kind}, and not a folder; give another --out")
