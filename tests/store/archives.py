"""Archives of images for the tests, and what GNU tar and unzip list of them."""

import io
import os
import shutil
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from vitbackbone.store.sources.locate import Unreadable, locators, read_bytes
from vitbackbone.store.sources.source import list_inputs

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


def patch(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)
