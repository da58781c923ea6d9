"""The plan of a store: a row for every input, and the shard and slot that has or will have its features.

A run compares the source with the last snapshot. Rows keep their order; new inputs follow. An input whose content an
earlier one has shares its slot. Only content without features is planned anew, in new shards, so that shards that are
computed keep their bytes. The work is linear in the number of inputs.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from vitbackbone.store.layout import ROWS, WORK
from vitbackbone.store.sources.frames import may_begin
from vitbackbone.store.sources.identity import CHUNK, Contents, read_contents, sizes_and_versions
from vitbackbone.store.sources.labels import UNKNOWN
from vitbackbone.store.sources.locate import AWAY, PASSING
from vitbackbone.store.sources.rows import Inputs


@dataclass(frozen=True, eq=False)
class Known:
    """The state of a store before a run."""

    rows: pa.Table  # schema `ROWS`
    results: pa.Table  # schema `RESULTS`; only of shards whose files are undamaged
    class_names: tuple[str, ...]
    next_shard: int
    lost: frozenset[str] = frozenset()  # names of damaged parts, whose rows are not among these
    missing: int = 0  # rows in damaged parts


@dataclass(frozen=True, eq=False)
class Plan:
    """The state of a store after a comparison with its source."""

    rows: pa.Table  # schema `ROWS`
    work: pa.Table  # schema `WORK`, sorted by shard and slot
    class_names: tuple[str, ...]
    next_shard: int
    added: int = 0
    changed: int = 0  # inputs whose content has changed
    gone: int = 0  # inputs that are no longer in the source; their rows stay
    back: int = 0  # failed inputs that are read again
    bare: int = 0  # inputs that are gone and have no features


def make_plan(
    inputs: Inputs,
    known: Known,
    shard_size: int,
    watch: Callable[[Contents, int], Contents],
    retry_failed: bool = False,
) -> Plan:
    """Plan what the listed inputs need beyond the `known` state.

    Reads the content of inputs that are new or have another size or version, and of those that could not be read
    before. With `retry_failed`, all failed inputs are tried again; else only those that failed by a passing fault.
    `watch` gets the iterator of contents and their number, and returns an iterator of the same contents.

    Raises `ValueError` if no input is in the plan, or if a label differs.
    """
    listed = inputs.table
    row_of = _match(known.rows["path"], listed["path"])
    first = np.flatnonzero(row_of >= 0)
    kept = row_of[first]
    _check_same_source(known, kept, len(listed))
    names = (*known.class_names, *(name for name in inputs.class_names if name not in known.class_names))
    labels = np.array([*map({n: i for i, n in enumerate(names)}.get, inputs.class_names), UNKNOWN])[
        listed["label"].to_numpy()
    ]
    _check_labels(known.rows, kept, labels[first], names)

    sizes, versions = sizes_and_versions(inputs.root, listed)
    suspect = sizes[first] != known.rows["bytes"].to_numpy()[kept]
    suspect |= pc.not_equal(versions.take(first), known.rows["version"].take(kept)).to_numpy()
    suspect |= known.rows["sha256"].is_null().to_numpy()[kept]
    again, new = first[suspect], np.flatnonzero(row_of < 0)
    to_read = np.concatenate([again, new])
    found = _collect(watch(read_contents(inputs.root, listed, sizes, to_read), len(to_read)))

    rows = _merge(known.rows, listed, sizes, versions, labels, kept, first, new)
    at = np.concatenate([row_of[again], np.arange(len(known.rows), len(rows))])  # rows that were read
    away = _are_away(rows, at, found)
    gone = rows["gone"].to_numpy().copy()
    gone[at[away]] = True
    before = rows["sha256"]
    for name, column in found.items():
        rows = _replaced(rows, name, at[~away], column.filter(pa.array(~away)))
    moved = _differ(before, rows["sha256"])  # their content is another now
    shards, slots, ill = _places(rows, known.results, moved, retry_failed)
    retried = ill & ~gone
    shards[retried] = slots[retried] = -1
    begins = may_begin(rows["path"])
    shards, slots, next_shard = _assign(rows["sha256"], shards, slots, gone, ill, begins, known.next_shard, shard_size)
    computed = shards_of(known.results)
    _compact(shards, slots, computed)
    for name, column in (("shard", _nullable(shards)), ("slot", _nullable(slots)), ("gone", pa.array(gone))):
        rows = rows.set_column(ROWS.get_field_index(name), ROWS.field(name), column)
    needed = _needed(shards, slots, gone, computed)
    work = rows.take(pa.array(needed)).select(WORK.names).cast(WORK)
    counts = (len(new), int(moved.sum()), int(gone.sum()), int(retried.sum()), int(gone[needed].sum()))
    return Plan(rows, work, names, next_shard, *counts)


def _merge(
    known: pa.Table,
    listed: pa.Table,
    sizes: Int[np.ndarray, " n"],
    versions: pa.Array,
    labels: Int[np.ndarray, " n"],
    kept: Int[np.ndarray, " k"],
    first: Int[np.ndarray, " k"],
    new: Int[np.ndarray, " m"],
) -> pa.Table:
    """Return the known rows with what the listing says of them now, and the new rows after them."""
    gone = np.ones(len(known), bool)
    gone[kept] = pc.and_(pc.equal(versions.take(pa.array(first)), ""), known["sha256"].take(pa.array(kept)).is_valid())
    columns: dict[str, object] = {}
    for name, values in (("offset", listed["offset"].to_numpy()), ("bytes", sizes)):
        column = known[name].to_numpy().copy()
        column[kept] = values[first]
        columns[name] = np.concatenate([column, values[new]])
    chosen = pa.array(new)
    updated = _replaced(known, "version", kept, versions.take(pa.array(first)))["version"]
    columns["version"] = pa.chunked_array([*updated.chunks, versions.take(chosen)], pa.string())
    for name in ("path", "archive"):
        columns[name] = pa.chunked_array(
            [*known[name].chunks, *listed[name].take(chosen).chunks], ROWS.field(name).type
        )
    columns["label"] = np.concatenate([known["label"].to_numpy(), labels[new]])
    for name in ("sha256", "shard", "slot", "reason", "error"):
        empty = pa.nulls(len(new), ROWS.field(name).type)
        columns[name] = pa.chunked_array([*known[name].chunks, empty], ROWS.field(name).type)
    columns["gone"] = np.concatenate([gone, np.zeros(len(new), bool)])
    return pa.table({name: columns[name] for name in ROWS.names}, ROWS)


def _are_away(rows: pa.Table, at: Int[np.ndarray, " m"], found: dict[str, pa.Array]) -> Bool[np.ndarray, " m"]:
    """Tell which of these inputs cannot be reached now, but were read by an earlier run, whose result they keep."""
    unreachable = pc.fill_null(pc.is_in(found["reason"], value_set=pa.array(AWAY)), False).to_numpy(False)
    return unreachable & rows["sha256"].take(pa.array(at)).is_valid().to_numpy()


def _places(
    rows: pa.Table, results: pa.Table, moved: Bool[np.ndarray, " n"], retry_failed: bool
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return the shard and slot of each row, -1 if it has none, and whether to try the slot again."""
    shards, slots = (pc.fill_null(rows[name], -1).to_numpy().copy() for name in ("shard", "slot"))
    shards[moved] = slots[moved] = -1
    reasons = results["reason"]
    failed = reasons.is_valid() if retry_failed else pc.is_in(reasons, value_set=pa.array(PASSING))
    at = result_rows(results, shards, slots)
    ill = at >= 0
    ill[ill] = failed.to_numpy()[at[ill]]
    return shards, slots, ill


