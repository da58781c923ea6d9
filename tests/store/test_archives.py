"""Archives: every member is a row or a named failure, and what GNU tar and unzip list is what is listed."""

import bz2
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers import tiny_vit
from vitbackbone.store import extract
from vitbackbone.store.locate import Unreadable, locators, read_bytes
from vitbackbone.store.source import list_inputs
from vitbackbone.store.tar import BLOCK

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "/".join(["a folder of a name that is long"] * 7)
NAMES = ["plain.jpg", "cat/1.png", "./dog/2.jpg", f"{LONG}/3.jpg", "ünïcode 🦆/4.jpg", os.fsdecode(b"latin\xe9/5.jpg")]


def image(seed: int, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (seed % 256, seed * 7 % 256, 90)).save(file, format)
    return file.getvalue()


def contents(source: Path | str) -> dict[str, bytes | str]:
    """Return the content of each row, or the text of its failure, by its name in its archive."""
    inputs = list_inputs(source)
    table = inputs.table
    found: dict[str, bytes | str] = {}
    for at in locators(inputs.root, table, table["bytes"].to_pylist()):
        try:
            value: bytes | str = read_bytes(at)
        except Unreadable as error:
            value = f"{error.reason}: {error}"
        found[at.member if at.member not in found else f"{at.member} again"] = value
    return found


def tar(file: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]], format: str = "gnu") -> Path:
    with tarfile.open(file, "w", format=FORMATS[format]) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    return file


def zipped(file: Path, members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in members:
            archive.writestr(name, data)
    return file


def listed_by_tar(file: Path) -> list[str]:
    if not shutil.which("tar"):
        pytest.skip("GNU tar is not installed")
    command = ["tar", "--quoting-style=literal", "--null", "-tf", file]
    done = subprocess.run(command, capture_output=True, env={"LC_ALL": "C", "PATH": os.environ["PATH"]})
    return [name for name in map(os.fsdecode, done.stdout.split(b"\n")) if name and not name.endswith("/")]


def listed_by_unzip(file: Path) -> list[str]:
    if not shutil.which("unzip"):
        pytest.skip("unzip is not installed")
    done = subprocess.run(["unzip", "-Z1", file], capture_output=True)
    return [name for name in map(os.fsdecode, done.stdout.split(b"\n")) if name and not name.endswith("/")]


# --- tar --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_tar_is_listed_as_gnu_tar_lists_it(tmp_path: Path, format: str) -> None:
    names = NAMES if format != "ustar" else [name for name in NAMES if len(name) < 200]
    folder = tarfile.TarInfo("dog")
    folder.type = tarfile.DIRTYPE
    members = [(name, image(i)) for i, name in enumerate(names)]
    file = tar(tmp_path / "a.tar", [(folder, b""), *members, members[1]], format)
    found = contents(file)
    assert [name.removesuffix(" again") for name in found] == listed_by_tar(file) == [*names, names[1]]
    assert [*found.values()] == [data for _, data in [*members, members[1]]]


def test_a_tar_made_by_gnu_tar_with_sparse_files_and_links_is_read(tmp_path: Path) -> None:
    if not shutil.which("tar"):
        pytest.skip("GNU tar is not installed")
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    data = image(1, "BMP")
    (folder / "a.bmp").write_bytes(data)
    with (folder / "holes.bmp").open("wb") as file:
        file.write(data)
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"end")
    os.link(folder / "a.bmp", folder / "hard.bmp")
    (folder / "sub" / "soft.bmp").symlink_to("../a.bmp")
    (folder / "twice.bmp").symlink_to("sub/soft.bmp")
    (folder / "gone.bmp").symlink_to("nowhere.bmp")
    (folder / "out.bmp").symlink_to("../../etc/passwd")
    (folder / "round.bmp").symlink_to("round.bmp")
    os.mkfifo(folder / "pipe.bmp")
    whole = (folder / "holes.bmp").read_bytes()
    kinds = {
        "gnu": ["--format=gnu"],
        "pax 0.0": ["--format=posix", "--sparse-version=0.0"],
        "pax 0.1": ["--format=posix", "--sparse-version=0.1"],
        "pax 1.0": ["--format=posix", "--sparse-version=1.0"],
    }
    for kind, options in kinds.items():
        file = tmp_path / f"{kind}.tar"
        subprocess.run(["tar", "--sparse", *options, "-cf", file, "-C", folder, "."], check=True)
        assert file.stat().st_size < 2**19  # so the holes are not in it
        found = contents(file)
        assert list(found) == listed_by_tar(file), kind
        assert found["./holes.bmp"] == whole, kind
        for name in ("a.bmp", "hard.bmp", "sub/soft.bmp", "twice.bmp"):
            assert found[f"./{name}"] == data, (kind, name)
        assert found["./gone.bmp"] == "unreadable: links to 'nowhere.bmp', which is not in its archive"
        assert found["./out.bmp"].startswith("outside: ")
        assert (
            found["./round.bmp"]
            == "unreadable: links to 'round.bmp', which leads in a circle or through more than 16 links"
        )
        assert found["./pipe.bmp"] == "not a file: is not a regular file in its archive"


