"""What to extract: a folder, a glob, a list file or archives of images become paths and labels."""

import csv
import glob
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitbackbone.extract.archive import ARCHIVES, EXTENSIONS, Label, has_images, is_image, open_archive
from vitbackbone.extract.local import local

UNKNOWN = -1
MAX_CLASSES = 100_000  # a larger whole-number label is an id, not a class index
WANTED = (
    "want a folder of images, a glob such as 'photos/**/*.jpg', a .csv or .parquet list with a column 'path', or "
    f"archives of images ({', '.join(ARCHIVES)}), one or a glob such as 'shards/*.tar'"
)
CHUNK = 2**16  # rows that are Python objects at a time

LISTED = pa.schema(
    {
        "path": pa.binary(),  # POSIX, from the root; of an archive's image, that of the archive, "/" and its name
        "archive": pa.int32(),  # how many bytes of `path` are the archive's; 0 for a file by itself
        "offset": pa.int64(),  # where in the archive, see `archive.Member`
        "bytes": pa.int64(),  # -1 where the file system must be asked
        "label": pa.int64(),  # index into the class names, -1 where unknown
    }
)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The images to extract, in the order of their rows."""

    root: Path  # what relative paths start from
    table: pa.Table  # of `LISTED`: a million paths are a few dozen MB so, and several hundred as Python's own objects
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def paths(self) -> tuple[str, ...]:
        """As users know them: POSIX, relative to the root."""
        return tuple(map(os.fsdecode, self.table["path"].to_pylist()))

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(self.table["label"].to_pylist())

    def files(self, start: int, stop: int) -> list[str]:
        """Where the inputs of rows [start, stop) lie, if they are files by themselves."""
        return [str(self.root / os.fsdecode(path)) for path in self.table["path"][start:stop].to_pylist()]


def list_inputs(source: str | PathLike[str]) -> Inputs:
    """The images of a folder, a glob, a list file or archives. No image is opened: one that cannot be read is a row
    too.

    - Folder: every file below it with an image's extension, sorted; first-level sub-folders are the classes. Hidden
      files are skipped, links are followed but not in circles.
    - Glob: what it matches of those extensions, sorted; `**` is any depth. No labels.
    - List, `.csv` or `.parquet`: the rows in their order, labels from the column `label` if there is one. Names are
      sorted into classes; whole numbers are class indices already, and empty or -1 is unknown. Relative paths start at
      the list's folder.
    - Archives, one or by a glob: `.tar`, `.zip`, and `.parquet` with a column `image`; see `archive`. Sorted by name,
      each in its own order.

    Raises `ValueError` if the source does not exist, is none of these, or names no image.
    """
    text = os.fspath(source)
    if Path(text).is_dir():
        inputs = _from_folder(Path(text))
    elif Path(text).is_file():
        inputs = _from_file(Path(text))
    elif glob.has_magic(text):
        inputs = _from_glob(text)
    else:
        raise ValueError(f"{text}: there is no such file or folder; {WANTED}")
    if not len(inputs):
        raise ValueError(f"{text}: found no image there; {WANTED}. Image files end in {', '.join(sorted(EXTENSIONS))}")
    return inputs


class _Rows:
    """Rows as they come, kept as Arrow has them."""

    def __init__(self) -> None:
        self._cells: list[tuple[bytes, int, int, int, int]] = []
        self._batches: list[pa.RecordBatch] = []
        self._labels: dict[Label, int] = {}  # what each is, to the number that stands for it until all are known

    def add(self, path: str, label: object = None, archive: str = "", offset: int = -1, size: int = -1) -> None:
        whole = os.fsencode(f"{archive}/{path}" if archive else path)
        code = self._labels.setdefault(_label(label), len(self._labels))
        self._cells.append((whole, len(os.fsencode(archive)), offset, size, code))
        if len(self._cells) == CHUNK:
            self._pack()

    def inputs(self, root: Path, names: Sequence[str] = (), parse: Callable[[Label], Label] | None = None) -> Inputs:
        """`names`: those of whole-number labels. `parse`: what a label's text says, where it has no types."""
        self._pack()
        table = pa.Table.from_batches(self._batches, LISTED)
        values = [parse(label) if parse else label for label in self._labels]
        indices, class_names = _classes(values, names)
        of_code = np.array([*indices, UNKNOWN], dtype=np.int64)
        labels = pa.array(of_code[table["label"].to_numpy()]) if len(table) else pa.array([], pa.int64())
        return Inputs(
            root, table.set_column(LISTED.get_field_index("label"), LISTED.field("label"), labels), class_names
        )

    def _pack(self) -> None:
        columns = zip(*self._cells, strict=True) if self._cells else [()] * len(LISTED)
        arrays = [pa.array(cells, field.type) for cells, field in zip(columns, LISTED, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=LISTED))
        self._cells.clear()


def _from_folder(folder: Path) -> Inputs:
    rows = _Rows()
    for path in _walk(folder):
        rows.add(path, path.split("/", 1)[0] if "/" in path else None)
    return rows.inputs(folder.absolute())


