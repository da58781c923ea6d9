"""Tars hold what GNU tar lists. Damage is a row, and loses no other member."""

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.archives import FORMATS, NAMES, contents, image, listed_by_tar, tar
from vitbackbone.store.sources.source import list_inputs
from vitbackbone.store.sources.tar import BLOCK


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
