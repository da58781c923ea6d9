"""Group the photos of a store: copies of one image, or photos of one animal, burst or camera.

Axes: `N` images that were read.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int

from vitbackbone.store.sources.parquet import ERRORS, check_unique, open_parquet
from vitbackbone.store.store import FeatureStore

WANTED = "want the level of a folder in the photos' paths (0 is the first, -1 the last), or LIST.csv:COLUMN"


def copies(store: FeatureStore) -> Int[np.ndarray, " N"]:
    """Return a group number for each image. Images with the same content have the same number."""
    rows = store.images
    own = [f"row {row}" for row in rows["row"].to_pylist()]
    return _numbered([sha256 or one for sha256, one in zip(rows["sha256"].to_pylist(), own, strict=True)])


def groups_by(store: FeatureStore, by: str, images: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return a group number for each of the images `images`.

    `by` is the level of a folder in the paths, from 0, or negative from the photo's own folder. Photos in folders of
    one name form a group. Or `by` is `LIST:COLUMN`, a CSV or parquet list with the columns `path` and COLUMN. Photos
    with the same cell form a group, and a photo with an empty cell is alone.
    Raises `ValueError` if `by` is neither, if a photo has no such folder, or if the list lacks a photo.
    """
    paths = [_normal(store.paths[i]) for i in images]
    if by.lstrip("-").isdecimal():
        return _numbered([_folder(path, int(by)) for path in paths])
    file, _, column = by.rpartition(":")
    if not file or not column:
        raise ValueError(f"--groups {by!r}: {WANTED}")
    group_of = dict(_read_list(Path(file), column))
    missing = [path for path in paths if path not in group_of]
    if missing:
        raise ValueError(f"{file} does not name {len(missing)} of {len(paths)} photos, first {missing[0]!r}")
    return _numbered([group_of[path] or ("", i) for i, path in enumerate(paths)])


def _folder(path: str, level: int) -> str:
    folders = PurePosixPath(path).parts[:-1]
    if not -len(folders) <= level < len(folders):
        raise ValueError(f"--groups {level}: {path!r} is in {len(folders)} folders; {WANTED}")
    return folders[level]


def _read_list(file: Path, column: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the group of each row. Raises `ValueError` if a path has two groups."""
    table = _read_columns(file, column)
    seen: dict[str, str] = {}
    for path, value in table:
        path, group = _normal(str(path or "").strip()), "" if value is None else str(value).strip()
        if seen.setdefault(path, group) != group:
            raise ValueError(f"{file}: {path!r} has two values of {column}, {seen[path]!r} and {group!r}")
        yield path, group


def _read_columns(file: Path, column: str) -> Sequence[tuple[Any, Any]]:
    if file.suffix.lower() == ".parquet":
        with open_parquet(file) as parquet:
            _check_columns(file, parquet.schema_arrow.names, column)
            try:
                table = parquet.read(columns=sorted({"path", column}))
                return list(zip(table["path"].to_pylist(), table[column].to_pylist(), strict=True))
            except ERRORS as error:
                raise ValueError(f"{file} is damaged ({error})") from error
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_columns(file, header, column)
            at, of_group = header.index("path"), header.index(column)
            rows = [row + [""] * (len(header) - len(row)) for row in reader if row]
        except csv.Error as error:
            raise ValueError(f"{file}, line {reader.line_num}: {error}; is a quote missing?") from error
    return [(row[at], row[of_group]) for row in rows]


def _check_columns(file: Path, columns: Sequence[str], column: str) -> None:
    for name in ("path", column):
        if name not in columns:
            raise ValueError(f"{file} has no column {name!r}; it has {', '.join(columns)}")
    check_unique(columns, {"path", column})


def _normal(path: str) -> str:
    return str(PurePosixPath(path))


def _numbered(keys: Sequence[Any]) -> Int[np.ndarray, " N"]:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
