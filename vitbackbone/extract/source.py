"""What to extract: a folder, a glob or a list file becomes paths and labels."""

import csv
import glob
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path

import pyarrow.parquet as pq

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm"})
UNKNOWN = -1
MAX_CLASSES = 100_000  # a larger whole-number label is an id, not a class index
WANTED = "want a folder of images, a glob such as 'photos/**/*.jpg', or a .csv or .parquet list with a column 'path'"


@dataclass(frozen=True)
class Inputs:
    """The images to extract, in the order of their rows."""

    root: Path  # what relative paths start from
    paths: tuple[str, ...]  # as shown to users: POSIX
    labels: tuple[int, ...]  # index into `class_names`, -1 where unknown
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def files(self, start: int, stop: int) -> list[str]:
        """Where the inputs of rows [start, stop) lie."""
        return [str(self.root / path) for path in self.paths[start:stop]]

    @property
    def sha256(self) -> str:
        """Of the paths and labels, in order; not of what the files hold."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{path}\0{label}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def list_inputs(source: str | PathLike[str]) -> Inputs:
    """The images of a folder, a glob or a list file. Nothing is opened: a path that cannot be read is a row too.

    - Folder: every file below it with an image's extension, sorted; first-level sub-folders are the classes. Hidden
      files are skipped, links are followed but not in circles.
    - Glob: what it matches of those extensions, sorted; `**` is any depth. No labels.
    - List: the rows in their order, labels from the column `label` if there is one. Names are sorted into classes;
      whole numbers are class indices already, and empty or -1 is unknown. Relative paths start at the list's folder.

    Raises `ValueError` if the source does not exist, is none of these, or names no image.
    """
    text = os.fspath(source)
    if Path(text).is_dir():
        inputs = _from_folder(Path(text))
    elif Path(text).is_file():
        inputs = _from_list(Path(text))
    elif glob.has_magic(text):
        inputs = _from_glob(text)
    else:
        raise ValueError(f"{text}: there is no such file or folder; {WANTED}")
    if not inputs.paths:
        raise ValueError(f"{text}: found no image there; {WANTED}. Image files end in {', '.join(sorted(EXTENSIONS))}")
    return inputs


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


def _from_folder(folder: Path) -> Inputs:
    paths = tuple(sorted(_walk(folder)))
    folders = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    names = tuple(sorted(set(folders) - {""}))
    indices = {name: i for i, name in enumerate(names)} | {"": UNKNOWN}
    return Inputs(folder.absolute(), paths, tuple(indices[name] for name in folders), names)


def _walk(folder: Path, prefix: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Relative POSIX paths of the images below `folder`. `above`: the folders that it lies in."""
    here = _identity(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_image(entry.name):  # a folder of that name as well: its row will say so
                yield prefix + entry.name
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry).is_dir()):
                yield from _walk(Path(entry), f"{prefix}{entry.name}/", (*above, here))


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

    found = [path for path in glob.glob(pattern, recursive=True) if _is_image(path)]  # noqa: PTH207  # takes absolute ones
    paths = tuple(sorted(path.replace(os.sep, "/") for path in found if not circular(Path(path).parent)))
    return Inputs(Path.cwd(), paths, (UNKNOWN,) * len(paths))


def _from_list(file: Path) -> Inputs:
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise ValueError(f"{file} is a file, not a list of images; {WANTED}")
    try:
        paths, given = reader(file)
        labels, names = _classes(given)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: {error}") from error
    return Inputs(file.absolute().parent, tuple(paths), labels, names)


def _read_csv(file: Path) -> tuple[list[str], list[object]]:
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        rows = csv.reader(lines)
        header = [name.strip() for name in next(rows, [])]
        _check_columns(header)
        path, label = (header.index(name) if name in header else len(header) for name in ("path", "label"))
        cells = [(_cell(row, path), _cell(row, label)) for row in rows if row]
    paths, labels = [path for path, _ in cells], [label for _, label in cells]
    if all(re.fullmatch(r"|-?(0|[1-9]\d*)", text) for text in labels):  # a CSV has no types; 007 is a name
        return paths, [int(text) if text else None for text in labels]
    return paths, list(labels)


def _cell(row: Sequence[str], column: int) -> str:
    return row[column] if column < len(row) else ""


def _read_parquet(file: Path) -> tuple[list[str], list[object]]:
    table = pq.ParquetFile(file)
    columns = table.schema_arrow.names
    _check_columns(columns)
    content = table.read([name for name in ("path", "label") if name in columns])
    paths = ["" if path is None else path for path in content["path"].to_pylist()]
    wrong = next((path for path in paths if not isinstance(path, str)), None)
    if wrong is not None:
        raise ValueError(f"the column 'path' holds {wrong!r}; want text")
    return paths, content["label"].to_pylist() if "label" in columns else [None] * len(paths)


def _check_columns(columns: Sequence[str]) -> None:
    if "path" not in columns:
        raise ValueError(f"the columns are {list(columns)}; want 'path', and 'label' if there are labels")


def _classes(given: Sequence[object]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Class indices and class names of the labels of a list."""
    labels = [_label(value) for value in given]
    numbers = [label for label in labels if isinstance(label, int)]
    names = sorted({label for label in labels if isinstance(label, str)})
    if names:
        indices = {name: i for i, name in enumerate(names)}
        return tuple(UNKNOWN if label is None else indices[str(label)] for label in labels), tuple(names)
    wrong = next((number for number in numbers if not UNKNOWN <= number < MAX_CLASSES), None)
    if wrong is not None:
        raise ValueError(
            f"label {wrong}: a whole number is a class index, from 0 to {MAX_CLASSES - 1}, or -1 for unknown; "
            f"if it is a name, write it as text, such as 'class {wrong}'"
        )
    highest = max(numbers, default=UNKNOWN)
    return tuple(UNKNOWN if not isinstance(i, int) else i for i in labels), tuple(map(str, range(highest + 1)))


def _label(value: object) -> int | str | None:
    """A class name, a class index, or None. pandas writes integers with gaps as floats."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"label {value!r} is a {type(value).__name__}; want text or whole numbers")
