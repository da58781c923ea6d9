"""Images in `.parquet` files, and helpers to open and write any parquet file."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vitbackbone.store.sources.archive import ArchiveMember, check_bytes, damaged_member
from vitbackbone.store.sources.labels import Label, LabelError, as_label
from vitbackbone.store.sources.names import Notes, escaped
from vitbackbone.store.sources.remote import open_file, version_of

IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
SHOWN_NAMES = ("path", "name", "file_name", "filename")
# Raised on damaged pages, on text that is not UTF-8, and on dates that Python cannot hold.
ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)


@contextmanager
def open_parquet(file: str | Path, private: bool = False, anew: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a parquet file. pyarrow would take a path such as "run:1/a.parquet" for a URI, so it gets an open file.

    `private`, `anew`: as for `open_file`. Raises `ValueError` if the file is not valid parquet, `OSError` if it cannot
    be read.
    """
    with open_file(str(file), private, anew) as opened:
        try:
            parquet = pq.ParquetFile(opened, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"it is not a valid .parquet file ({error})") from error
        yield parquet


def write_parquet(table: pa.Table, file: Path, **options: Any) -> None:
    """Write a parquet file. Its path is never taken for a URI."""
    with file.open("wb") as opened:
        pq.write_table(table, opened, **options)


class Parquet:
    """A parquet archive. Its images are bytes, or `{bytes, path}` as in Hugging Face's datasets. The columns `label`,
    and `path` or `name`, are optional."""

    def __init__(self, file: str, private: bool = False) -> None:
        self.file = file
        self.private = private

    def members(self, notes: Notes) -> Iterator[ArchiveMember]:
        with open_parquet(self.file, self.private) as table:
            columns = table.schema_arrow.names
            check_unique(columns, (*SHOWN_NAMES, "label"))
            images = _image_columns(table.schema_arrow)
            if not images:
                raise ValueError("the file has no column of images")
            if len(images) > 1:
                text = "archives with several columns of images give the first"
                notes.say(text, escaped(f"{PurePosixPath(self.file).name} has {', '.join(images)}"))
            shown = next((column for column in SHOWN_NAMES if column in columns), None)
            label = self._label_column(table.schema_arrow, notes)
            row = 0
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                cells, wrong = {}, []
                for column in dict.fromkeys(column for column in (shown, label) if column):
                    try:
                        cells[column] = table.read_row_group(group, [column], use_threads=False)[column].to_pylist()
                    except ERRORS as error:
                        wrong.append(f"the column {column!r} is damaged in rows {row} to {row + count - 1} ({error})")
                names, labels = (cells.get(column or "", repeat(None, count)) for column in (shown, label))
                for i, (name, value) in enumerate(zip(names, labels, strict=True), row):
                    yield ArchiveMember(str(i) if name in (None, "") else str(name), i, -1, self._label(value, i))
                for text in wrong:
                    yield damaged_member(-1, text, f"[damage in row group {group}]")
                row += count

    def class_names(self) -> list[str]:
        """Read class names from the metadata: `classes`, a JSON list, or the `ClassLabel` of Hugging Face datasets."""
        with open_parquet(self.file, self.private) as table:
            metadata = table.schema_arrow.metadata or {}
            label = self._label_column(table.schema_arrow, Notes())
        try:
            found = json.loads(metadata[b"classes"]) if b"classes" in metadata else _features(metadata).get(label or "")
            if isinstance(found, dict):
                found = found.get("names")
            if found is None:
                return []
            if not isinstance(found, list) or not all(isinstance(name, str | int) for name in found):
                raise ValueError(f"want a list of names, got {str(found)[:80]}")
            name, times = next(iter(Counter(map(str, found)).most_common(1)), ("", 1))
            if times > 1:
                raise ValueError(f"{times} classes are named {name!r}")
        except (ValueError, RecursionError) as error:
            raise LabelError(f"the class names in its metadata are invalid ({error})") from error
        return [str(name) for name in found]

    def read(self, name: str, offset: int, size: int) -> bytes:
        if offset < 0:
            with open_parquet(self.file, self.private):  # its error may say more
                raise ValueError("the archive is damaged there")
        first, cells = _images(self.file, self.private, offset)
        cell = cells[offset - first].as_py()
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if not isinstance(data, bytes):
            hint = f", only the path {path!r}; embed the images, or give a list with a column 'path'" if path else ""
            raise ValueError(f"row {offset} holds no image bytes{hint}")
        check_bytes(len(data))
        return data

    def open(self, name: str, offset: int) -> BytesIO:
        return BytesIO(self.read(name, offset, -1))

    def _label(self, value: object, row: int) -> Label:
        try:
            return as_label(value)
        except LabelError as error:
            raise LabelError(f"row {row}: {error}") from error

    def _label_column(self, schema: pa.Schema, notes: Notes) -> str | None:
        if "label" in schema.names:
            return "label"
        features = _features(schema.metadata or {})
        found = [name for name, about in features.items() if _kind(about) == "ClassLabel" and name in schema.names]
        if len(found) > 1:
            text = "archives with several label columns get no labels; name one of them 'label'"
            notes.say(text, escaped(f"{PurePosixPath(self.file).name} has {', '.join(found)}"))
        return found[0] if len(found) == 1 else None


