"""The plan of a store: every input with its checksum, and the shard of each.

The plan is written before any shard is computed, so that every process computes the same shards. A run that finds new
inputs appends them: their rows and shards follow the existing ones. If the content of an input changes, the plan of its
shard no longer fits the shard's marker, and the shard is computed again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int, Shaped

from vitbackbone.files import parse_json
from vitbackbone.store.labels import UNKNOWN
from vitbackbone.store.layout import PLAN, inputs_file, inputs_files
from vitbackbone.store.locate import Locator, Unreadable, read_bytes
from vitbackbone.store.parquet import open_parquet, write_parquet
from vitbackbone.store.publication import published
from vitbackbone.store.rows import Inputs, Root

READERS = 8  # threads that compute checksums; hashlib releases the GIL
CHUNK = 2**13  # most inputs that are Python objects at a time
UNREAD = bytes(32)  # stands for the digest of an input that cannot be read; no content has it

Digests = Iterator[bytes]


@dataclass(frozen=True)
class _About:
    """The metadata of one file of the plan."""

    class_names: tuple[str, ...]
    shards: tuple[str, ...]  # `PlannedShard.sha256` of each


@dataclass(frozen=True, eq=False)
class PlannedShard:
    """The inputs of one shard."""

    number: int
    first: int  # row of its first input
    table: pa.Table  # of `PLAN`, its inputs

    def __len__(self) -> int:
        return len(self.table)

    @property
    def rows(self) -> range:
        return range(self.first, self.first + len(self))

    @property
    def sha256(self) -> str:
        """Checksum of the paths, labels and contents of its inputs."""
        digest = hashlib.sha256(f"{self.first}\0".encode())
        columns = (self.table[name].to_pylist() for name in ("path", "label", "sha256", "same_as"))
        for path, label, sha256, same_as in zip(*columns, strict=True):
            digest.update(path + f"\0{label}\0{same_as}\0".encode() + (sha256 or b"\0"))
        return digest.hexdigest()

    def originals(self) -> list[int]:
        """Return the inputs to read, counted from 0: all except copies of earlier rows."""
        return np.flatnonzero(self.table["same_as"].is_null().to_numpy()).tolist()


@dataclass(frozen=True, eq=False)
class Plan:
    """All inputs of a store, in the order in which the runs added them."""

    generations: tuple[pa.Table, ...]  # of `PLAN`, one for each run that added inputs
    class_names: tuple[str, ...]
    shard_size: int

    def __len__(self) -> int:
        return sum(map(len, self.generations))

    @property
    def table(self) -> pa.Table:
        return pa.concat_tables(self.generations) if self.generations else PLAN.empty_table()

    def shards(self) -> list[PlannedShard]:
        """Return all shards. Each generation begins a new one."""
        shards: list[PlannedShard] = []
        first = 0
        for table in self.generations:
            for start in range(0, len(table), self.shard_size):
                shards.append(PlannedShard(len(shards), first + start, table[start : start + self.shard_size]))
            first += len(table)
        return shards


@dataclass(frozen=True)
class PlanChange:
    """The differences between a source and the plan before a run."""

    added: int = 0
    changed: int = 0  # inputs whose content has changed
    gone: int = 0  # inputs that are no longer in the source; their rows stay


@dataclass(frozen=True)
class Outline:
    """The part of a plan that is known without reading its rows."""

    class_names: tuple[str, ...]
    shards: tuple[str, ...]  # `PlannedShard.sha256` of each
    rows: tuple[int, ...]  # inputs of each


def read_plan(directory: Path, shard_size: int) -> Plan:
    """Read the plan of a store. Raises `ValueError` if a file of it is damaged."""
    tables: list[pa.Table] = []
    outline = read_outline(directory)
    for file in inputs_files(directory):
        with _damage(file), open_parquet(file) as parquet:
            tables.append(_checked(parquet.read().cast(PLAN), outline.class_names))
    plan = Plan(tuple(tables), outline.class_names, shard_size)
    if outline.shards != tuple(shard.sha256 for shard in plan.shards()):
        raise ValueError(
            f"{directory / 'inputs'} is damaged: its rows do not have the checksums that were written; {_REPAIR}"
        )
    return plan


def read_outline(directory: Path) -> Outline:
    """Read the outline of a plan. Raises `ValueError` if a file of the plan is damaged."""
    names: tuple[str, ...] = ()
    shards: list[str] = []
    rows: list[int] = []
    for file in inputs_files(directory):
        with _damage(file), open_parquet(file) as parquet:
            metadata = parquet.metadata
            about = parquet.schema_arrow.metadata or {}
            whole = b'{"class_names": %s, "shards": %s}' % (about[b"class_names"], about[b"shards"])
            written = parse_json(whole, _About, "its metadata")
            names = written.class_names
            shards += written.shards
            rows += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if len(shards) != len(rows):
                raise ValueError("it does not have a row group for each shard")
    return Outline(names, tuple(shards), tuple(rows))


def read_shard(directory: Path, shard_size: int, number: int) -> PlannedShard:
    """Read one shard of a plan and not the others."""
    first = counted = 0
    for file in inputs_files(directory):
        with _damage(file), open_parquet(file) as parquet:
            if number - counted < parquet.num_row_groups:
                group = number - counted
                return PlannedShard(number, first + group * shard_size, parquet.read_row_group(group).cast(PLAN))
            counted += parquet.num_row_groups
            first += parquet.metadata.num_rows
    raise ValueError(f"{directory} has no shard {number}; the last is {counted - 1}")


def write_plan(directory: Path, plan: Plan, before: Plan) -> None:
    """Write the generations that differ from the plan `before`."""
    (directory / "inputs").mkdir(exist_ok=True)
    digests = [shard.sha256 for shard in plan.shards()]
    counted = 0
    for number, table in enumerate(plan.generations):
        count = -(-len(table) // plan.shard_size)
        metadata = {
            "class_names": json.dumps(plan.class_names),
            "shards": json.dumps(digests[counted : counted + count]),
        }
        counted += count
        last = number == len(plan.generations) - 1
        same = number < len(before.generations) and table.equals(before.generations[number])
        if not same or (last and plan.class_names != before.class_names):
            with published(inputs_file(directory, number)) as temporary:
                write_parquet(table.replace_schema_metadata(metadata), temporary, row_group_size=plan.shard_size)


def make_plan(
    inputs: Inputs, before: Plan, watch: Callable[[Digests, int], Digests], reread: bool = False
) -> tuple[Plan, PlanChange]:
    """Update the plan `before` to the listed inputs, and return it with the differences.

    Reads the content of inputs that are new or have another size or time, and with `reread` of those that could not be
    read before. `watch` gets the iterator of digests and their number, and returns an iterator of the same digests.

    Raises `ValueError` if no input is in the plan, or if a label differs.
    """
    known, listed = before.table, inputs.table
    row_of = _match(known["path"], listed["path"])
    first = np.flatnonzero(row_of >= 0)
    kept = row_of[first]
    if len(known) and not len(kept):
        raise ValueError(
            f"this store was built from different inputs: none of its {len(known)} images, such as "
            f"{os.fsdecode(known['path'][0].as_py())!r}, is among the {len(listed)} of the source; give another --out"
        )
    names = (*before.class_names, *(name for name in inputs.class_names if name not in before.class_names))
    of_class = np.array([*(names.index(name) for name in inputs.class_names), UNKNOWN])
    labels = of_class[listed["label"].to_numpy()]
    _check_labels(known, kept, labels[first], names)

    sizes, times = _stat(inputs.root, listed)
    columns = {name: known[name].to_numpy().copy() for name in ("bytes", "mtime", "offset")}
    suspect = (sizes[first] != columns["bytes"][kept]) | (times[first] != columns["mtime"][kept])
    if reread:
        suspect |= known["sha256"].is_null().to_numpy()[kept]
    again, new = first[suspect], np.flatnonzero(row_of < 0)
    for name, values in (("bytes", sizes), ("mtime", times), ("offset", listed["offset"].to_numpy())):
        columns[name][kept] = values[first]

    to_read = np.concatenate([again, new])
    digests = np.fromiter(watch(_digests(inputs.root, listed, sizes, to_read), len(to_read)), "V32", len(to_read))
    sha256 = _raw(known["sha256"])
    changed = int((digests[: len(again)] != sha256[row_of[again]]).sum())
    sha256[row_of[again]] = digests[: len(again)]
    sha256 = np.concatenate([sha256, digests[len(again) :]])
    was_read = sha256 != np.array(UNREAD, "V32")

    chosen = pa.array(new)
    whole = pa.table(
        {
            "path": pa.chunked_array([*known["path"].chunks, *listed["path"].take(chosen).chunks], pa.binary()),
            "archive": np.concatenate([known["archive"].to_numpy(), listed["archive"].to_numpy()[new]]),
            "offset": np.concatenate([columns["offset"], listed["offset"].to_numpy()[new]]),
            "label": np.concatenate([known["label"].to_numpy(), labels[new]]),
            "bytes": np.concatenate([columns["bytes"], sizes[new]]),
            "mtime": np.concatenate([columns["mtime"], times[new]]),
            "sha256": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(32), len(sha256), [pa.array(was_read).buffers()[1], pa.py_buffer(sha256)]
            ),
            "same_as": _first_with_content(sha256, was_read),
        },
        PLAN,
    )
    lengths = [*map(len, before.generations), *([len(new)] if len(new) else [])]
    starts = np.cumsum([0, *lengths]).tolist()
    generations = tuple(
        whole[start : start + length].combine_chunks() for start, length in zip(starts, lengths, strict=False)
    )
    return Plan(generations, names, before.shard_size), PlanChange(len(new), changed, len(known) - len(kept))


def locators(root: Root, table: pa.Table, sizes: Sequence[int]) -> list[Locator]:
    """Return the places of the inputs in a table of `PLAN` or `rows.LISTED`."""
    found: list[Locator] = []
    columns = (table[name].to_pylist() for name in ("path", "archive", "offset"))
    for path, archive, offset, size in zip(*columns, sizes, strict=True):
        if archive:
            member = os.fsdecode(path[archive + 1 :])
            found.append(Locator(root.locate(os.fsdecode(path[:archive])), member, offset, size, root.private))
        else:
            found.append(Locator(root.locate(os.fsdecode(path)), private=root.private))
    return found


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


_REPAIR = "restore the file, or delete the folder inputs/ and run the same extraction again, which plans it anew"


def _checked(table: pa.Table, class_names: Sequence[str]) -> pa.Table:
    """Return a generation of a plan. Raises `ValueError` if a column holds impossible values."""
    for name, low, high in (("label", UNKNOWN, len(class_names) - 1), ("archive", 0, None), ("same_as", 0, None)):
        bounds = pc.min_max(table[name]).as_py()
        if bounds["min"] is not None and (bounds["min"] < low or (high is not None and bounds["max"] > high)):
            raise ValueError(f"its column {name!r} goes from {bounds['min']} to {bounds['max']}")
    for name in ("path", "archive", "offset", "label", "bytes", "mtime"):
        if table[name].null_count:
            raise ValueError(f"its column {name!r} has rows without a value")
    return table


class _damage:
    """Turns an error in the block into a `ValueError` that names the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, pa.ArrowException | OSError | KeyError | TypeError | ValueError):
            raise ValueError(f"{self.file} is damaged ({error}); {_REPAIR}") from error


