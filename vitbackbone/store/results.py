"""The results of shards: published one by one while a run works, gathered in the tables of the next snapshot."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from vitbackbone.files import Storage
from vitbackbone.store.layout import PART, RESULTS, WORK, done_key
from vitbackbone.store.objects import put_tensors, read_part
from vitbackbone.store.records import Done, Part, Snapshot, read_record, seal
from vitbackbone.store.sources.labels import as_utf8
from vitbackbone.store.tensors import with_checksums
from vitbackbone.store.workers.reader import Outcome


@dataclass(frozen=True, eq=False)
class Task:
    """A shard to compute."""

    number: int
    key: str  # names the manifest and the contents, and so the result
    table: pa.Table  # of `WORK`, its slots

    def __len__(self) -> int:
        return len(self.table)


def read_tasks(storage: Storage, snapshot: Snapshot, part: Part) -> list[Task]:
    """Read the tasks in one part of a snapshot's work."""
    return list(tasks_in(read_part(storage, part, WORK), snapshot.manifest))


def tasks_in(table: pa.Table, manifest: str) -> Iterator[Task]:
    """Yield the shards of a table of `WORK`."""
    digests = table["sha256"].combine_chunks()
    for number, start, stop in spans(table):
        digest = hashlib.sha256(manifest.encode())
        for content in digests[start:stop].to_pylist():
            digest.update(content)
        yield Task(number, digest.hexdigest(), table[start:stop])


def spans(table: pa.Table) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each shard of a table of `WORK` or `RESULTS`, and its rows."""
    numbers = table["shard"].to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(table)], strict=False):
        yield int(numbers[start]), start, stop


def publish_result(storage: Storage, task: Task, outcomes: Sequence[Outcome], tensors: Mapping[str, Tensor]) -> Done:
    """Write the features of a shard, and then the record that it is done. Another worker may have been first."""
    done = Done(
        features=put_tensors(storage, with_checksums(tensors)),
        reason=tuple(outcome.reason for outcome in outcomes),
        error=tuple(outcome.error and as_utf8(outcome.error) for outcome in outcomes),
        width=tuple(outcome.width for outcome in outcomes),
        height=tuple(outcome.height for outcome in outcomes),
        frames=tuple(outcome.frames for outcome in outcomes),
    )
    storage.create(done_key(task.key), seal(done))
    return done


def read_done(storage: Storage, key: str) -> Done | None:
    """Return the record of a computed shard; None if it is missing or damaged, so that the shard is computed again."""
    try:
        return read_record(storage, done_key(key), Done)
    except (FileNotFoundError, ValueError):
        return None


def discard_if_damaged(storage: Storage, key: str) -> None:
    """Remove the record of a computed shard if it is damaged: no worker could write it again otherwise."""
    try:
        read_record(storage, done_key(key), Done)
    except FileNotFoundError:
        return  # a worker may be writing it now
    except ValueError:
        storage.delete(done_key(key))


def as_table(task: Task, done: Done) -> pa.Table:
    """Return the rows of a computed shard in the table of results."""
    columns = {
        "shard": task.table["shard"],
        "features": [done.features] * len(task),
        **{name: list(getattr(done, name)) for name in RESULTS.names[2:]},
    }
    return pa.table(columns, RESULTS)


def read_results(storage: Storage, snapshot: Snapshot) -> pa.Table:
    """Read the results of a snapshot. Repeated names of features are stored once in memory."""
    tables = [RESULTS.empty_table(), *(read_part(storage, part, RESULTS) for part in snapshot.results)]
    return pa.concat_tables([encoded(table) for table in tables])


def encoded(table: pa.Table) -> pa.Table:
    """Return results with each name of features once in memory."""
    names = table["features"].dictionary_encode()
    return table.set_column(1, "features", names.cast(pa.dictionary(pa.int32(), pa.string())))


def in_order(results: pa.Table) -> pa.Table:
    """Sort results by shard; the slots of each keep their order."""
    return results.take(pa.array(np.argsort(results["shard"].to_numpy(), kind="stable")))


def cut_at_shards(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Cut tables of whole shards, in order, into parts. A new part begins with the first shard at or after each
    multiple of `PART` rows. So new shards at the end leave the earlier parts as they are."""
    waiting: list[pa.Table] = []
    rows, first = 0, 0  # before the waiting tables; in all
    for table in tables:
        table = table.cast(schema)
        begin = 0
        for _, start, _stop in spans(table):
            if (rows + start) // PART > first // PART:
                yield pa.concat_tables([*waiting, table[begin:start]])
                waiting, begin, first = [], start, rows + start
        waiting.append(table[begin:])
        rows += len(table)
    if rows:
        yield pa.concat_tables(waiting)
