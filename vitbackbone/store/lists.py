"""Lists of images: `.csv` and `.parquet` files with a column `path` and optionally `label`."""

import codecs
import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from vitbackbone.store.labels import as_text
from vitbackbone.store.parquet import open_parquet
from vitbackbone.store.rows import CHUNK, Rows

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def add_csv(rows: Rows, file: Path, prefix: str = "") -> None:
    """Add the rows of a CSV. White space around cells is removed. `prefix`: the folder of relative paths.

    Raises `ValueError` if the file is not a CSV or has no column `path`.
    """
    with file.open("rb") as opened:
        start = opened.read(4)
    encoding = next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), "utf-8")
    with file.open(newline="", encoding=encoding, errors="surrogateescape") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_columns(header)
            path, label = (header.index(name) if name in header else len(header) for name in ("path", "label"))
            for row in reader:
                if row:
                    place = (file.name, reader.line_num)
                    rows.add(_under(prefix, _cell(row, path)), as_text(_cell(row, label)), place=place)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}; is a quote missing?") from error


def add_parquet(rows: Rows, file: Path, prefix: str = "") -> None:
    """Add the rows of a parquet list, as `add_csv` does.

    Raises `ValueError` if the file is damaged or has no text column `path`.
    """
    with open_parquet(file) as table:
        columns = table.schema_arrow.names
        _check_columns(columns)
        number = 0
        try:
            for batch in table.iter_batches(CHUNK, columns=[name for name in ("path", "label") if name in columns]):
                labels = batch["label"].to_pylist() if "label" in columns else [None] * len(batch)
                for path, label in zip(batch["path"].to_pylist(), labels, strict=True):
                    number += 1
                    if not isinstance(path, str | None):
                        raise ValueError(f"row {number}: the column 'path' holds {path!r}; want text")
                    rows.add(_under(prefix, path or ""), label, place=(file.name, number))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"the list is damaged after row {number} ({error})") from error


def _check_columns(columns: Sequence[str]) -> None:
    if "path" not in columns:
        raise ValueError(f"the columns are {list(columns)}; want 'path', and optionally 'label'")
    for name in ("path", "label"):
        if columns.count(name) > 1:
            raise ValueError(f"{columns.count(name)} columns are named {name!r}; want one")


def _cell(row: Sequence[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


def _under(prefix: str, path: str) -> str:
    return path if path.startswith("/") or not prefix else f"{prefix}/{path}"
