"""The steps of a run: read the last snapshot, plan against the source, gather results, publish the next snapshot."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vitbackbone.files import Storage
from vitbackbone.store.layout import RESULTS, ROWS, WORK, done_key, lease_key
from vitbackbone.store.manifest import Manifest, differences
from vitbackbone.store.objects import Damaged, check_object, cut, json_name, put_json, put_table, read_table
from vitbackbone.store.plan import Known, Plan, make_plan, result_rows, shards_of
from vitbackbone.store.records import Counts, Snapshot
from vitbackbone.store.results import (
    as_table,
    cut_at_shards,
    discard_if_damaged,
    encoded,
    in_order,
    read_done,
    read_results,
    read_tasks,
)
from vitbackbone.store.salvage import class_names as class_names_of
from vitbackbone.store.salvage import undamaged, undamaged_tasks
from vitbackbone.store.snapshots import following, latest, publish, read_classes, read_manifest, repair
from vitbackbone.store.sources.identity import Contents
from vitbackbone.store.sources.locate import PASSING
from vitbackbone.store.sources.rows import Inputs
from vitbackbone.store.workers.slices import Slice

CHECKERS = 4  # threads that read complete shards; more are not faster on most disks

Settings = Callable[[Snapshot | None], Manifest]  # of this run, in view of the last snapshot
Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]  # shows the progress of a step with its number of items
log = logging.getLogger("vitbackbone")


def check_settings(storage: Storage, last: Snapshot | None, manifest: Manifest) -> None:
    """Raise `ValueError` with each difference if the place is a store with another manifest."""
    if last is None:
        return
    if json_name(manifest) == last.manifest:
        return
    try:
        different = differences(read_manifest(storage, last), manifest)
    except Damaged as error:
        raise ValueError(
            f"{storage.url}: its settings cannot be read, and this run has others. Give the options of the run that "
            f"made it, or another --out: {error.found}"
        ) from error
    if different:
        raise ValueError(
            f"{storage.url} was made with other settings; give another --out, or the same settings:\n  "
            + "\n  ".join(different)
        )


def publish_plan(
    storage: Storage, settings: Settings, inputs: Inputs, mine: Slice, retry_failed: bool, watch: Watch
) -> Snapshot:
    """Compare the source with the last snapshot. Publish and return the next one if anything has changed.

    If another run publishes at the same time, this one compares again with what that published, and settles for its
    route.
    """
    while True:
        last = latest(storage)
        manifest = settings(last)
        check_settings(storage, last, manifest)
        known = _known(storage, last, inputs, mine, watch)

        def read(contents: Contents, total: int) -> Contents:
            return iter(watch(contents, total, "reading new images"))

        plan = make_plan(inputs, known, manifest["shard_size"], read, retry_failed)
        snapshot = next_snapshot(
            storage, last, manifest, plan, known.results, str(inputs.root), "plan", lost=known.lost
        )
        if last is not None and snapshot.content() == last.content():
            return last
        if publish(storage, snapshot):
            _tell(storage, last, known, plan)
            return snapshot


def publish_results(storage: Storage, snapshot: Snapshot) -> Snapshot:
    """Publish the snapshot that has the results of all shards of the plan `snapshot`.

    If some are missing, as the shards of other slices, nothing is published. If another run has published a plan
    meanwhile, the results go into the snapshot after that one, for the shards that both plans have.
    Returns the last snapshot that this run knows.
    """
    while snapshot.work:
        keys: list[str] = []
        new = _gather(storage, snapshot, keys)
        if new is None:
            newer = latest(storage)
            if newer is None or newer.number <= snapshot.number:
                return snapshot
            snapshot = newer
            continue
        results = in_order(pa.concat_tables([read_results(storage, snapshot), *new]))
        names = tuple(read_classes(storage, snapshot))
        plan = Plan(read_table(storage, snapshot.rows, ROWS), WORK.empty_table(), names, snapshot.next_shard)
        manifest = read_manifest(storage, snapshot)
        after = next_snapshot(storage, snapshot, manifest, plan, results, snapshot.root, "results")
        if publish(storage, after):
            _forget(storage, keys)
            return after
        snapshot = latest(storage) or snapshot
    return snapshot


def _forget(storage: Storage, keys: Iterable[str]) -> None:
    """Remove the records of shards whose results are in a snapshot."""
    for key in keys:
        storage.delete(lease_key(key))
        storage.delete(done_key(key))  # last: a run that is killed here leaves it for `_known` to find


def _gather(storage: Storage, snapshot: Snapshot, keys: list[str]) -> list[pa.Table] | None:
    """Return the results of all shards of a plan, and add their keys to `keys`; None if a shard is not computed yet."""
    found = []
    for task in (task for part in snapshot.work for task in read_tasks(storage, snapshot, part)):
        done = read_done(storage, task.key)
        if done is None:
            discard_if_damaged(storage, task.key)
            return None
        found.append(encoded(as_table(task, done)))
        keys.append(task.key)
    return found


def _known(storage: Storage, last: Snapshot | None, inputs: Inputs, mine: Slice, watch: Watch) -> Known:
    """Read the state of the last snapshot. Shards whose features are damaged count as not computed.

    Results that wait for a snapshot are checked, too, if they are `mine` to compute again. Raises `ValueError` if no
    row is left that could tell whether the inputs are the store's own, and the inputs are in another folder.
    """
    if last is None:
        return Known(ROWS.empty_table(), encoded(RESULTS.empty_table()), (), 0)
    repair(storage, last)
    if not last.work:  # records of a run that was killed after it had published its results
        _forget(storage, _done_keys(storage))
    lost: set[str] = set()
    rows = pa.concat_tables([ROWS.empty_table(), *undamaged(storage, last.rows, ROWS, lost)])
    tables = [RESULTS.empty_table(), *undamaged(storage, last.results, RESULTS, lost)]
    results = pa.concat_tables([encoded(table) for table in tables])
    numbers = {task.key: task.number for task in undamaged_tasks(storage, last, lost)}
    keys = [key for key, number in numbers.items() if number in mine]
    if not lost.isdisjoint(part.name for part in last.work):  # lost work is planned anew, under the same keys
        keys += sorted(_done_keys(storage) - numbers.keys())
    computed = pc.unique(results["features"].cast(pa.string())).to_pylist()
    broken = _check_features(storage, keys, computed, watch)
    whole = pc.invert(pc.is_in(results["features"].cast(pa.string()), value_set=pa.array(sorted(broken), pa.string())))
    if not len(rows):  # all is planned anew, as in the first run; no result may meet another row of its number
        if last.counts.rows and str(inputs.root) != last.root:
            raise ValueError(
                f"{storage.url}: tables are damaged, and the rows of all its {last.counts.rows} images are lost. The "
                f"source is in {inputs.root} and not in {last.root}, so nothing tells whether it is the same. Give "
                "the source there, or another --out"
            )
        return Known(rows, encoded(RESULTS.empty_table()), (), 0, frozenset(lost), last.counts.rows)
    names = class_names_of(storage, last, inputs.class_names)
    missing = last.counts.rows - len(rows)
    return Known(rows, results.filter(whole), names, last.next_shard, frozenset(lost), missing)


def check_waiting(storage: Storage, snapshot: Snapshot, mine: Slice, watch: Watch) -> None:
    """Let shards of `mine` that wait for a snapshot count as not computed if they are damaged."""
    tasks = (task for part in snapshot.work for task in read_tasks(storage, snapshot, part))
    _check_features(storage, [task.key for task in tasks if task.number in mine], [], watch)


def _done_keys(storage: Storage) -> set[str]:
    """Return the keys of all shards whose results wait for a snapshot."""
    return {PurePosixPath(stored.key).stem for stored in storage.list("done/")}


def _check_features(storage: Storage, keys: Sequence[str], computed: Sequence[str], watch: Watch) -> set[str]:
    """Read the features of shards, and return the names of the damaged ones.

    `keys`: shards that may wait for a snapshot. A shard's record is removed if it or its features are damaged, or if an
    image should be tried again. `computed`: names of features in a snapshot.
    """
    waiting = {key: read_done(storage, key) for key in keys}
    files = list(dict.fromkeys([*computed, *(done.features for done in waiting.values() if done is not None)]))
    with ThreadPoolExecutor(CHECKERS) as threads:
        checked = threads.map(lambda name: check_object(storage, name), files)
        wrong = list(watch(checked, len(files), "checking complete shards"))
    broken = {name for name, problem in zip(files, wrong, strict=True) if problem is not None}
    for key, done in waiting.items():
        if done is None:
            discard_if_damaged(storage, key)
        elif done.features in broken or not set(done.reason).isdisjoint(PASSING):
            storage.delete(done_key(key))
    return broken


def next_snapshot(
    storage: Storage,
    last: Snapshot | None,
    manifest: Manifest,
    plan: Plan,
    results: pa.Table,
    root: str,
    why: str,
    oldest: int | None = None,
    lost: Collection[str] = (),
) -> Snapshot:
    """Write the objects of the snapshot after `last`, and return its record. Arguments as for `Snapshot`.

    `lost`: parts of `last` that are damaged. Parts that the new snapshot needs are written again.
    """
    live = pc.is_in(results["shard"], value_set=pc.unique(plan.rows["shard"]))
    results = results.filter(live)  # without shards that no row needs now
    number, parent = following(last)
    before = [] if last is None else [*last.rows, *last.work, *last.results]
    there = [part for part in before if part.name not in lost]
    return Snapshot(
        number=number,
        parent=parent,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        why=why,
        manifest=put_json(storage, manifest),
        classes=put_json(storage, list(plan.class_names)),
        rows=put_table(storage, cut(plan.rows), there),
        work=put_table(storage, cut_at_shards([plan.work], WORK), there),
        results=put_table(storage, cut_at_shards([results], RESULTS), there),
        counts=_counts(plan, results),
        next_shard=plan.next_shard,
        oldest=oldest or (last.oldest if last else 1),
        root=root,
    )


def _counts(plan: Plan, results: pa.Table) -> Counts:
    shards, slots = (pc.fill_null(plan.rows[name], -1).to_numpy() for name in ("shard", "slot"))
    at = result_rows(results, shards, slots)
    failed = results["reason"].is_valid().to_numpy()[at[at >= 0]].sum() + (shards < 0).sum()
    pending = len(shards_of(plan.work))
    return Counts(
        rows=len(plan.rows),
        read=int(len(plan.rows) - failed - ((at < 0) & (shards >= 0)).sum()),
        failed=int(failed),
        gone=pc.sum(plan.rows["gone"]).as_py() or 0,
        shards=len(shards_of(results)) + pending,
        pending=pending,
    )


def _tell(storage: Storage, last: Snapshot | None, known: Known, plan: Plan) -> None:
    """Log what a plan changes."""
    if known.missing:
        log.warning(
            "%s: the rows of %d of its %d images were lost with a damaged table. Those that are in the source are "
            "computed again and get new rows; the features of the others are lost",
            storage.url,
            known.missing,
            known.missing + len(known.rows),
        )
    if len(known.rows) and plan.added:
        log.info("%s: new images: %d, in rows behind its %d", storage.url, plan.added, len(known.rows))
    if plan.changed:
        log.warning("%s: changed images: %d, computed again", storage.url, plan.changed)
    if plan.back:
        log.info("%s: failed images: %d, tried again", storage.url, plan.back)
    if plan.bare:
        log.warning(
            "%s: images that are not in the source now, and whose features are damaged or were never computed: %d; "
            "put these images back and run the same extraction again",
            storage.url,
            plan.bare,
        )
    if plan.gone > plan.bare and (last is None or plan.gone > last.counts.gone):
        log.warning(
            "%s: images that are not in the source now: %d; their features stay until `vitbackbone prune --gone`",
            storage.url,
            plan.gone - plan.bare,
        )