def _walk(folder: Path, prefix: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Relative POSIX paths of the images below `folder`, sorted. `above`: the folders that it lies in."""
    here = _identity(folder)
    if here in above:
        return
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_image(entry.name):  # a folder of that name as well: its row will say so
                found.append(entry.name)
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry).is_dir()):
                found.append(f"{entry.name}/")  # sorts as all that lies in it does
    for name in sorted(found):
        if name.endswith("/"):
            yield from _walk(folder / name, prefix + name, (*above, here))
        else:
            yield prefix + name


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _from_glob(pattern: str) -> Inputs:
    start = Path(re.split(r"[*?[]", pattern, maxsplit=1)[0] + "*").parent

    @cache
    def circular(folder: Path) -> bool:
        """Whether a link on the way led back to a folder on the way: `**` follows links in circles."""
        way = [part for part in (folder, *folder.parents) if len(part.parts) >= len(start.parts)]
        return len({_identity(part) for part in way}) < len(way)

    found = [path.replace(os.sep, "/") for path in glob.glob(pattern, recursive=True)]  # noqa: PTH207  # takes absolute ones
    found = sorted(path for path in found if not circular(Path(path).parent))
    if Path(pattern).suffix.lower() in ARCHIVES:
        return _from_archives(Path.cwd(), found)
    rows = _Rows()
    for path in found:
        if is_image(path):
            rows.add(path)
    return rows.inputs(Path.cwd())


def _from_file(file: Path) -> Inputs:
    suffix = file.suffix.lower()
    try:
        if suffix in ARCHIVES and (suffix != ".parquet" or has_images(file)):
            return _from_archives(file.absolute().parent, [file.name])
        if suffix == ".csv":
            return _from_csv(file)
        if suffix == ".parquet":
            return _from_parquet(file)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: {error}") from error
    raise ValueError(f"{file} is a file, not a list of images; {WANTED}")


def _from_archives(root: Path, files: Sequence[str]) -> Inputs:
    rows = _Rows()
    names: list[str] = []
    for file in files:
        archive = open_archive(root / file)
        names = archive.class_names() or names
        for member in archive.members():
            rows.add(member.name, member.label, file, member.offset, member.bytes)
    return rows.inputs(root, names)


def _from_csv(file: Path) -> Inputs:
    rows = _Rows()
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.reader(lines)
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header)
        path, label = (header.index(name) if name in header else len(header) for name in ("path", "label"))
        for row in reader:
            if row:
                rows.add(_cell(row, path), _cell(row, label))

    def number(text: Label) -> Label:
        return int(text) if text is not None else None

    texts = [text for text in rows._labels if text is not None]
    numeric = all(re.fullmatch(r"-?(0|[1-9]\d*)", str(text)) for text in texts)  # a CSV has no types; 007 is a name
    return rows.inputs(file.absolute().parent, parse=number if numeric else None)


def _cell(row: Sequence[str], column: int) -> str:
    return row[column] if column < len(row) else ""


def _from_parquet(file: Path) -> Inputs:
    table = pq.ParquetFile(local(file))
    columns = table.schema_arrow.names
    _check_columns(columns)
    rows = _Rows()
    for batch in table.iter_batches(CHUNK, columns=[name for name in ("path", "label") if name in columns]):
        labels = batch["label"].to_pylist() if "label" in columns else [None] * len(batch)
        for path, label in zip(batch["path"].to_pylist(), labels, strict=True):
            if not isinstance(path, str | None):
                raise ValueError(f"the column 'path' holds {path!r}; want text")
            rows.add(path or "", label)
    return rows.inputs(file.absolute().parent)


def _check_columns(columns: Sequence[str]) -> None:
    if "path" not in columns:
        raise ValueError(f"the columns are {list(columns)}; want 'path', and 'label' if there are labels")


def _classes(values: Sequence[Label], names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """The class index of each value, and the names of all classes. `names`: those of whole numbers, if known."""
    numbers = [value for value in values if isinstance(value, int)]
    texts = sorted({value for value in values if isinstance(value, str)})
    if texts:
        indices = {name: i for i, name in enumerate(texts)}
        return [UNKNOWN if value is None else indices[str(value)] for value in values], tuple(texts)
    wrong = next((number for number in numbers if not UNKNOWN <= number < MAX_CLASSES), None)
    if wrong is not None:
        raise ValueError(
            f"label {wrong}: a whole number is a class index, from 0 to {MAX_CLASSES - 1}, or -1 for unknown; "
            f"if it is a name, write it as text, such as 'class {wrong}'"
        )
    highest = max(numbers, default=UNKNOWN)
    known = names if highest < len(names) else map(str, range(highest + 1))
    return [UNKNOWN if value is None else int(value) for value in values], tuple(known)


def _label(value: Any) -> Label:
    """A class name, a class index, or None. pandas writes integers with gaps as floats."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"label {value!r} is a {type(value).__name__}; want text or whole numbers")