def _check_labels(
    known: pa.Table, kept: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], names: Sequence[str]
) -> None:
    stored = known["label"].to_numpy()[kept]
    for i in np.flatnonzero(stored != labels)[:1].tolist():
        path = os.fsdecode(known["path"][int(kept[i])].as_py())
        was, now = (repr(names[label]) if label >= 0 else "none" for label in (stored[i], labels[i]))
        raise ValueError(
            f"{_labels(int((stored != labels).sum()))} changed since the store was made, for example {path!r}: "
            f"{was} -> {now}; give another --out"
        )


def _labels(count: int) -> str:
    return "1 label" if count == 1 else f"{count} labels"


def _stat(root: Root, listed: pa.Table) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return the size and time of each input, -1 if missing. A member has its own size and the archive's time."""
    sizes, times = listed["bytes"].to_numpy().copy(), np.full(len(listed), -1)
    of_archive: dict[bytes, tuple[int, int]] = {}
    for start in range(0, len(listed), CHUNK):
        some = listed[start : start + CHUNK]
        for i, (path, archive) in enumerate(zip(some["path"].to_pylist(), some["archive"].to_pylist(), strict=True)):
            if archive:
                name = path[:archive]
                if name not in of_archive:
                    of_archive[name] = _size_and_time(os.fsencode(root.locate(os.fsdecode(name))))
                times[start + i] = of_archive[name][1]
            else:
                sizes[start + i], times[start + i] = _size_and_time(os.fsencode(root.locate(os.fsdecode(path))))
    return sizes, times


