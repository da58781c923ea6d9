"""The listing of remote archives that the last run made, for a run that finds the same archives.

A `.tar` has no table of contents, so that listing it reads all of it. If every archive still has the version that the
rows of the last snapshot name, their listing is still those rows.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Shaped

from vitbackbone.files import ServiceDown
from vitbackbone.store.sources.frames import is_frame_path
from vitbackbone.store.sources.remote import is_remote, open_file, version_of
from vitbackbone.store.sources.rows import LISTED, Inputs, Root

AT_ONCE = 64  # archives whose versions are asked at once


@dataclass(frozen=True, eq=False)
class Remembered:
    """The rows and class names that a store has of its source."""

    place: str  # the root of its inputs
    rows: pa.Table  # schema `ROWS`
    class_names: tuple[str, ...]

    def listing(self, root: Root, files: Sequence[str]) -> Inputs | None:
        """Return the inputs in these archives. Return None unless the store was made from just these archives, in one
        place, and none has changed."""
        rows = self.rows
        if root.place != self.place or not is_remote(root.place) or not len(rows):
            return None
        if pc.min(rows["archive"]).as_py() == 0 or pc.any(is_frame_path(rows["path"])).as_py():
            return None  # frames depend on how they are chosen
        with ThreadPoolExecutor(AT_ONCE) as threads:
            found = threads.map(lambda file: _version(root, file), files)
            versions = dict(zip(map(os.fsencode, files), found, strict=True))
        archive, current = _archives(rows, versions)
        rest = set(archive[~current & ~rows["gone"].to_numpy()])  # archives that are no longer listed, or have changed
        if rest or set(archive[current]) != versions.keys():
            return None
        return Inputs(root, rows.filter(pa.array(current)).select(LISTED.names).cast(LISTED), self.class_names)


def _archives(
    rows: pa.Table, versions: Mapping[bytes, str | None]
) -> tuple[Shaped[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return the archive of each row, and whether the row is of the archive's present version."""
    archive = np.empty(len(rows), dtype=object)
    current = np.zeros(len(rows), dtype=bool)
    lengths = rows["archive"].to_numpy()
    for length in np.unique(lengths).tolist():
        at = np.flatnonzero(lengths == length)
        some = rows.take(pa.array(at))
        files = pc.binary_slice(some["path"], 0, length).combine_chunks().dictionary_encode()
        names = files.dictionary.to_pylist()
        now = pa.array([versions.get(name) for name in names], pa.string()).take(files.indices)
        archive[at] = np.array(names, dtype=object)[files.indices.to_numpy()]
        current[at] = pc.fill_null(pc.equal(some["version"].combine_chunks(), now), False).to_numpy(False)
    return archive, current


def _version(root: Root, file: str) -> str | None:
    try:
        with open_file(root.locate(file), root.private, anew=True) as opened:
            return version_of(opened)
    except ServiceDown:
        raise
    except (OSError, ValueError):
        return None