def image_column(schema: pa.Schema) -> str | None:
    """Return the column of images, or None if there is none, as in a list of paths.

    Raises `ValueError` if two columns of bytes have one name.
    """
    return next(iter(_image_columns(schema)), None)


def _image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of images: by Hugging Face's features, else by name and type, else the only column of bytes.

    The first one is read. Raises as `image_column`.
    """
    features = _features(schema.metadata or {})
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    check_unique(schema.names, columns)
    typed = [name for name in columns if _kind(features.get(name)) == "Image"]
    typed.sort(key=lambda name: name not in IMAGE_NAMES)  # such as a mask, which may stand before its image
    named = [name for name in IMAGE_NAMES if name in columns]
    structs = [name for name in columns if pa.types.is_struct(schema.field(name).type)]
    only = columns if len(columns) == 1 and "path" not in schema.names else []
    return typed or named or (structs if len(structs) == 1 else only)


def check_unique(columns: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise `ValueError` if several columns have one of the names `wanted`."""
    for name in wanted:
        if columns.count(name) > 1:
            raise ValueError(f"{columns.count(name)} columns are named {name!r}; want one")


def has_images(file: str, private: bool = False) -> bool:
    """Tell whether a parquet file holds images, and not only their paths."""
    with open_parquet(file, private, anew=True) as table:
        return image_column(table.schema_arrow) is not None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return Hugging Face's feature description of each column."""
    try:
        about = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    for key in ("info", "features"):
        about = about.get(key) if isinstance(about, dict) else None
    return about if isinstance(about, dict) else {}


def _kind(about: object) -> object:
    return about.get("_type") if isinstance(about, dict) else None


# A process caches the row group that it read last, since one holds many images. The file's version is part of the key.
@lru_cache(1)
def _group(file: str, private: bool, _: str, group: int) -> pa.ChunkedArray:
    with open_parquet(file, private) as table:
        column = image_column(table.schema_arrow)
        if column is None:
            raise ValueError("the file has no column of images now")
        return table.read_row_group(group, [column], use_threads=False)[column]


@lru_cache(4)
def _starts(file: str, private: bool, _: str) -> Sequence[int]:
    with open_parquet(file, private) as table:
        starts = [0]
        for group in range(table.num_row_groups):
            starts.append(starts[-1] + table.metadata.row_group(group).num_rows)
        return starts


def _images(file: str, private: bool, row: int) -> tuple[int, pa.ChunkedArray]:
    """Return the row group of a row: its first row, and its images."""
    with open_file(file, private) as opened:
        version = version_of(opened)
    starts = _starts(file, private, version)
    if row >= starts[-1]:
        raise ValueError(f"the file has only {starts[-1]} rows; row {row} is missing")
    group = bisect_right(starts, row) - 1
    return starts[group], _group(file, private, version, group)
