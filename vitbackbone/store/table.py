"""The rows of a snapshot joined with the results of its shards."""

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from vitbackbone.files import Storage
from vitbackbone.store.layout import INDEX, ROWS
from vitbackbone.store.objects import read_table
from vitbackbone.store.plan import result_rows
from vitbackbone.store.records import Snapshot
from vitbackbone.store.results import as_table, encoded, in_order, read_done, read_results, read_tasks, spans
from vitbackbone.store.sources.frames import frame_columns
from vitbackbone.store.sources.labels import as_utf8
from vitbackbone.store.sources.locate import remedies


@dataclass(frozen=True, eq=False)
class Table:
    """The rows and results of a snapshot.

    `pending`: shards that are not computed.
    """

    rows: pa.Table  # of `ROWS`
    results: pa.Table  # of `RESULTS`
    pending: int

    @cached_property
    def names(self) -> list[str]:
        """The object of each shard's features, in the order of the shards."""
        return self.results["features"].take(pa.array(self._starts)).to_pylist()

    @cached_property
    def reads(self) -> Int[np.ndarray, " s"]:
        """The number of images in each shard's features."""
        return np.add.reduceat(self._good, self._starts) if len(self.names) else np.empty(0, np.int64)

    @cached_property
    def is_plain(self) -> bool:
        """Whether the images are the rows of all shards, one after the other."""
        at = self._at[self._at >= 0]
        return np.array_equal(at[self._good[at] == 1], np.flatnonzero(self._good))

    def features(self) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """Return the shard of each image that was read, as an index into `names`, and the row in this shard."""
        before = np.cumsum(self._good) - self._good
        at = self._at[self._at >= 0]
        at = at[self._good[at] == 1]
        shard = np.searchsorted(self._starts, at, side="right") - 1
        return shard, before[at] - before[self._starts[shard]]

    def index(self) -> pa.Table:
        """Return the table of `INDEX`."""
        at = pa.array(self._at, mask=self._at < 0)
        outcome = {name: self.results[name].take(at) for name in ("reason", "error", "width", "height", "frames")}
        for name in ("reason", "error"):  # inputs whose content could not be read have theirs in `rows`
            outcome[name] = pc.coalesce(self.rows[name], outcome[name])
        computed = pc.or_(at.is_valid(), self.rows["reason"].is_valid())
        status = pc.if_else(outcome["reason"].is_valid(), "failed", pc.if_else(computed, "ok", "pending"))
        columns = {
            "row": np.arange(len(self.rows)),
            "path": _shown(self.rows["path"]),
            "label": self.rows["label"],
            "status": status,
            **outcome,
            "remedy": remedies(outcome["reason"], self.rows["gone"]),
            "sha256": _hexadecimal(self.rows["sha256"]),
            "same_as": self._same_as(),
            "gone": self.rows["gone"],
            **frame_columns(self.rows["path"]),
        }
        return pa.table(columns, INDEX)

    @cached_property
    def _at(self) -> Int[np.ndarray, " n"]:
        """The row in `results` of each input, -1 if it has none."""
        shards, slots = (pc.fill_null(self.rows[name], -1).to_numpy() for name in ("shard", "slot"))
        return result_rows(self.results, shards, slots)

    @cached_property
    def _good(self) -> Int[np.ndarray, " m"]:
        """1 for each result with features, else 0."""
        return self.results["reason"].is_null().to_numpy().astype(np.int64)

    @cached_property
    def _starts(self) -> Int[np.ndarray, " s"]:
        return np.array([start for _, start, _ in spans(self.results)], dtype=np.int64)

    def _same_as(self) -> pa.Array:
        """Return the first row with the same features for each later one, else null."""
        shards, slots = (pc.fill_null(self.rows[name], -1).to_numpy() for name in ("shard", "slot"))
        order = np.lexsort((slots, shards))
        begins = (np.diff(shards[order], prepend=-2) != 0) | (np.diff(slots[order], prepend=-2) != 0)
        first = np.empty(len(order), np.int64)
        first[order] = order[begins][np.cumsum(begins) - 1]
        return pa.array(first, mask=(first == np.arange(len(order))) | (shards < 0))


def read_all(storage: Storage, snapshot: Snapshot) -> Table:
    """Read the tables of a snapshot, and the results of its shards that are computed and not yet part of it."""
    new, pending = [], 0
    for part in snapshot.work:
        for task in read_tasks(storage, snapshot, part):
            done = read_done(storage, task.key)
            pending += done is None
            if done is not None:
                new.append(encoded(as_table(task, done)))
    results = read_results(storage, snapshot)
    return Table(
        read_table(storage, snapshot.rows, ROWS),
        in_order(pa.concat_tables([results, *new])) if new else results,
        pending,
    )


def _shown(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return paths as users see them: bytes that are not UTF-8 are written \\udcXX."""
    try:
        return paths.cast(pa.string())
    except pa.ArrowInvalid:  # some are not UTF-8
        return pa.chunked_array([[as_utf8(os.fsdecode(path)) for path in paths.to_pylist()]], pa.string())


def _hexadecimal(digests: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return checksums of 32 bytes as text. A column at once, because a million `str` take seconds."""
    return pa.chunked_array([_hexadecimal_of(chunk) for chunk in digests.chunks], pa.string())


def _hexadecimal_of(digests: pa.FixedSizeBinaryArray) -> pa.Array:
    width, count = digests.type.byte_width, len(digests)
    start = digests.offset * width
    text = memoryview(digests.buffers()[1])[start : start + count * width].hex().encode()
    ends = np.arange(count + 1, dtype=np.int32) * (2 * width)
    texts = pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(text))
    return pc.if_else(digests.is_valid(), texts, None)
