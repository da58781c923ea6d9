"""Lists of images: `.csv` and `.parquet` files with a column `path` or `url` and optionally `label`, and `.txt` files
with a URL a line."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, TextIO, cast

import pyarrow.parquet as pq

from vitbackbone.files import SHORT
from vitbackbone.store.sources.labels import as_text
from vitbackbone.store.sources.parquet import ERRORS, check_unique, open_parquet
from vitbackbone.store.sources.remote import is_remote, open_file
from vitbackbone.store.sources.rows import CHUNK, Rows

# The mark of UTF-32 begins with the mark of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def add_csv(rows: Rows, file: str, prefix: str = "", private: bool = False) -> None:
    """Add the rows of a CSV. White space around cells is removed. `prefix`: the folder of relative paths.
    `private`: as for `open_file`.

    Raises `ValueError` if the file is not a CSV or has neither a column `path` nor `url`.
    """
    with _lines(file, private) as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            kind = _check_columns(header)
            path, label = (header.index(name) if name in header else len(header) for name in (kind, "label"))
            for row in reader:
                if row:
                    place = (PurePosixPath(file).name, reader.line_num)
                    rows.add(_named(kind, prefix, _cell(row, path)), as_text(_cell(row, label)), place=place)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}; is a quote missing?") from error


def add_text(rows: Rows, file: str, prefix: str = "", private: bool = False) -> None:
    """Add the URLs of a text, one a line. Empty lines are skipped."""
    with _lines(file, private) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.add(_named("url", prefix, line.strip()), place=(PurePosixPath(file).name, number))


def add_parquet(rows: Rows, file: str, prefix: str = "", private: bool = False) -> None:
    """Add the rows of a parquet list, as `add_csv` does.

    Raises `ValueError` if the file is damaged or has no text column `path` or `url`.
    """
    with open_parquet(file, private, anew=True) as table:
        kind = _check_columns(table.schema_arrow.names)
        for number, (path, label) in enumerate(_cells(table, kind), 1):
            if not isinstance(path, str | None):
                raise ValueError(f"row {number}: the column {kind!r} holds {path!r}; want text")
            rows.add(_named(kind, prefix, path or ""), label, place=(PurePosixPath(file).name, number))


@contextmanager
def _lines(file: str, private: bool) -> Iterator[TextIO]:
    """Open a text in the encoding that its first bytes tell."""
    with open_file(file, private, anew=True) as opened:
        start = opened.read(4)
        opened.seek(0)
        encoding = next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), "utf-8")
        yield io.TextIOWrapper(cast(io.BufferedReader, opened), encoding, errors="surrogateescape", newline="")


def _cells(table: pq.ParquetFile, kind: str) -> Iterator[tuple[Any, Any]]:
    """Yield the path and the label of each row. Raises `ValueError` if the list is damaged."""
    columns = [name for name in (kind, "label") if name in table.schema_arrow.names]
    count = 0
    try:
        for batch in table.iter_batches(CHUNK, columns=columns):
            labels = batch["label"].to_pylist() if "label" in columns else [None] * len(batch)
            yield from zip(batch[kind].to_pylist(), labels, strict=True)
            count += len(batch)
    except ERRORS as error:
        raise ValueError(f"the list is damaged after row {count} ({error})") from error


def _check_columns(columns: Sequence[str]) -> str:
    """Return the column of the images, `path` or `url`."""
    found = [name for name in ("path", "url") if name in columns]
    if not found:
        raise ValueError(f"the columns are {SHORT.repr(list(columns))}; want 'path' or 'url', and optionally 'label'")
    check_unique(columns, ("path", "url", "label"))
    return found[0]


def _named(kind: str, prefix: str, path: str) -> str:
    """Return the path of a row. A value in a column of URLs that is not a URL never becomes a path of this machine."""
    if kind == "url":
        return path if is_remote(path) else f"url://{path}"
    return path if path.startswith("/") or not prefix or is_remote(path) else f"{prefix}/{path}"


def _cell(row: Sequence[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""