def flip(data: bytearray, at: int) -> None:
    data[at] ^= 1


def huge_pax(data: bytearray, at: int) -> None:
    rewrite(data, at, tarfile.TarInfo("x"), b"x", 2**33)


def negative(data: bytearray, at: int) -> None:
    rewrite(data, at, tarfile.TarInfo("2.png"), b"0", -5)


def rewrite(data: bytearray, at: int, info: tarfile.TarInfo, kind: bytes, size: int) -> None:
    """A header with a valid checksum and any size."""
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:BLOCK])
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at : at + BLOCK] = header


HEADERS: dict[str, Callable[[bytearray, int], None]] = {
    "a bit of the mode": lambda data, at: flip(data, at + 100),
    "a bit of the name": lambda data, at: flip(data, at),
    "a bit of the checksum": lambda data, at: flip(data, at + 150),
    "zeros": lambda data, at: data.__setitem__(slice(at, at + BLOCK), bytes(BLOCK)),
    "noise": lambda data, at: data.__setitem__(slice(at, at + BLOCK), b"\xfe" * BLOCK),
    "a huge PAX header": huge_pax,
    "a negative size": negative,
}


@pytest.mark.parametrize("damage", HEADERS)
@pytest.mark.parametrize("which", [0, 2, 5])
def test_a_damaged_header_loses_no_other_member_and_is_a_row(tmp_path: Path, damage: str, which: int) -> None:
    members = [(f"{i}.png", image(i)) for i in range(6)]
    file = tar(tmp_path / "a.tar", members)
    with tarfile.open(file) as archive:
        at = archive.getmembers()[which].offset
    data = bytearray(file.read_bytes())
    HEADERS[damage](data, at)
    file.write_bytes(data)
    found = contents(file)
    kept = {name: data for name, data in members if name != f"{which}.png"}
    place = f"[damage at byte {at}]"
    assert {name: value for name, value in found.items() if name != place} == kept
    assert found[place].startswith("unreadable: ")
    assert any("damaged archives: a.tar" in note for note in list_inputs(file).notes)
    if damage not in ("zeros", "a huge PAX header"):  # where GNU tar ends
        assert [name for name in listed_by_tar(file) if name in kept] == list(kept)


@pytest.mark.parametrize("cut", [100, 512, 700, 1536, 1600, 2048, 2500])
def test_a_cut_tar_keeps_what_is_whole_and_refuses_no_other_archive(tmp_path: Path, cut: int) -> None:
    tar(tmp_path / "b.tar", [("cat/9.png", image(9))])
    file = tar(tmp_path / "a.tar", [(f"{i}.png", image(i) + bytes(900)) for i in range(2)])
    file.write_bytes(file.read_bytes()[:cut])
    found = contents(tmp_path / "*.tar")
    assert found["cat/9.png"] == image(9)
    whole = [name for name, value in found.items() if isinstance(value, bytes)]
    assert whole == (["0.png", "cat/9.png"] if cut >= 1536 else ["cat/9.png"])
    assert any("cut" in note or "damaged" in note for note in list_inputs(tmp_path / "*.tar").notes)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["a.tar.{}", "a.tar"])
def test_a_compressed_tar_is_refused_with_a_word(tmp_path: Path, kind: str, name: str) -> None:
    file = tmp_path / name.format(kind)
    with tarfile.open(file, f"w:{kind}") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(ValueError, match=r"compressed.*unpack"):
        list_inputs(file)
    with pytest.raises(ValueError, match=r"compressed.*unpack"):
        list_inputs(tmp_path / name.format("*").replace("a.tar", "a.t*r"))


