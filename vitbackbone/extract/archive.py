"""Images that lie in one file: `.tar` (as WebDataset has it), `.zip`, `.parquet`. They are read in place, and nothing
is unpacked: a member's name never becomes a path on disk, and one that leads out of the archive is refused.
"""

import json
import tarfile
import zipfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from vitbackbone.extract.local import local

Label = int | str | None
EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm"})


def is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


@dataclass(frozen=True)
class Member:
    """An image of an archive."""

    name: str  # POSIX
    offset: int  # where its bytes begin, or its row; -1 where the name is enough
    bytes: int  # how many; -1 where that is not known before it is read
    label: Label


@runtime_checkable
class Archive(Protocol):
    """How one kind of file is listed and read. Errors come out as `OSError` or `ValueError`."""

    def __init__(self, file: Path) -> None: ...

    def members(self) -> Iterator[Member]:
        """Its images, in its order."""
        ...

    def class_names(self) -> list[str]:
        """What whole-number labels mean, as far as the file says so."""
        ...

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A member. `Escape` where its name leads out of the archive."""
        ...


class Tar:
    """Members are read at their offset, so it must not be compressed. The label is that of the `.cls` file of the same
    key, else the first folder (webdataset, docs/webdataset.md: files of one key stand together)."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def members(self) -> Iterator[Member]:
        try:
            with tarfile.open(self.file, "r:") as archive:
                for _, sample in groupby(_each(archive), lambda member: _key(member.name)):
                    files = list(sample)
                    label = next((_label_file(archive, file) for file in files if file.name.endswith(".cls")), None)
                    for file in files:
                        if is_image(file.name):
                            # A link has no bytes of its own, and what it points to may lie anywhere: read says so.
                            size = file.size if file.isreg() else -1
                            where = _first_folder(file.name) if label is None else label
                            yield Member(file.name, file.offset_data if file.isreg() else -1, size, where)
        except tarfile.TarError as error:
            raise ValueError(f"{self.file} is not a plain .tar ({error}); a compressed one must be unpacked") from error

    def class_names(self) -> list[str]:
        return []

    def read(self, name: str, offset: int, size: int) -> bytes:
        check_name(name)
        if offset < 0:
            raise ValueError("is a link, or no file, in its archive")
        with self.file.open("rb") as file:
            file.seek(offset)
            return file.read(size)


class Zip:
    """The label is the first folder."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def members(self) -> Iterator[Member]:
        for info in self._open().infolist():
            if is_image(info.filename):
                yield Member(info.filename, -1, info.file_size, _first_folder(info.filename))

    def class_names(self) -> list[str]:
        return []

    def read(self, name: str, offset: int, size: int) -> bytes:
        check_name(name)
        try:
            with self._open().open(name) as file:
                return file.read(size + 1)  # never more than the archive said
        except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise ValueError(f"the archive is damaged or encrypted there: {error}") from error

    def _open(self) -> zipfile.ZipFile:
        try:
            return _zip(*_stamped(self.file))
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.file} is not a whole .zip ({error})") from error


class Parquet:
    """A column `image` of bytes, or of `{bytes, path}` as Hugging Face's datasets have it; `label` and `path` or `name`
    if they are there."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def members(self) -> Iterator[Member]:
        table = pq.ParquetFile(local(self.file))
        names = table.schema_arrow.names
        shown = next((column for column in ("path", "name") if column in names), None)
        columns = [column for column in (shown, "label") if column in names]
        row = 0
        for group in range(table.num_row_groups):
            content = table.read_row_group(group, columns)
            count = table.metadata.row_group(group).num_rows
            paths = content[shown].to_pylist() if shown else [None] * count
            labels = content["label"].to_pylist() if "label" in columns else [None] * count
            for path, label in zip(paths, labels, strict=True):
                yield Member(str(row) if path in (None, "") else str(path), row, -1, label)
                row += 1

    def class_names(self) -> list[str]:
        """Of the metadata: `classes`, a list in JSON, or the `ClassLabel` of Hugging Face's datasets."""
        metadata = pq.read_schema(local(self.file)).metadata or {}
        try:
            if b"classes" in metadata:
                return [str(name) for name in json.loads(metadata[b"classes"])]
            features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            return [str(name) for name in features.get("label", {}).get("names", [])]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{self.file}: its metadata do not say what the labels mean ({error})") from error

    def read(self, name: str, offset: int, size: int) -> bytes:
        first, cells = _parquet_rows(_stamped(self.file), offset)
        cell = cells[offset - first].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise ValueError("the cell holds no bytes")
        return data


ARCHIVES: dict[str, type[Tar] | type[Zip] | type[Parquet]] = {".tar": Tar, ".zip": Zip, ".parquet": Parquet}


def open_archive(file: Path) -> Archive:
    return ARCHIVES[file.suffix.lower()](file)


def has_images(file: Path) -> bool:
    """Whether a parquet file holds the images themselves, and not a list of paths."""
    return "image" in pq.read_schema(local(file)).names


class Escape(ValueError):
    """A member whose name leads out of its archive."""


def check_name(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":":
        raise Escape(f"the name {name!r} leads out of its archive")


def _each(archive: Any) -> Iterable[tarfile.TarInfo]:
    for member in archive:
        yield member
        archive.members = []  # or a tar of a million images keeps a million of these


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def _label_file(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Label:
    file = archive.extractfile(member) if member.isreg() and member.size < 4096 else None
    text = file.read().decode("utf-8", "replace").strip() if file else ""
    return int(text) if text.isascii() and text.isdecimal() else text or None


def _first_folder(name: str) -> str | None:
    folder = name.removeprefix("./").partition("/")
    return folder[0] if folder[1] else None


# Kept by each process that reads: opening a .zip reads its whole directory, and a row group holds many images. A file
# is another if its time is.
Stamped = tuple[Path, int]


def _stamped(file: Path) -> Stamped:
    return file, file.stat().st_mtime_ns


@lru_cache(4)
def _zip(file: Path, _: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


@lru_cache(1)
def _parquet_group(stamped: Stamped, group: int) -> pa.ChunkedArray:
    return pq.ParquetFile(local(stamped[0])).read_row_group(group, ["image"])["image"]


@lru_cache(4)
def _group_starts(stamped: Stamped) -> list[int]:
    metadata = pq.read_metadata(local(stamped[0]))
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return starts


def _parquet_rows(stamped: Stamped, row: int) -> tuple[int, pa.ChunkedArray]:
    """The row group that holds a row: its first row, and its images."""
    starts = _group_starts(stamped)
    if row >= starts[-1]:
        raise ValueError(f"the file has {starts[-1]} rows, and no row {row}")
    group = bisect_right(starts, row) - 1
    return starts[group], _parquet_group(stamped, group)
