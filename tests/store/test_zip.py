"""Zips hold what unzip lists. Damage is a row, and loses no other member."""

import os
import struct
import zipfile
import zlib
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest

from tests.store.archives import NAMES, contents, image, listed_by_unzip, patch, tar, zipped
from vitbackbone.store.sources.locate import locators, read_bytes
from vitbackbone.store.sources.source import list_inputs

METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def places(file: Path, name: str) -> tuple[int, int, int]:
    """Where a member's entry in the directory, its own header and its data begin."""
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        header = archive.getinfo(name).header_offset
        entry = archive.start_dir
        for info in archive.infolist():
            if info.filename == name:
                break
            entry += 46 + len(info.filename.encode()) + len(info.extra) + len(info.comment)
    lengths = struct.unpack_from("<2H", data, header + 26)
    return entry, header, header + 30 + sum(lengths)


@pytest.mark.parametrize("method", METHODS)
def test_a_zip_is_listed_as_unzip_lists_it(tmp_path: Path, method: str) -> None:
    members = [(name, image(i)) for i, name in enumerate(NAMES[:-1])]
    file = zipped(tmp_path / "a.zip", [("dog/", b""), *members, ("cat/1.png", image(99))], METHODS[method])
    found = contents(file)
    assert [name.removesuffix(" again") for name in found] == listed_by_unzip(file)
    assert [*found.values()] == [*(data for _, data in members), image(99)]


def test_a_zip_behind_a_program_with_a_comment_and_64_bit_fields_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("big.png", "w", force_zip64=True) as member:
            member.write(image(1))
        archive.comment = b"a comment"
    file.write_bytes(b"#!/bin/sh\nexit\n" * 10 + file.read_bytes())
    assert contents(file) == {"big.png": image(1)}


def test_names_of_a_zip_are_those_of_the_system_that_wrote_it(tmp_path: Path) -> None:
    file = zipped(tmp_path / "a.zip", [("cat_1.png", image(1)), ("caf_.png", image(2))])
    for name, system, raw in (("cat_1.png", 0, b"cat\\1.png"), ("caf_.png", 3, b"caf\xe9.png")):
        entry, _, _ = places(file, name)
        patch(file, entry + 5, bytes([system]))
        patch(file, entry + 46, raw)
    assert contents(file) == {"cat/1.png": image(1), os.fsdecode(b"caf\xe9.png"): image(2)}
    assert list_inputs(file).class_names == ("cat",)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [0, 3, 7, 20])
def test_a_damaged_member_of_a_zip_is_a_row_that_failed(tmp_path: Path, method: str, at: int) -> None:
    members = [(f"{i}.bmp", image(i, "BMP")) for i in range(4)]
    file = zipped(tmp_path / "a.zip", members, METHODS[method])
    patch(file, places(file, "2.bmp")[2] + at, b"\xff\xee\xdd")
    found = contents(file)
    assert {name: value for name, value in found.items() if name != "2.bmp"} == dict(members[:2] + members[3:])
    assert found["2.bmp"].startswith("unreadable: the archive ")


ENTRIES = {
    "encrypted": (8, b"\1\0", "is encrypted"),
    "method 99": (10, b"\x63\0", "method 99"),
    "method 9": (10, b"\x09\0", "Deflate64"),
    "version 99": (6, b"\x63\0", None),
    "size too small": (24, b"\5\0\0\0", "says 5 bytes"),
    "size too large": (24, b"\xff\xff\xff\0", "says 16777215 bytes"),
    "size absurd": (24, b"\xfe\xff\xff\xff", "4294967294 bytes"),
    "stored absurd": (20, b"\xfe\xff\xff\xff", None),
    "checksum": (16, b"\0\0\0\0", "checksum"),
    "header elsewhere": (42, b"\xff\xff\xff\x0f", "no header"),
    "name not UTF-8": (8, b"\0\x08", None),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_an_odd_entry_of_a_zip_harms_no_other(tmp_path: Path, kind: str) -> None:
    members = [(f"{i}.png", image(i)) for i in range(4)]
    file = zipped(tmp_path / "a.zip", members)
    at, data, wrong = ENTRIES[kind]
    patch(file, places(file, "2.png")[0] + at, data)
    found = contents(file)
    assert list(found) == [name for name, _ in members] == listed_by_unzip(file)
    assert [found[name] for name in ("0.png", "1.png", "3.png")] == [image(0), image(1), image(3)]
    if wrong is None:
        assert found["2.png"] == image(2)
    else:
        assert wrong in found["2.png"]


def test_a_damaged_directory_of_a_zip_is_a_row_and_loses_no_other_entry(tmp_path: Path) -> None:
    file = zipped(tmp_path / "a.zip", [(f"{i}.png", image(i)) for i in range(4)])
    patch(file, places(file, "2.png")[0], b"XXXX")
    found = contents(file)
    assert [name for name, value in found.items() if isinstance(value, bytes)] == ["0.png", "1.png", "3.png"]
    assert len(found) == 5
    (tmp_path / "b.zip").write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"b\.zip: found no image there: .*no directory at its end"):
        list_inputs(tmp_path / "b.zip")
    both = contents(tmp_path / "*.zip")
    assert both["[archive]"].startswith("unreadable: the archive has no directory at its end")


def zstd_zip(file: Path, data: bytes) -> Path:
    """As newer programs write it, method 93."""
    packed = pa.compress(data, "zstd", asbytes=True)
    fields = (zlib.crc32(data), len(packed), len(data))
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 63, 0, 93, 0, 0x21, *fields, 5, 0) + b"a.png" + packed
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 63, 63, 0, 93, 0, 0x21, *fields, 5, 0, 0, 0, 0, 0, 0) + b"a.png"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)
    file.write_bytes(local + entry + end)
    return file


def test_zstd_in_a_zip_is_read_and_its_damage_is_a_row(tmp_path: Path) -> None:
    data = image(1, "BMP")
    file = zstd_zip(tmp_path / "a.zip", data)
    assert contents(file) == {"a.png": data}
    for at in range(36, 60, 3):
        zstd_zip(file, data)
        patch(file, at, b"\xff\xff")
        assert str(contents(file)["a.png"]).startswith("unreadable: "), at


def _read_some(source: Path, start: int) -> list[bytes]:
    inputs = list_inputs(source)
    table = inputs.table[start::4]
    return [read_bytes(at) for at in locators(inputs.root, table, table["bytes"].to_pylist())]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_processes_that_were_forked_read_an_archive_without_harm(tmp_path: Path, kind: str) -> None:
    members = [(f"{i:03}.png", image(i) + bytes(i * 50)) for i in range(200)]
    file = (zipped if kind == "zip" else tar)(tmp_path / f"a.{kind}", members)
    assert _read_some(file, 0)  # so that whatever is kept open is inherited
    with get_context("fork").Pool(4) as pool:
        parts = pool.starmap(_read_some, [(file, i) for i in range(4)] * 3)
    for i, part in enumerate(parts):
        assert part == [data for _, data in members[i % 4 :: 4]]
