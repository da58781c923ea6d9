"""Check every file of a store against its checksum, and every name against the files."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike

import pyarrow.compute as pc

from vitbackbone.files import Record, Storage, open_storage, progress_bar
from vitbackbone.store.layout import LATEST, RESULTS, object_key, snapshot_key
from vitbackbone.store.objects import MISSING, check_object, read_part
from vitbackbone.store.records import Done, Snapshot, checksum, read_record
from vitbackbone.store.snapshots import latest, read_classes, read_manifest
from vitbackbone.store.workers.leases import Lease

READERS = 4  # threads
LOOKS = 3  # times that records with a problem are read: a run at work changes them meanwhile
PAUSE = 0.2  # seconds between two looks: a run writes a record and then its copy
PRUNE = "`vitbackbone prune` removes what only old snapshots need"
KINDS: dict[str, type[Record]] = {"snapshots": Snapshot, "done": Done, "leases": Lease}

Problem = tuple[str, str]  # the file, and what is wrong with it


@dataclass(frozen=True)
class Verified:
    """The result of `verify`. `problems`: (file, problem) in order, empty for an undamaged store."""

    shards: int
    images: int
    snapshots: int
    problems: tuple[Problem, ...]


def verify(directory: str | PathLike[str], progress: bool = False) -> Verified:
    """Read every file of a store, its records included, and compare it with its checksum. Names what is missing.

    Changes nothing. Raises `ValueError` if the directory is not a store.
    """
    storage = open_storage(directory)
    try:
        last, records, problems = _read_chain(storage)
    except ValueError as error:
        if storage.head(LATEST) is None and next(storage.list("snapshots/"), None) is None:
            raise  # no store, or one of the first edition
        return Verified(0, 0, 0, ((LATEST, str(error)),))
    snapshots = {record.number: record for record in records.values() if isinstance(record, Snapshot)} | {
        last.number: last
    }
    old = {snapshot_key(number) for number in range(last.number)}
    problems = [(key, f"{text}; {PRUNE}" if key in old else text) for key, text in problems]
    needed = dict[str, str]()  # the key of each object, and who needs it
    for number in sorted(snapshots):  # the last one that needs it
        snapshot = snapshots[number]
        who = f"snapshot {number} needs it" + ("" if number == last.number else f"; {PRUNE}")
        needed |= dict.fromkeys(map(object_key, snapshot.objects()), who)
        needed |= dict.fromkeys(_features(storage, snapshot), who)
        needed |= dict.fromkeys(_calibration(storage, snapshot), who)
    for key, record in records.items():
        if isinstance(record, Done):
            needed[object_key(record.features)] = f"{key} needs it"
    problems += _check_objects(storage, needed, progress)
    problems += _unreadable(storage, last) if not problems else []
    now = latest(storage) if problems else last
    if now is not None and now.oldest > last.oldest:  # a prune has removed files meanwhile
        return verify(directory, progress)
    counts = last.counts
    return Verified(counts.shards, counts.rows, len(snapshots), tuple(sorted(set(problems))))


def _read_chain(storage: Storage, looks: int = LOOKS) -> tuple[Snapshot, dict[str, Record], list[Problem]]:
    """Return the last snapshot, all records by their keys, and what is wrong with them."""
    last = latest(storage)
    if last is None:
        raise ValueError(f"{storage.url} is not a feature store: it has no {LATEST} and no snapshots/")
    problems: list[Problem] = []
    records = _read_records(storage, problems)
    named = {key for key, _ in problems}
    problems += [each for each in _broken_chain(records, last) if each[0] not in named]
    if problems and looks > 1:
        if next(storage.list("leases/"), None) is not None:  # a run is at work
            time.sleep(PAUSE)
        return _read_chain(storage, looks - 1)
    return last, records, problems


def _read_records(storage: Storage, problems: list[Problem]) -> dict[str, Record]:
    """Read all records of a store, by their keys."""
    found: dict[str, Record] = {}
    keys = [stored.key for folder in KINDS for stored in storage.list(f"{folder}/")]
    for key in [LATEST, *keys]:
        try:
            found[key] = read_record(storage, key, KINDS.get(key.partition("/")[0], Snapshot))
        except FileNotFoundError:
            if not key.startswith(("leases/", "done/")):  # a run at work removes them
                problems.append((key, "is missing"))
        except ValueError as error:
            problems.append((key, str(error).removeprefix(f"{storage.url}/{key} ")))
    return found


def _broken_chain(records: dict[str, Record], last: Snapshot) -> Iterator[Problem]:
    """Yield the faults of the chain of snapshots."""
    copy = records.get(LATEST)
    if isinstance(copy, Snapshot) and copy.number != last.number:
        yield LATEST, f"is a copy of snapshot {copy.number}; the last one is {last.number}"
    before: Record | None = None
    for number in range(last.oldest, last.number + 1):
        key = snapshot_key(number)
        record = records.get(key)
        if record is None:
            yield key, "is missing or damaged"
        elif isinstance(record, Snapshot):
            if record.number != number:
                yield key, f"is the record of snapshot {record.number}"
            if before is not None and record.parent != checksum(before):
                yield key, f"does not follow the record {snapshot_key(number - 1)}"
        before = record if isinstance(record, Snapshot) and record.number == number else None
    if isinstance(copy, Snapshot) and before is not None and copy.number == last.number and copy != before:
        yield LATEST, f"is another record than {snapshot_key(last.number)}"


def _features(storage: Storage, snapshot: Snapshot) -> Iterator[str]:
    """Yield the keys of the features that a snapshot needs."""
    for part in snapshot.results:
        try:
            names = pc.unique(read_part(storage, part, RESULTS)["features"]).to_pylist()
        except ValueError:
            continue  # the check of all objects names it
        yield from map(object_key, names)


def _calibration(storage: Storage, snapshot: Snapshot) -> Iterator[str]:
    """Yield the key of the images that the route of a snapshot was made with, if there are any."""
    try:
        name = read_manifest(storage, snapshot)["calibration"]
    except ValueError:
        return  # the check of all objects names it
    if name is not None:
        yield object_key(name)


def _check_objects(storage: Storage, needed: dict[str, str], progress: bool) -> Iterator[Problem]:
    """Read all objects, and yield those that are damaged or missing."""
    there = [stored.key for stored in storage.list("objects/")]
    keys = list(dict.fromkeys([*needed, *there]))
    with ThreadPoolExecutor(READERS) as threads:
        checked = threads.map(lambda key: check_object(storage, key.rpartition("/")[2]), keys)
        for key, problem in zip(
            keys, progress_bar(checked, "verifying", progress, passing=True, total=len(keys)), strict=True
        ):
            if problem is not None and (key in needed or problem != MISSING):  # else a prune has removed it
                yield key, f"{problem}; {needed.get(key, f'no snapshot needs it; {PRUNE}')}"


def _unreadable(storage: Storage, last: Snapshot) -> Iterator[Problem]:
    """Yield the objects whose content has no meaning to this version."""
    for read, name in ((read_manifest, last.manifest), (read_classes, last.classes)):
        try:
            read(storage, last)
        except ValueError as error:
            yield object_key(name), str(error)
