"""Sources whose headers and cells claim impossible values: a row or an error in a sentence, never another exception."""

import codecs
import io
import logging
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import photo, tiny_vit
from vitbackbone.store import extract, list_inputs, read_photos


def image(seed: int = 0) -> bytes:
    opened = io.BytesIO()
    photo(20, 24, seed).save(opened, "PNG")
    return opened.getvalue()


# --- archives ---------------------------------------------------------------------------------------------------------


def tar_with(field: slice, value: int, kind: bytes = b"0") -> Callable[[Path], Path]:
    """Write a tar whose first header claims a number of any size, as GNU tar writes it, under a valid checksum."""

    def write(folder: Path) -> Path:
        file = folder / "a.tar"
        with tarfile.open(file, "w") as archive:
            for i in range(2):
                info = tarfile.TarInfo(f"{i}.png")
                info.size = len(image(i))
                archive.addfile(info, io.BytesIO(image(i)))
        data = bytearray(file.read_bytes())
        data[field] = b"\x80" + value.to_bytes(field.stop - field.start - 1, "big")
        data[156:157] = kind
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        file.write_bytes(data)
        return file

    return write


def zip_with(size: int, stored: int, header: int) -> Callable[[Path], Path]:
    """Write a zip whose first entry claims 64-bit numbers."""

    def write(folder: Path) -> Path:
        file = folder / "a.zip"
        with zipfile.ZipFile(file, "w") as archive:
            for i in range(2):
                archive.writestr(f"{i}.png", image(i))
        data = file.read_bytes()
        at, end = data.find(b"PK\1\2"), data.find(b"PK\5\6")
        entry = bytearray(data[at : at + 46 + len("0.png")])
        struct.pack_into("<2L", entry, 20, 2**32 - 1, 2**32 - 1)
        struct.pack_into("<H", entry, 30, 28)
        struct.pack_into("<L", entry, 42, 2**32 - 1)
        directory = bytes(entry) + struct.pack("<2H3Q", 1, 24, size, stored, header) + data[at + len(entry) : end]
        tail = bytearray(data[end:])
        struct.pack_into("<L", tail, 12, len(directory))
        file.write_bytes(data[:at] + directory + tail)
        return file

    return write


SIZE, SPARSE_SIZE = slice(124, 136), slice(483, 495)
ARCHIVES = {
    "tar, a size of 2**63": tar_with(SIZE, 2**63),
    "tar, a size of 2**80": tar_with(SIZE, 2**80),
    "tar, a sparse file of 2**80": tar_with(SPARSE_SIZE, 2**80, b"S"),
    "zip, a size of 2**64 - 1": zip_with(2**64 - 1, 9, 0),
    "zip, a size and a place of 2**63": zip_with(2**63, 2**63, 2**63),
    "zip, a header at 2**64 - 1": zip_with(len(image()), len(image()), 2**64 - 1),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_claims_numbers_beyond_64_bits_fails_that_member_alone(tmp_path: Path, kind: str) -> None:
    file = ARCHIVES[kind](tmp_path)
    store = extract(tiny_vit(), file, tmp_path / "out", progress=False)
    names = [path for path, _ in store.failed]
    assert f"{file.name}/0.png" in names
    if "a size of" not in kind or file.suffix == ".zip":  # after a tar's member of that size there is nothing
        assert store.paths == [f"{file.name}/1.png"]


# --- tables -----------------------------------------------------------------------------------------------------------

FAR = pa.array([2**31 - 1] * 2, pa.int32()).cast(pa.date32())  # a day that Python has no date for
IMAGES = pa.array([image(0), image(1)])
REFUSED = {
    "two columns of images": ([IMAGES, IMAGES], ["image", "image"], "2 columns are named 'image'"),
    "two columns of labels": ([IMAGES, [0, 1], [0, 1]], ["image", "label", "label"], "2 columns are named 'label'"),
    "two columns of names": ([IMAGES, ["a", "b"], ["a", "b"]], ["image", "path", "path"], "2 columns are named 'path'"),
    "a list with dates as labels": ([["a.png", "b.png"], FAR], ["path", "label"], "damaged after row 0"),
    "a list with dates as paths": ([FAR], ["path"], "damaged after row 0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_table_that_cannot_be_understood_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    columns, names, message = REFUSED[kind]
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"a\.parquet: (?s:.)*{message}"):
        list_inputs(tmp_path / "a.parquet")


@pytest.mark.parametrize("column", ["label", "name"])
def test_dates_that_python_lacks_are_a_damaged_column_of_an_archive(tmp_path: Path, column: str) -> None:
    pq.write_table(pa.table({"image": IMAGES, column: FAR}), tmp_path / "a.parquet")
    inputs = list_inputs(tmp_path / "a.parquet")
    assert inputs.paths == ("a.parquet/0", "a.parquet/1", "a.parquet/[damage in row group 0]")
    assert any(f"the column '{column}' is damaged in rows 0 to 1" in note for note in inputs.notes)


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be"])
def test_a_list_in_utf_32_is_read(tmp_path: Path, encoding: str) -> None:
    mark = {"utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    (tmp_path / "a.csv").write_bytes(mark + "path,label\nü.png,cat\n".encode(encoding))
    assert list_inputs(tmp_path / "a.csv").paths == ("ü.png",)


# --- names of sources -------------------------------------------------------------------------------------------------


def test_an_empty_source_is_refused_and_is_not_the_current_folder() -> None:
    with pytest.raises(ValueError, match="the source is empty; want a folder of images"):
        list_inputs("")


def test_photos_of_a_folder_say_which_files_were_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(image())
    (tmp_path / "notes.txt").write_text("hello")
    with caplog.at_level(logging.WARNING, "vitbackbone"):
        assert [photo.reason for photo in read_photos([str(tmp_path)], tiny_vit().preprocess)] == [None]
    assert any("1 file ignored" in record.getMessage() for record in caplog.records)


def test_a_text_that_is_no_address_is_a_failed_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image())
    urls = ["http://[bad/x.png", "http://", "https://[::1/a.zip?b#c"]
    (tmp_path / "list.csv").write_text("\n".join(["path", "a.png", *urls]))
    store = extract(tiny_vit(), tmp_path / "list.csv", tmp_path / "out", progress=False)
    assert store.paths == ["a.png"]
    assert [path for path, _ in store.failed] == urls
    assert all("address" in error or "URL" in error for _, error in store.failed)
