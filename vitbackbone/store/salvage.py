"""Read what is left of a snapshot whose tables are damaged, so that a run writes the rest again.

Rows that are lost are listed and planned anew, results that are lost are computed again, and work that is lost follows
from the rows. The manifest and the class names are the run's own if the record names the same objects.
"""

import logging
from collections.abc import Iterator, Sequence

import pyarrow as pa

from vitbackbone.files import Storage
from vitbackbone.store.layout import ROWS, WORK
from vitbackbone.store.manifest import Manifest
from vitbackbone.store.objects import Damaged, json_name, read_part, read_table
from vitbackbone.store.records import Part, Snapshot
from vitbackbone.store.results import Task, tasks_in
from vitbackbone.store.snapshots import read_classes, read_manifest
from vitbackbone.store.sources.remembered import Remembered

log = logging.getLogger("vitbackbone")


def undamaged(storage: Storage, parts: Sequence[Part], schema: pa.Schema, lost: set[str]) -> Iterator[pa.Table]:
    """Yield the parts of a table that can be read, and add the names of the others to `lost`."""
    for part in parts:
        try:
            table = read_part(storage, part, schema)
        except Damaged as error:
            lost.add(part.name)
            log.warning("%s; this run writes again what it can", error.found)
        else:
            yield table


def undamaged_tasks(storage: Storage, snapshot: Snapshot, lost: set[str]) -> Iterator[Task]:
    """Yield the tasks of a snapshot that can be read, as `undamaged`."""
    for table in undamaged(storage, snapshot.work, WORK, lost):
        yield from tasks_in(table, snapshot.manifest)


def class_names(storage: Storage, snapshot: Snapshot, listed: Sequence[str]) -> tuple[str, ...]:
    """Return the class names of a snapshot, or the source's class names if the snapshot's own are damaged.

    Raises `ValueError` if the source has other ones.
    """
    if json_name(list(listed)) == snapshot.classes:
        return tuple(listed)
    try:
        return tuple(read_classes(storage, snapshot))
    except Damaged as error:
        raise ValueError(
            f"{storage.url}: the names of its classes cannot be read, and the source has other classes now "
            f"({', '.join(listed[:10])}). Run once on the source with the classes of before, or give another --out: "
            f"{error.found}"
        ) from error


def remembered(storage: Storage, snapshot: Snapshot) -> Remembered:
    """Return what a snapshot knows of its source; nothing if its rows or its class names are damaged."""
    try:
        rows, names = read_table(storage, snapshot.rows, ROWS), tuple(read_classes(storage, snapshot))
    except Damaged:
        rows, names = ROWS.empty_table(), ()
    return Remembered(snapshot.root, rows, names)


def stored_manifest(storage: Storage, snapshot: Snapshot, plain: Manifest) -> Manifest | None:
    """Return the manifest of a snapshot, with the route by which its features are computed; None if it is damaged.

    `plain`: the manifest that this run has on the plain route. A damaged manifest of the same name is this one.
    """
    try:
        return read_manifest(storage, snapshot)
    except Damaged as error:
        log.warning("%s", error.found)
        return plain if json_name(plain) == snapshot.manifest else None