def test_what_follows_the_end_mark_of_a_tar_is_said(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", [("a.png", image(0))])
    second = tar(tmp_path / "b.tar", [("b.png", image(1))])
    file.write_bytes(file.read_bytes() + second.read_bytes())
    inputs = list_inputs(file)
    assert inputs.paths == ("a.tar/a.png",)
    assert any("behind their end mark" in note and "a.tar" in note for note in inputs.notes)


# --- zip --------------------------------------------------------------------------------------------------------------

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


def patch(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


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


# --- what all have in common ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["cat/1.png", "dog/1.png", "loose.png"], ("cat", "dog"), (0, 1, -1)),
        (["./cat/1.png", "./dog/1.png"], ("cat", "dog"), (0, 1)),
        (["photos/cat/1.png", "photos/dog/1.png", "photos/loose.png"], ("cat", "dog"), (0, 1, -1)),
        (["home/me/photos/cat/1.png", "home/me/photos/dog/2.png"], ("cat", "dog"), (0, 1)),
        (["photos/cat/1.png", "photos/cat/2.png"], ("cat",), (0, 0)),
        (["cat/1.png", "cat/2.png"], ("cat",), (0, 0)),
        (["1.png", "2.png"], (), (-1, -1)),
        (["photos/cat/1.png", "../2.png", "photos/dog/3.png"], ("cat", "dog"), (0, -1, 1)),
    ],
)
def test_folders_of_an_archive_are_classes(
    tmp_path: Path, make: Callable[..., Path], names: list[str], classes: tuple[str, ...], labels: tuple[int, ...]
) -> None:
    file = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", [(name, image(i)) for i, name in enumerate(names)])
    inputs = list_inputs(file)
    assert sorted(inputs.class_names) == sorted(classes)
    named = [inputs.class_names[label] if label >= 0 else None for label in inputs.labels]
    assert sorted(map(str, named)) == sorted(str(classes[label] if label >= 0 else None) for label in labels)


