"""Tell which inputs changed, by size and version, and read the content of those that did."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from vitbackbone.files import ServiceDown
from vitbackbone.store.sources.locate import Locator, Unreadable, content_sha256, locators
from vitbackbone.store.sources.remote import is_remote, split
from vitbackbone.store.sources.rows import Root

READERS = 8  # threads that compute checksums of files of this machine; hashlib releases the GIL
ARCHIVES = 16  # archives of services that are read at once: each holds some parts of 16 MiB
REQUESTS = 64  # requests to services under way at once: each waits for some tens of milliseconds
CHUNK = 2**13  # most inputs that are Python objects at a time
MISSING = (-1, "")  # the size and version of an input that is missing

Contents = Iterator[tuple[bytes | None, str | None, str | None]]  # the SHA-256, or the reason and the error


def sizes_and_versions(root: Root, listed: pa.Table) -> tuple[Int[np.ndarray, " n"], pa.Array]:
    """Return the size and version of each input, -1 and "" if it is missing. A member has its own size and the version
    of its archive.

    Sizes and versions that the listing lacks are requested, except for addresses of the web, which keep the content
    that they had.
    """
    sizes, versions = listed["bytes"].to_numpy().copy(), []
    asked: dict[str, tuple[int, str]] = {}  # of the archives
    with ThreadPoolExecutor(REQUESTS) as threads:
        for start in range(0, len(listed), CHUNK):
            some = listed[start : start + CHUNK]
            columns = (some[name].to_pylist() for name in ("path", "archive", "version"))
            cells = list(zip(*columns, strict=True))
            places = {
                root.locate(os.fsdecode(path[:archive] if archive else path))
                for path, archive, version in cells
                if version is None
            }
            new = [place for place in places if place not in asked]
            there = [place for place in new if is_remote(place)]
            found = dict(zip(there, threads.map(_described, there), strict=True))
            found |= {place: _status(place) for place in new if place not in found}
            texts = []
            for i, (path, archive, version) in enumerate(cells):
                if version is not None:
                    texts.append(version)
                    continue
                place = root.locate(os.fsdecode(path[:archive] if archive else path))
                stat = asked[place] if place in asked else found[place]
                texts.append(stat[1])
                if archive:
                    asked[place] = stat
                else:
                    sizes[start + i] = stat[0]
            versions.append(pa.array(texts, pa.string()))
    return sizes, pa.chunked_array(versions, pa.string()).combine_chunks()


def read_contents(
    root: Root, listed: pa.Table, sizes: Int[np.ndarray, " n"], chosen: Int[np.ndarray, " m"]
) -> Contents:
    """Yield the SHA-256 of each chosen input, or why it cannot be read. An archive is read in its own order.

    Content that the listing has read is not read again.
    """
    archives = bool(len(chosen)) and pc.max(listed["archive"]).as_py() > 0
    for start in range(0, len(chosen), CHUNK):
        some = chosen[start : start + CHUNK]
        table = listed.take(pa.array(some))
        read = table["sha256"].to_pylist()
        found = [at for at, known in zip(locators(root, table, sizes[some].tolist()), read, strict=True) if not known]
        elsewhere = any(is_remote(at.file) for at in found)
        count = (ARCHIVES if archives else REQUESTS) if elsewhere else (1 if archives else READERS)
        with ThreadPoolExecutor(count) as threads:
            runs = [list(run) for _, run in groupby(found, lambda at: at.file)] if archives else [[at] for at in found]
            contents = chain.from_iterable(threads.map(lambda run: list(map(_content, run)), runs))
            for known in read:
                yield (known, None, None) if known else next(contents)


def _content(at: Locator) -> tuple[bytes | None, str | None, str | None]:
    try:
        return content_sha256(at), None, None
    except Unreadable as unreadable:
        return None, unreadable.reason, str(unreadable)


def _described(place: str) -> tuple[int, str]:
    """Return the size and version of a remote file. It counts as missing if its service does not answer."""
    if place.startswith(("http://", "https://")):
        return -1, "web"
    try:
        service, key = split(place)
        stored = service.describe(key)
    except ServiceDown:
        raise
    except (OSError, ValueError):
        return MISSING
    return stored.size, stored.version


def _status(path: str) -> tuple[int, str]:
    try:
        status = os.stat(os.fsencode(path))  # noqa: PTH116  # a Path for each of a million files costs more than asking
    except (OSError, ValueError):  # ValueError: a null character
        return MISSING
    return status.st_size, str(status.st_mtime_ns)