def _size_and_time(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116  # a Path for each of a million files costs more than asking for it
    except (OSError, ValueError):  # ValueError: a null character
        return -1, -1
    return status.st_size, (status.st_mtime_ns + 2**63) % 2**64 - 2**63  # times after the year 2262 wrap in 64 bits


def _digests(root: Root, listed: pa.Table, sizes: Int[np.ndarray, " n"], chosen: Int[np.ndarray, " m"]) -> Digests:
    """Yield the SHA-256 of each chosen input, `UNREAD` if it cannot be read."""
    archives = bool(len(chosen)) and pc.max(listed["archive"]).as_py() > 0
    with ThreadPoolExecutor(1 if archives else READERS) as threads:  # an archive is read in its own order
        for start in range(0, len(chosen), CHUNK):
            some = chosen[start : start + CHUNK]
            yield from threads.map(_digest, locators(root, listed.take(pa.array(some)), sizes[some].tolist()))


def _digest(at: Locator) -> bytes:
    try:
        return hashlib.sha256(read_bytes(at)).digest()
    except Unreadable:
        return UNREAD


def _raw(sha256: pa.ChunkedArray) -> Shaped[np.ndarray, " n"]:
    """Return the digests of a plan, `UNREAD` for null. It is a NumPy array, because a million `bytes` take 70 MB."""
    whole = pc.fill_null(sha256, pa.scalar(UNREAD, sha256.type)).combine_chunks()
    return np.frombuffer(whole.buffers()[1], "V32", len(whole), 32 * whole.offset).copy()


def _first_with_content(sha256: Shaped[np.ndarray, " n"], was_read: Bool[np.ndarray, " n"]) -> pa.Array:
    """Return the original of each copy, and null for other rows. An unread row is no copy."""
    known = np.flatnonzero(was_read)
    _, first, inverse = np.unique(sha256[known], return_index=True, return_inverse=True)
    same_as = np.arange(len(sha256))
    same_as[known] = known[first[inverse]]
    return pa.array(same_as, mask=same_as == np.arange(len(sha256)))