@pytest.mark.parametrize("make", [tar, zipped])
def test_hidden_members_and_resource_forks_are_neither_rows_nor_classes(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    hidden = ["__MACOSX/cat/._1.png", "__MACOSX/2.png", ".thumbs/1.png", "cat/.2.png", "cat/.git/3.png", "._cat"]
    file = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", [(n, image(1)) for n in ["cat/1.png", *hidden]])
    inputs = list_inputs(file)
    assert [path.split("/", 1)[1] for path in inputs.paths] == ["cat/1.png"]
    assert inputs.class_names == ("cat",)


@pytest.mark.parametrize("make", [tar, zipped])
def test_members_are_images_by_their_content_too_and_others_are_counted(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    members = [("photo", image(1)), ("a.dat", image(2)), ("b.jfif", image(3)), ("notes.txt", b"?"), ("x", b"text")]
    file = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", members)
    assert list(contents(file)) == ["photo", "a.dat", "b.jfif"]
    assert any(note.startswith("2 files ignored") and "1 .txt" in note for note in list_inputs(file).notes)


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize("name", ["../up.png", "/abs.png", "a/../../b.png", "C:\\x.png", "..\\up.png"])
def test_a_name_that_leads_out_is_a_row_and_no_path(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    file = make(tmp_path / f"a.{'tar' if make is tar else 'zip'}", [(name, image(1)), ("in.png", image(2))])
    found = contents(file)
    assert len(found) == 2
    assert found["in.png"] == image(2)
    assert str(next(iter(found.values()))).startswith("outside: ") or name[:3] in ("..\\", "C:\\")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("texts", "classes", "labels"),
    [
        (["3", "10"], tuple(map(str, range(11))), (3, 10)),
        (["3", "cat"], ("3", "cat"), (0, 1)),
        ([" dog \n", "cat"], ("cat", "dog"), (1, 0)),
        (["", "1"], ("0", "1"), (-1, 1)),
    ],
)
def test_cls_files_of_a_tar_are_numbers_or_names(
    tmp_path: Path, texts: list[str], classes: tuple[str, ...], labels: tuple[int, ...]
) -> None:
    members = [
        member
        for i, text in enumerate(texts)
        for member in ((f"{i}.jpg", image(i, "JPEG")), (f"{i}.cls", text.encode()), (f"{i}.json", b"{}"))
    ]
    inputs = list_inputs(tar(tmp_path / "a.tar", members))
    assert inputs.class_names == classes
    assert inputs.labels == labels


# --- parquet ----------------------------------------------------------------------------------------------------------


def table(file: Path, names: list[str] | None = None, column: str = "image", **columns: object) -> Path:
    made = pa.table({column: [image(1), image(2)], **columns})
    features: dict[str, object] = {column: {"_type": "Image"}}
    if names is not None:
        features["label"] = {"names": names, "_type": "ClassLabel"}
        about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        made = made.replace_schema_metadata(about)
    pq.write_table(made, file)
    return file


def named(source: Path) -> list[str | None]:
    inputs = list_inputs(source)
    return [inputs.class_names[label] if label >= 0 else None for label in inputs.labels]


def test_class_names_of_several_shards_may_stand_in_any_order(tmp_path: Path) -> None:
    table(tmp_path / "0.parquet", ["cat", "dog"], label=[0, 1])
    table(tmp_path / "1.parquet", ["dog", "owl", "cat"], label=[0, 1])
    table(tmp_path / "2.parquet", ["owl"], label=[0, -1])
    assert named(tmp_path / "*.parquet") == ["cat", "dog", "dog", "owl", "owl", None]
    assert list_inputs(tmp_path / "0.parquet").class_names == ("cat", "dog")
    assert list_inputs(table(tmp_path / "b.parquet", ["z", "a"], label=[1, 1])).class_names == ("z", "a")
    table(tmp_path / "3.parquet", label=[0, 1])
    with pytest.raises(ValueError, match=r"3\.parquet has numbers as labels and no class names"):
        list_inputs(tmp_path / "*.parquet")


def test_a_name_of_several_classes_is_refused(tmp_path: Path) -> None:
    file = table(tmp_path / "a.parquet", ["cat", "dog", "cat"], label=[0, 2])
    with pytest.raises(ValueError, match=r"a\.parquet: .* invalid \(2 classes are named 'cat'\)"):
        list_inputs(file)


@pytest.mark.parametrize("label", [2, 100, -2])
def test_an_index_beyond_the_names_is_refused_with_its_file_and_row(tmp_path: Path, label: int) -> None:
    file = table(tmp_path / "a.parquet", ["cat", "dog"], label=[0, label])
    with pytest.raises(
        ValueError, match=rf"a\.parquet, row 1: label {label}; the file names 2 classes, so want 0 to 1"
    ):
        list_inputs(file)


@pytest.mark.parametrize("column", ["image", "img", "picture", "anything"])
@pytest.mark.parametrize("shape", ["bytes", "struct", "large"])
def test_the_column_of_images_is_found_by_its_type(tmp_path: Path, column: str, shape: str) -> None:
    cells = [image(1), image(2)]
    struct = pa.array([{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(cells)])
    kinds = {"bytes": pa.array(cells), "large": pa.array(cells, pa.large_binary()), "struct": struct}
    pq.write_table(pa.table({"id": [1, 2], column: kinds[shape]}), tmp_path / "a.parquet")
    assert [*contents(tmp_path / "a.parquet").values()] == cells


def test_the_only_class_label_is_the_label_whatever_it_is_called(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "fine": {"names": ["a", "b"], "_type": "ClassLabel"}}
    for more, wanted in (({}, ["b", "a"]), ({"coarse": {"names": ["c"], "_type": "ClassLabel"}}, [None, None])):
        about = {b"huggingface": json.dumps({"info": {"features": features | more}}).encode()}
        made = pa.table({"img": [image(1), image(2)], "fine": [1, 0], "coarse": [0, 0]})
        pq.write_table(made.replace_schema_metadata(about), tmp_path / "a.parquet")
        assert named(tmp_path / "a.parquet") == wanted
    assert any("several label columns" in note for note in list_inputs(tmp_path / "a.parquet").notes)


def test_a_struct_without_bytes_is_a_row_that_names_its_row_and_path(tmp_path: Path) -> None:
    cells = [{"bytes": image(1), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    found = contents(tmp_path / "a.parquet")
    assert found["0"] == image(1)
    assert "row 1 holds no image bytes, only the path 'b.png'" in found["1"]
    assert "row 2 holds no image bytes" in found["2"]


@pytest.mark.parametrize("column", ["label", "path", "image"])
def test_a_damaged_page_of_a_parquet_file_fails_its_rows_and_no_others(tmp_path: Path, column: str) -> None:
    file = tmp_path / "a.parquet"
    made = pa.table(
        {
            "path": [f"photo {i}" for i in range(6)],
            "image": [image(i) for i in range(6)],
            "label": ["cat", "dog"] * 3,
        }
    )
    pq.write_table(made, file, row_group_size=2, write_page_checksum=True, use_dictionary=False)
    group = pq.read_metadata(file).row_group(1)
    chunk = next(c for c in map(group.column, range(3)) if c.path_in_schema == column)
    patch(file, chunk.data_page_offset + chunk.total_compressed_size - 4, b"\xff\xff\xff\xff")
    found = contents(file)
    whole = [value for value in found.values() if isinstance(value, bytes)]
    if column == "image":
        assert whole == [image(i) for i in (0, 1, 4, 5)]
    else:
        assert whole == [image(i) for i in range(6)]
        assert "[damage in row group 1]" in found
        assert any(f"the column '{column}' is damaged in rows 2 to 3" in note for note in list_inputs(file).notes)


def test_a_run_over_damaged_archives_has_a_row_for_each_and_ends(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("cat/1.png", image(1)), ("dog/2.png", image(2))])
    (tmp_path / "b.tar").write_bytes(b"not an archive" * 100)
    (tmp_path / "c.tar").write_bytes(lzma.compress(b"x" * 2000))
    (tmp_path / "d.tar").write_bytes(bz2.compress(b"x" * 2000))
    store = extract(tiny_vit(), tmp_path / "*.tar", tmp_path / "out", progress=False)
    assert len(store) == 2
    assert [path.split("/")[-2] for path, _ in store.failed] == ["b.tar", "c.tar", "d.tar"]
    assert ["compressed" in error for _, error in store.failed] == [False, True, True]
