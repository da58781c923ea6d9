"""The chain of snapshots: finding the last, publishing the next, and recovering a lost record."""

import json
import logging
from collections.abc import Iterator
from os import PathLike

from vitbackbone.files import Storage, Stored, open_storage
from vitbackbone.store.layout import LATEST, SCHEMA, snapshot_key
from vitbackbone.store.manifest import Manifest, parse
from vitbackbone.store.objects import read_object
from vitbackbone.store.records import Snapshot, checksum, read_record, seal

log = logging.getLogger("vitbackbone")
FIRST_EDITION = "manifest.json"  # stores of the first edition had it


def latest(storage: Storage) -> Snapshot | None:
    """Return the last snapshot; None if there is no store.

    If its record or its copy is damaged or lost, the other one serves. Raises `ValueError` if both are, or if the place
    holds a store of the first edition.
    """
    copy, problem = _read_copy(storage)
    from_here = snapshot_key(copy.number - 1) if copy is not None else ""
    keys = [stored.key for stored in storage.list("snapshots/", from_here) if number_of(stored)]
    if copy is not None and (not keys or keys[-1] <= snapshot_key(copy.number)):
        return copy
    if not keys:
        _refuse_first_edition(storage)
        if problem is not None:
            raise ValueError(f"{problem}; it is the only record left of this store: give another --out")
        return None
    try:
        return read_record(storage, keys[-1], Snapshot)
    except ValueError as error:
        advice = "delete it to go back to the snapshot before, and run the same extraction again"
        raise ValueError(f"{error}, and so is its copy in {LATEST}; {advice}") from error


def read_snapshot(storage: Storage, number: int) -> Snapshot:
    """Return a snapshot by its number. Raises `ValueError` if there is none, or if its record is damaged."""
    key = snapshot_key(number)
    try:
        return read_record(storage, key, Snapshot)
    except (FileNotFoundError, ValueError) as error:
        last = latest(storage)
        if last is not None and last.number == number:
            return last
        if isinstance(error, FileNotFoundError):
            there = [number_of(stored) for stored in storage.list("snapshots/")]
            raise ValueError(f"{storage.url} has no snapshot {number}; it has {_ranges(there)}") from None
        raise


def open_snapshot(storage: Storage, number: int | None, partial: bool) -> Snapshot:
    """Return the snapshot to read: the one with the number. Without a number, it is the last complete one, or the last
    one if `partial` is set.

    Raises `ValueError` if there is no store, or if the snapshot is not complete and `partial` is not set.
    """
    last = latest(storage)
    if last is None:
        raise ValueError(f"{storage.url} is not a feature store: it has no {LATEST} and no snapshots/")
    if number is not None:
        last = read_snapshot(storage, number)
    if partial or not last.work:
        return last
    found: Snapshot | None = last
    while number is None and found is not None and found.work:
        before = snapshot_key(found.number - 1)
        found = read_snapshot(storage, found.number - 1) if storage.head(before) is not None else None
    if number is not None or found is None:
        done = sum(1 for _ in storage.list("done/"))
        raise ValueError(
            f"{storage.url} is incomplete: {max(last.counts.pending - done, 1)} of {last.counts.shards} shards are "
            "missing; run the same extraction again to finish it"
        )
    log.warning(
        "%s: snapshot %d is not complete; this is snapshot %d, the last complete one",
        storage.url,
        last.number,
        found.number,
    )
    return found


def publish(storage: Storage, snapshot: Snapshot) -> bool:
    """Add a snapshot to the chain. Returns False if another run has published one of this number.

    All objects that it names must be written already.
    """
    data, key = seal(snapshot), snapshot_key(snapshot.number)
    if not storage.create(key, data):
        there = storage.head(key)
        if there is None or not _is_damaged(storage, key) or storage.swap(key, data, there.version) is None:
            return False
    _copy(storage, snapshot, data)
    return True


def repair(storage: Storage, last: Snapshot) -> None:
    """Write the record of the last snapshot, or its copy, again if one of them is damaged or lost."""
    data, key = seal(last), snapshot_key(last.number)
    there = storage.head(key)
    if there is None:
        storage.create(key, data)
    elif _is_damaged(storage, key):
        storage.swap(key, data, there.version)
    if _read_copy(storage)[0] != last:
        _copy(storage, last, data)


def history(directory: str | PathLike[str]) -> list[Snapshot]:
    """Return the snapshots of a store, the last one first, without those whose record is damaged.

    Raises `ValueError` if the directory is not a store.
    """
    storage = open_storage(directory)
    last = open_snapshot(storage, None, partial=True)
    found = [last]
    for number in sorted((number for number in numbers(storage) if 0 < number < last.number), reverse=True):
        try:
            found.append(read_snapshot(storage, number))
        except ValueError as error:
            log.warning("%s; `vitbackbone prune` removes it with the other old snapshots", error)
    return found


def numbers(storage: Storage) -> Iterator[int]:
    """Yield the numbers of the snapshots that are there."""
    for stored in storage.list("snapshots/"):
        yield number_of(stored)


def number_of(stored: Stored) -> int:
    """Return the number of a snapshot's file; 0 if it is another file."""
    stem = stored.key.rpartition("/")[2].removesuffix(".json")
    return int(stem) if stem.isdecimal() else 0


def following(last: Snapshot | None) -> tuple[int, str | None]:
    """Return the number and the parent of the snapshot after `last`."""
    return (1, None) if last is None else (last.number + 1, checksum(last))


def read_manifest(storage: Storage, snapshot: Snapshot) -> Manifest:
    """Read the manifest of a snapshot. Raises `ValueError` if it is damaged."""
    return parse(read_object(storage, snapshot.manifest))


def read_classes(storage: Storage, snapshot: Snapshot) -> list[str]:
    """Read the class names of a snapshot. Raises `ValueError` if they are damaged."""
    names: list[str] = json.loads(read_object(storage, snapshot.classes))
    return names


def _copy(storage: Storage, snapshot: Snapshot, data: bytes) -> None:
    """Make `latest.json` a copy of this snapshot, unless it has a later one."""
    while not storage.create(LATEST, data):
        there = storage.head(LATEST)
        if there is None:
            continue
        copy, _ = _read_copy(storage)
        if (copy is not None and copy.number > snapshot.number) or storage.swap(LATEST, data, there.version):
            return


def _read_copy(storage: Storage) -> tuple[Snapshot | None, str | None]:
    """Return the copy of the last record; None and the reason if it is damaged."""
    try:
        return read_record(storage, LATEST, Snapshot), None
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except ValueError as error:
        return None, str(error)


def _is_damaged(storage: Storage, key: str) -> bool:
    try:
        read_record(storage, key, Snapshot)
    except ValueError:
        return True
    return False


def _refuse_first_edition(storage: Storage) -> None:
    if storage.head(FIRST_EDITION) is None:
        return
    try:
        schema = json.loads(storage.get(FIRST_EDITION)).get("schema")
    except (ValueError, AttributeError, RecursionError):
        return
    if isinstance(schema, int) and schema < SCHEMA:
        raise ValueError(
            f"{storage.url} is a store of the first edition, which this version does not read; give another --out, or "
            "delete it, and extract again"
        )


def _ranges(there: list[int]) -> str:
    return f"{min(there)} to {max(there)}" if there else "none"
