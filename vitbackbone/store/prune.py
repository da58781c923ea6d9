"""Remove from a store what no kept snapshot needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike

import pyarrow.compute as pc

from vitbackbone.files import Storage, open_storage
from vitbackbone.store.layout import RESULTS, ROWS, WORK, object_key, snapshot_key
from vitbackbone.store.objects import read_part, read_table
from vitbackbone.store.plan import Plan
from vitbackbone.store.records import Snapshot
from vitbackbone.store.results import read_results
from vitbackbone.store.snapshots import latest, numbers, publish, read_classes, read_manifest, read_snapshot, repair
from vitbackbone.store.transaction import next_snapshot
from vitbackbone.store.workers.leases import Leases

PUBLISHED = "another run has published a snapshot meanwhile; prune again"


@dataclass(frozen=True)
class Pruned:
    """The result of `prune`."""

    snapshots: int  # records that were removed
    objects: int
    bytes: int
    rows: int  # removed rows of inputs that are gone


def prune(directory: str | PathLike[str], keep: int = 1, gone: bool = False) -> Pruned:
    """Remove all snapshots but the last `keep`, and the objects that only those needed.

    `gone`: also remove the rows of inputs that are no longer in the source, and their features.
    Readers that have an older snapshot open can no longer read it. Raises `ValueError` if the directory is not a store
    or its last snapshot is not complete, and `BlockingIOError` while an extraction or another prune runs. An extraction
    that begins meanwhile waits.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}; want at least 1")
    storage = open_storage(directory)
    if latest(storage) is None:
        raise ValueError(f"{storage.url} is not a feature store")
    left = [stored.key for folder in ("done/", "leases/") for stored in storage.list(folder)]
    with Leases(storage).kept() as leases:
        leases.claim_prune()
        return _remove(storage, keep, gone, left)


def _remove(storage: Storage, keep: int, gone: bool, left: Sequence[str]) -> Pruned:
    """Remove old snapshots, what only they need, and the records `left` of runs that have ended."""
    last = latest(storage)
    if last is None or last.work:
        raise ValueError(f"{storage.url} is incomplete; run the same extraction again to finish it, and then prune it")
    repair(storage, last)
    there = sorted({last.number, *filter(None, numbers(storage))})
    rows = last.counts.gone if gone else 0
    oldest = [*there, last.number + 1][-keep] if rows else there[-keep:][0]
    if rows or oldest != last.oldest:  # it tells `verify` which records must exist
        last = _publish_next(storage, last, oldest, rows > 0)
    removed = [number for number in there if number < oldest]
    for number in removed:
        storage.delete(snapshot_key(number))
    kept = (read_snapshot(storage, number) for number in range(oldest, last.number + 1))
    needed = {key for snapshot in kept for key in _needed(storage, snapshot)}
    found = [stored for stored in storage.list("objects/") if stored.key not in needed]
    if latest(storage) != last:  # a run that was suspended for longer than its lease
        raise BlockingIOError(f"{storage.url}: {PUBLISHED}")
    for key in [*(stored.key for stored in found), *left]:
        storage.delete(key)
    return Pruned(len(removed), len(found), sum(stored.size for stored in found), rows)


def _publish_next(storage: Storage, last: Snapshot, oldest: int, without_gone: bool) -> Snapshot:
    """Publish a snapshot that says which is the oldest that is kept, and has no rows of inputs that are gone."""
    rows = read_table(storage, last.rows, ROWS)
    if without_gone:
        rows = rows.filter(pc.invert(rows["gone"]))
    plan = Plan(rows, WORK.empty_table(), tuple(read_classes(storage, last)), last.next_shard)
    manifest, results = read_manifest(storage, last), read_results(storage, last)
    snapshot = next_snapshot(storage, last, manifest, plan, results, last.root, "prune", oldest)
    if not publish(storage, snapshot):
        raise BlockingIOError(f"{storage.url}: {PUBLISHED}")
    return snapshot


def _needed(storage: Storage, snapshot: Snapshot) -> Iterator[str]:
    """Yield the keys of all objects that a snapshot needs."""
    yield from map(object_key, snapshot.objects())
    for part in snapshot.results:
        yield from map(object_key, pc.unique(read_part(storage, part, RESULTS)["features"]).to_pylist())