def _assign(
    sha256: pa.ChunkedArray,
    shards: Int[np.ndarray, " n"],
    slots: Int[np.ndarray, " n"],
    gone: Bool[np.ndarray, " n"],
    ill: Bool[np.ndarray, " n"],
    begins: Bool[np.ndarray, " n"],
    next_shard: int,
    shard_size: int,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], int]:
    """Give a place to each row that has none: the place of an earlier row with the same content, else a new one."""
    codes = pc.fill_null(sha256.combine_chunks().dictionary_encode().indices, -1).to_numpy()
    first = np.full(codes.max(initial=-1) + 1, -1)  # the first row with a place, of each content
    placed = np.flatnonzero((shards >= 0) & (codes >= 0) & ~ill)[::-1]
    first[codes[placed]] = placed
    loose = np.flatnonzero((shards < 0) & (codes >= 0) & ~gone)
    alone = loose[first[codes[loose]] < 0]
    leaders = alone[np.sort(np.unique(codes[alone], return_index=True)[1])]  # the first row of each new content
    starts = _shard_starts(begins[leaders], shard_size)
    number = np.searchsorted(starts, np.arange(len(leaders)), side="right") - 1
    shards[leaders], slots[leaders] = next_shard + number, np.arange(len(leaders)) - starts[number]
    first[codes[leaders]] = leaders
    shards[loose], slots[loose] = shards[first[codes[loose]]], slots[first[codes[loose]]]
    return shards, slots, next_shard + len(starts)


