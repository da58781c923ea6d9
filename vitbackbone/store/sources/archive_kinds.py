"""The kinds of archives, by the extension of their names."""

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from vitbackbone.store.sources.archive import Archive
from vitbackbone.store.sources.parquet import Parquet
from vitbackbone.store.sources.tar import Tar
from vitbackbone.store.sources.zip import Zip

ARCHIVES: dict[str, Callable[[str, bool], Archive]] = {".tar": Tar, ".zip": Zip, ".parquet": Parquet}


def ending_of(path: str) -> str:
    """Return the extension of a path or URL in lower case, with the dot. The query of a web address is left out.

    Any text is accepted: whether it is an address is seen when it is read.
    """
    if path.lower().startswith(("http://", "https://")):
        path = re.split(r"[?#]", path.partition("://")[2])[0].partition("/")[2]
    return PurePosixPath(path).suffix.lower()
