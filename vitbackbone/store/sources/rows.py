"""Collect the rows of a source into one table."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from vitbackbone.store.sources.labels import Label, LabelError, as_label, classes
from vitbackbone.store.sources.names import Notes, escaped
from vitbackbone.store.sources.remote import is_remote

MAX_SIZE = 2**63 - 1  # largest size that the table holds; a damaged header may claim more
CHUNK = 2**16  # most rows that are Python objects at a time

LISTED = pa.schema(
    {
        "path": pa.binary(),  # POSIX, from the root; for a member, the archive's path, "/" and the member's name
        "archive": pa.int32(),  # bytes of `path` that name the archive; 0 for a plain file
        "offset": pa.int64(),  # position in the archive, see `archive.ArchiveMember`
        "bytes": pa.int64(),  # -1 for a plain file, whose size the file system has
        "version": pa.string(),  # changes with the file, as `remote.version_of`; null where the listing does not tell
        "sha256": pa.binary(32),  # checksum of the content, if the listing has read it anyway; else null
        "label": pa.int64(),  # index into the class names, -1 where unknown
    }
)


@dataclass(frozen=True)
class Root:
    """The start of relative paths: a folder, or the URL of a prefix."""

    place: str
    private: bool = False  # whether addresses of the web may belong to private networks

    def __str__(self) -> str:
        return self.place

    def locate(self, path: str) -> str:
        """Return the place of an input's path. A URL or an absolute path of this machine is its own place."""
        if is_remote(path):
            return path
        if not is_remote(self.place):
            return os.path.join(self.place, path)  # noqa: PTH118  # a Path for each of a million is slow
        between = "" if self.place.endswith("/") else "/"
        return _without_parents(f"{self.place}{between}{path}")


def _without_parents(url: str) -> str:
    """Return a URL with its ".." resolved. A ".." that would lead out of the bucket stays, and reading refuses it."""
    if "/../" not in url:
        return url
    start, _, rest = url.partition("://")
    found: list[str] = []
    for part in rest.split("/"):
        if part == ".." and len(found) > 1 and found[-1] != "..":
            found.pop()
        else:
            found.append(part)
    return f"{start}://{'/'.join(found)}"


@dataclass(frozen=True, eq=False)
class Inputs:
    """The images to extract, in the order of their rows."""

    root: Root
    # Schema `LISTED`. A million paths take a few dozen MB here, and several hundred MB as Python objects.
    table: pa.Table
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # sentences about files that were left out

    def __len__(self) -> int:
        return len(self.table)

    @property
    def paths(self) -> tuple[str, ...]:
        """POSIX paths relative to the root."""
        return tuple(map(os.fsdecode, self.table["path"].to_pylist()))

    @property
    def labels(self) -> tuple[int, ...]:
        """Indices into `class_names`, -1 if unknown."""
        return tuple(self.table["label"].to_pylist())

    def files(self, start: int, stop: int) -> list[str]:
        """Return the files of the rows [start, stop). Only for inputs that are plain files."""
        return [self.root.locate(os.fsdecode(path)) for path in self.table["path"][start:stop].to_pylist()]


class Rows:
    """Rows that a source adds one by one, stored in Arrow batches."""

    def __init__(self) -> None:
        self.notes = Notes()
        self._cells: list[tuple[bytes, int, int, int, str | None, bytes | None, int]] = []
        self._batches: list[pa.RecordBatch] = []
        self._labels: dict[Label, tuple[int, str]] = {}  # a code for each label, and its first place

    def add(
        self,
        path: str,
        label: object = None,
        archive: str = "",
        offset: int = -1,
        size: int = -1,
        version: str | None = None,
        sha256: bytes | None = None,
        place: tuple[str, int] | None = None,
    ) -> None:
        """Add a row. `place`: the list and its row, for errors; by default the path.

        Raises `LabelError` if the label is neither text nor a whole number.
        """
        whole = os.fsencode(f"{archive}/{path}" if archive else path)
        try:
            found = as_label(label)
        except LabelError as error:
            raise LabelError(f"{_place(whole, place)}: {error}") from error
        known = self._labels.get(found)
        if known is None:
            known = self._labels[found] = (len(self._labels), _place(whole, place))
        self._cells.append((whole, len(os.fsencode(archive)), offset, min(size, MAX_SIZE), version, sha256, known[0]))
        if len(self._cells) == CHUNK:
            self._pack()

    def __len__(self) -> int:
        return len(self._cells) + sum(map(len, self._batches))

    def inputs(self, root: Root, names: Sequence[str] = ()) -> Inputs:
        """Return all rows. `names`: the class names of whole-number labels, if known."""
        self._pack()
        table = pa.Table.from_batches(self._batches, LISTED)
        indices, class_names = classes(list(self._labels), [place for _, place in self._labels.values()], names)
        of_code = np.array([*indices, -1], dtype=np.int64)
        labels = pa.array(of_code[table["label"].to_numpy()]) if len(table) else pa.array([], pa.int64())
        table = table.set_column(LISTED.get_field_index("label"), LISTED.field("label"), labels)
        return Inputs(root, table, class_names, self.notes.lines())

    def _pack(self) -> None:
        columns = zip(*self._cells, strict=True) if self._cells else [()] * len(LISTED)
        arrays = [pa.array(cells, field.type) for cells, field in zip(columns, LISTED, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=LISTED))
        self._cells.clear()


def _place(path: bytes, place: tuple[str, int] | None) -> str:
    return f"{place[0]}, row {place[1]}" if place else escaped(os.fsdecode(path))