def _shard_starts(begins: Bool[np.ndarray, " n"], shard_size: int) -> Int[np.ndarray, " s"]:
    """Return the first of the inputs of each new shard. A shard has at most `shard_size` inputs.

    A shard of frames begins with a keyframe if the shard before it is then more than half full. Otherwise, the frames
    of one group would be decoded twice.
    """
    starts, end = list[int](), 0
    while end < len(begins):
        starts.append(end)
        end += shard_size
        if end < len(begins) and not begins[end]:
            good = np.flatnonzero(begins[end - shard_size // 2 + 1 : end])
            end = end - shard_size // 2 + 1 + int(good[-1]) if len(good) else end
    return np.array(starts, dtype=np.int64)


def _compact(shards: Int[np.ndarray, " n"], slots: Int[np.ndarray, " n"], computed: Int[np.ndarray, " s"]) -> None:
    """Number the slots of the shards to compute without gaps, in place. Rows that have moved leave gaps behind."""
    waiting = np.flatnonzero((shards >= 0) & ~np.isin(shards, computed))
    order = waiting[np.lexsort((slots[waiting], shards[waiting]))]
    begins_shard = np.diff(shards[order], prepend=-1) != 0
    begins_slot = begins_shard | (np.diff(slots[order], prepend=-1) != 0)
    rank = np.cumsum(begins_slot)
    slots[order] = rank - np.repeat(rank[begins_shard], np.diff(np.flatnonzero(begins_shard), append=len(order)))


def _needed(
    shards: Int[np.ndarray, " n"],
    slots: Int[np.ndarray, " n"],
    gone: Bool[np.ndarray, " n"],
    computed: Int[np.ndarray, " s"],
) -> Int[np.ndarray, " m"]:
    """Return a row for each slot to compute, in order: the first row that has it and is in the source, if any is."""
    waiting = np.flatnonzero((shards >= 0) & ~np.isin(shards, computed))
    order = waiting[np.lexsort((waiting, gone[waiting], slots[waiting], shards[waiting]))]
    first = (np.diff(shards[order], prepend=-1) != 0) | (np.diff(slots[order], prepend=-1) != 0)
    return order[first]


def result_rows(
    results: pa.Table, shards: Int[np.ndarray, " n"], slots: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Return the row in `results` of each shard and slot; -1 if the shard is not computed."""
    of_slot = results["shard"].to_numpy()
    starts = np.flatnonzero(np.diff(of_slot, prepend=-1))
    if not len(starts):
        return np.full(len(shards), -1)
    at = np.searchsorted(of_slot[starts], shards).clip(max=len(starts) - 1)
    return np.where(of_slot[starts][at] == shards, starts[at] + slots, -1)


def shards_of(results: pa.Table) -> Int[np.ndarray, " s"]:
    """Return the numbers of the shards in a table of `RESULTS` or `WORK`, in order."""
    of_slot = results["shard"].to_numpy()
    return of_slot[np.flatnonzero(np.diff(of_slot, prepend=-1))]


def _replaced(table: pa.Table, name: str, at: Int[np.ndarray, " m"], values: pa.Array) -> pa.Table:
    """Replace some cells of a column."""
    which = np.arange(len(table))
    which[at] = len(table) + np.arange(len(at))
    field = table.schema.field(name)
    both = pa.chunked_array([*table[name].chunks, values.cast(field.type)], field.type)
    return table.set_column(table.schema.get_field_index(name), field, both.take(pa.array(which)))


def _differ(before: pa.ChunkedArray, now: pa.ChunkedArray) -> Bool[np.ndarray, " n"]:
    """Tell which contents were known and are another, or none, now."""
    differs = pc.fill_null(pc.not_equal(before, now), True).to_numpy()
    return differs & before.is_valid().to_numpy()


def _nullable(numbers: Int[np.ndarray, " n"]) -> pa.Array:
    return pa.array(numbers, pa.int64(), mask=numbers < 0)


def _match(known: pa.ChunkedArray, listed: pa.ChunkedArray) -> Int[np.ndarray, " n"]:
    """Return the row in `known` of each path in `listed`, -1 if new. A path that is listed twice is two inputs."""
    if not len(known):
        return np.full(len(listed), -1)
    codes = pa.chunked_array([*known.chunks, *listed.chunks], pa.binary()).combine_chunks().dictionary_encode().indices
    both = codes.to_numpy()
    keys = [_numbered(codes) for codes in (both[: len(known)], both[len(known) :])]
    order = np.argsort(keys[0])
    at = np.searchsorted(keys[0], keys[1], sorter=order).clip(max=len(known) - 1)
    row = order[at]
    return np.where(keys[0][row] == keys[1], row, -1)


def _numbered(codes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Make equal codes distinct: each is combined with the number of equal codes before it."""
    order = np.argsort(codes, kind="stable")
    ranked = codes[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=-1))
    before = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    numbered = np.empty(len(codes), np.int64)
    numbered[order] = ranked.astype(np.int64) * 2**32 + before
    return numbered


def _check_same_source(known: Known, kept: Int[np.ndarray, " k"], listed: int) -> None:
    if not len(known.rows) or len(kept):
        return
    such = f"such as {os.fsdecode(known.rows['path'][0].as_py())!r}, is among the {listed} of the source"
    if known.missing:
        raise ValueError(
            f"a table is damaged, so the rows of {known.missing} of the {known.missing + len(known.rows)} images of "
            f"this store are lost. None of the others, {such}. If they were renamed, run once on the source with its "
            "former names; otherwise give another --out"
        )
    raise ValueError(
        f"this store was built from different inputs: none of its {len(known.rows)} images, {such}; give another --out"
    )


def _check_labels(
    known: pa.Table, kept: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], names: Sequence[str]
) -> None:
    stored = known["label"].to_numpy()[kept]
    for i in np.flatnonzero(stored != labels)[:1].tolist():
        path = os.fsdecode(known["path"][int(kept[i])].as_py())
        was, now = (repr(names[label]) if label >= 0 else "none" for label in (stored[i], labels[i]))
        count = int((stored != labels).sum())
        raise ValueError(
            f"{count} label{'s' * (count != 1)} changed since the store was made, for example {path!r}: "
            f"{was} -> {now}; give another --out"
        )


def _collect(contents: Contents) -> dict[str, pa.Array]:
    """Return the columns of the contents. They are packed piece by piece, because Python objects take more memory."""
    names = ("sha256", "reason", "error")
    chunks: list[list[pa.Array]] = [[], [], []]
    cells: list[tuple[bytes | None, str | None, str | None]] = []

    def pack() -> None:
        for i, name in enumerate(names):
            chunks[i].append(pa.array([cell[i] for cell in cells], ROWS.field(name).type))
        cells.clear()

    for content in contents:
        cells.append(content)
        if len(cells) == CHUNK:
            pack()
    pack()
    return {name: pa.concat_arrays(chunks[i]) for i, name in enumerate(names)}
