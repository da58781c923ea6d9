"""Objects that are named by the SHA-256 of their content: written once, and checked whenever they are read whole."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vitbackbone.files import READS, Storage, read_checked, read_chunks
from vitbackbone.store.layout import PART, object_key
from vitbackbone.store.records import Part

MISSING = "is missing"
REPAIR = "run the extraction on its source again to repair it"


class Damaged(ValueError):
    """An object does not have the content that its name says, or is missing. `found`: the text without its advice."""

    def __init__(self, storage: Storage, key: str, why: str) -> None:
        super().__init__(storage, key, why)  # so that a process can send it
        self.found = f"{storage.url}/{key} is damaged ({why})"

    def __str__(self) -> str:
        return f"{self.found}; {REPAIR}"


def put_json(storage: Storage, value: object) -> str:
    """Write an object of JSON, and return its name."""
    name = json_name(value)
    storage.put(object_key(name), _json(value))
    return name


def json_name(value: object) -> str:
    """Return the name of an object of JSON."""
    return f"{hashlib.sha256(_json(value)).hexdigest()}.json"


def put_tensors(storage: Storage, tensors: Mapping[str, Tensor]) -> str:
    """Write an object of tensors without a second copy of them in memory, and return its name."""
    with storage.scratch() as folder:
        file = folder / "features.safetensors"
        try:
            save_file(dict(tensors), file)
        except SafetensorError as error:
            raise as_os_error(error, storage.url) from error
        with file.open("rb") as opened:
            name = f"{hashlib.file_digest(opened, 'sha256').hexdigest()}.safetensors"
        storage.put(object_key(name), file)
    return name


def put_table(storage: Storage, tables: Iterator[pa.Table], known: Sequence[Part]) -> tuple[Part, ...]:
    """Write the parts of a table. Objects in `known` are not written again."""
    names = {part.name for part in known}
    parts = []
    for table in tables:
        buffer = io.BytesIO()
        pq.write_table(table.combine_chunks(), buffer)
        data = buffer.getvalue()
        name = f"{hashlib.sha256(data).hexdigest()}.parquet"
        if name not in names:
            storage.put(object_key(name), data)
        parts.append(Part(name=name, rows=len(table)))
    return tuple(parts)


def read_object(storage: Storage, name: str) -> bytes:
    """Return the content of an object. Raises `Damaged` if it is missing or does not fit its name."""
    key = object_key(name)

    def check(data: bytes) -> bytes:
        if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
            raise Damaged(storage, key, "its checksum differs")
        return data

    try:
        return read_checked(storage, key, check)
    except FileNotFoundError:
        raise Damaged(storage, key, "it is missing") from None


def read_part(storage: Storage, part: Part, schema: pa.Schema) -> pa.Table:
    """Read one part of a table. Raises `Damaged`, too, if it is no such table."""
    data = read_object(storage, part.name)
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read().cast(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(storage, object_key(part.name), str(error)) from error
    if len(table) != part.rows:
        raise Damaged(storage, object_key(part.name), f"it has {len(table)} rows; want {part.rows}")
    return table


def read_table(storage: Storage, parts: Sequence[Part], schema: pa.Schema) -> pa.Table:
    """Read all parts of a table."""
    return pa.concat_tables([schema.empty_table(), *(read_part(storage, part, schema) for part in parts)])


def check_object(storage: Storage, name: str) -> str | None:
    """Read an object piece by piece. Returns what is wrong with it, or None."""
    for _ in range(READS):
        digest = hashlib.sha256()
        try:
            for chunk in read_chunks(storage, object_key(name)):
                digest.update(chunk)
        except FileNotFoundError:
            return MISSING
        if digest.hexdigest() == name.partition(".")[0]:
            return None
    return "is damaged: its checksum differs"


def cut(table: pa.Table) -> Iterator[pa.Table]:
    """Cut a table into parts of `PART` rows."""
    for start in range(0, len(table), PART):
        yield table[start : start + PART]


def as_os_error(error: Exception, place: str) -> Exception:
    """Return the system's error that caused an error of safetensors. safetensors names it only in its text."""
    from vitbackbone.files import LIMITS, full

    code = next((code for code in LIMITS if f"os error {code})" in str(error)), None)
    return error if code is None else full(code, "features.safetensors", place)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
