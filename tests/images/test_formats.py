"""Formats of image files: every reader takes the same ones, with the same pixels and the same errors."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers import photo, tiny_vit
from tests.images.encoded import EXTRA, PREPROCESS, SAVED, encode, pixels
from vitbackbone import FusedPreprocess, ImageError, ImageFeatures, Photo, extract, load_image
from vitbackbone.images.errors import MissingDecoder


@pytest.mark.parametrize("kind", [*SAVED, *EXTRA])
def test_every_format_is_read_by_its_content(kind: str, tmp_path: Path) -> None:
    picture = photo(40, 56)
    data = encode(picture, kind)
    (tmp_path / "named.jpg").write_bytes(data)
    got = Photo(data).decode()
    lossy = {"JPEG": 40, "AVIF": 12, "GIF": 80, "HEIF": 8}.get(kind, 0)
    assert (got.int() - pixels(picture).int()).abs().float().mean() <= lossy
    assert torch.equal(pixels(load_image(tmp_path / "named.jpg")), got)
    assert torch.equal(PREPROCESS(tmp_path / "named.jpg"), PREPROCESS(data))
    assert Photo(data).frames() == 1
    small = data[: len(data) // 2]
    with pytest.raises(ImageError):
        Photo(small).decode()


REFUSED = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF\n",
    "tga": encode(photo(8, 8), "TGA"),
    "ico": encode(photo(16, 16), "ICO"),
    "pcx": encode(photo(8, 8), "PCX"),
    "pdf": encode(photo(8, 8), "PDF"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text": b"BMW is a car. P5 is a Perl.",
    "words": b"P6 or not P6",
    "empty": b"",
    "mp4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2mp41",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_formats_are_refused_by_every_reader(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in PATH tells whether a file reached Ghostscript."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    path = tmp_path / "photo.jpg"
    path.write_bytes(REFUSED[kind])
    backbone = tiny_vit()
    readers: list[Callable[[], object]] = [
        lambda: load_image(path),
        lambda: backbone.preprocess(path),
        lambda: backbone.preprocess(io.BytesIO(REFUSED[kind])),
        lambda: FusedPreprocess((PREPROCESS,), (32, 32))(path),
        lambda: ImageFeatures(backbone).transform([path]),
        lambda: Photo(REFUSED[kind]),
    ]
    for reader in readers:
        with pytest.raises(ImageError, match=r"cannot identify|not an image|want a picture|damaged|truncated|\w"):
            reader()
    assert not (tmp_path / "started").exists()


def test_a_picture_that_would_start_a_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="may start another program"):
        load_image(Image.open(io.BytesIO(REFUSED["eps"])))


def test_extract_reads_what_preprocess_reads(tmp_path: Path) -> None:
    kinds = {**{kind: encode(photo(40, 56), kind) for kind in SAVED}, **REFUSED}
    folder = tmp_path / "photos"
    folder.mkdir()
    for kind, data in kinds.items():
        (folder / f"{kind}.jpg").write_bytes(data)
    store = extract(tiny_vit(), folder, tmp_path / "store", progress=False)
    assert {path.removesuffix(".jpg") for path in store.paths} == set(SAVED)
    reasons = {row["path"]: row["reason"] for row in store.index.to_pylist()}
    assert reasons["eps.jpg"] == reasons["tga.jpg"] == "unknown format"


@pytest.mark.parametrize(("kind", "module", "extra"), [("HEIF", "pillow_heif", "heif"), ("JXL", "pillow_jxl", "jxl")])
def test_a_missing_decoder_names_its_extra(kind: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(16, 24), kind)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDecoder, match=rf"pip install 'vitbackbone\[{extra}\]'"):
        Photo(data)
