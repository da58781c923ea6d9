"""The small records of a store. Each carries its own checksum, so that a flipped bit anywhere in it is noticed."""

import hashlib
import json
import os
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, PlainSerializer

from vitbackbone.files import Record, Storage, check_record, parse_json, read_checked

Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.(json|parquet|safetensors)$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
R = TypeVar("R", bound=Record)
ESCAPE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")


def _escaped(place: str) -> str:
    """Return a path as JSON holds it: a byte that is not UTF-8 becomes \\xff, and a backslash is doubled."""
    return os.fsencode(place.replace("\\", r"\\")).decode("utf-8", "backslashreplace")


def _unescaped(text: str, info: Any) -> str:  # a `ValidationInfo`, a protocol that is not checkable at run time
    if info.mode != "json":  # a record that is made, and not read
        return text
    return os.fsdecode(ESCAPE.sub(lambda found: bytes.fromhex((found[1] or b"5c").decode()), text.encode()))


Place = Annotated[str, AfterValidator(_unescaped), PlainSerializer(_escaped, when_used="json")]


class Part(Record, extra="forbid"):
    """A part of a table."""

    name: Name
    rows: Count


class Counts(Record, extra="forbid"):
    """The numbers of a snapshot, so that a store opens without reading its tables."""

    rows: Count
    read: Count  # rows with features
    failed: Count
    gone: Count  # rows whose input is no longer in the source
    shards: Count
    pending: Count  # shards to compute


class Snapshot(Record, extra="forbid"):
    """The record of one state of a store."""

    schema_: Annotated[Literal[4], Field(alias="schema")] = 4  # `layout.SCHEMA`
    number: Annotated[int, Field(ge=1)]
    parent: Digest | None  # checksum of the record before
    made: str  # date and time
    why: str  # "plan", "results" or "prune"
    manifest: Name
    classes: Name
    rows: tuple[Part, ...]
    work: tuple[Part, ...]
    results: tuple[Part, ...]
    counts: Counts
    next_shard: Count  # the number of the next new shard
    oldest: Annotated[int, Field(ge=1)]  # the first snapshot that is kept
    root: Place  # folder of the images when the store was made; not part of the fingerprint

    def objects(self) -> list[str]:
        """Return the names of the objects that the record itself names. The results name the features."""
        return [self.manifest, self.classes, *(part.name for part in (*self.rows, *self.work, *self.results))]

    def content(self) -> tuple[object, ...]:
        """Return what two snapshots of the same state have in common."""
        return self.manifest, self.classes, self.rows, self.work, self.results


class Done(Record, extra="forbid"):
    """The record that a shard is computed: its features, and the outcome of each slot."""

    features: Name
    reason: tuple[str | None, ...]
    error: tuple[str | None, ...]
    width: tuple[int | None, ...]
    height: tuple[int | None, ...]
    frames: tuple[int | None, ...]

    @property
    def failed(self) -> int:
        return sum(reason is not None for reason in self.reason)


def seal(record: Record) -> bytes:
    """Return the bytes of a record, with a checksum in front."""
    return _wrapped(record.model_dump(mode="json", by_alias=True))


def read_record(storage: Storage, key: str, kind: type[R]) -> R:
    """Read a record of a storage. Raises `ValueError` that names the file if any bit of it is wrong."""
    return read_checked(storage, key, lambda data: unseal(data, kind, f"{storage.url}/{key}"))


def unseal(data: bytes, kind: type[R], name: str) -> R:
    """Read a record. Raises `ValueError` that names the file if any bit of it is wrong."""
    found = parse_json(data, _Sealed, name)
    if _wrapped(found.record) != data:
        raise ValueError(f"{name} is damaged: its checksum differs")
    return check_record(found.record, kind, name)


def checksum(record: Record) -> str:
    """Return the checksum of a record, by which the next record names it."""
    return _digest(record.model_dump(mode="json", by_alias=True))


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, ensure_ascii=False).encode()).hexdigest()


def _wrapped(body: dict[str, Any]) -> bytes:
    return (json.dumps({"sha256": _digest(body), "record": body}, ensure_ascii=False) + "\n").encode()


class _Sealed(Record, extra="forbid"):
    sha256: str
    record: dict[str, Any]
