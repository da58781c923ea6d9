"""The kinds of archives, by the extension of their names."""

from collections.abc import Callable
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from vitbackbone.store.sources.archive import Archive
from vitbackbone.store.sources.parquet import Parquet
from vitbackbone.store.sources.tar import Tar
from vitbackbone.store.sources.zip import Zip

ARCHIVES: dict[str, Callable[[str, bool], Archive]] = {".tar": Tar, ".zip": Zip, ".parquet": Parquet}


def ending_of(path: str) -> str:
    """Return the extension of a path or URL in lower case, with the dot. The query of a web address is left out."""
    if path.lower().startswith(("http://", "https://")):
        path = urlsplit(path).path
    return PurePosixPath(path).suffix.lower()
