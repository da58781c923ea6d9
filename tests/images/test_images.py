"""One gate for images: every reader takes the same formats and sources, with the same pixels and the same errors."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from tests.helpers import photo, tiny_vit
from tests.images.grids import grid
from vitbackbone import FusedPreprocess, ImageError, ImageFeatures, Photo, Preprocess, extract, load_image
from vitbackbone.images.errors import DamagedImage, MissingDecoder, TooManyPixels, UnknownFormat
from vitbackbone.images.sources import open_image

Image.init()
SAVED = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
    "PPM": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG2000": {},
}
EXTRA = {"HEIF": ("pillow_heif", {"quality": -1, "chroma": 444}), "JXL": ("pillow_jxl", {"lossless": True})}
PREPROCESS = Preprocess((32, 32), 0.9)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    if kind in EXTRA:
        module = pytest.importorskip(EXTRA[kind][0])
        if kind == "HEIF":
            module.register_heif_opener()
        options = {**EXTRA[kind][1], **options}
    file = io.BytesIO()
    image.save(file, kind, **{**SAVED.get(kind, {}), **options})
    return file.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# ---- formats ------------------------------------------------------------------------------------------------------


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


# ---- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SAVED, *EXTRA])
def test_the_limit_of_pixels_is_an_option_everywhere(kind: str, tmp_path: Path) -> None:
    data = encode(photo(40, 56), kind)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    fused = FusedPreprocess((PREPROCESS,), (32, 32))
    readers: list[Callable[[int | None], object]] = [
        lambda limit: Photo(data, max_pixels=limit),
        lambda limit: load_image(path, max_pixels=limit),
        lambda limit: load_image(Image.open(path), max_pixels=limit),
        lambda limit: PREPROCESS(path, max_pixels=limit),
        lambda limit: PREPROCESS.batch([data], max_pixels=limit),
        lambda limit: fused(path, max_pixels=limit),
        lambda limit: ImageFeatures(tiny_vit(), max_pixels=limit).transform([path]),
    ]
    for reader in readers:
        with pytest.raises(ImageError, match="56 x 40 pixels are more than the limit of 2239"):
            reader(2239)
        reader(2240)
        reader(None)


@pytest.mark.parametrize("kind", [*SAVED, *EXTRA])
def test_a_photo_above_the_limit_is_never_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(40, 56), kind)

    def fail(self: Image.Image) -> None:
        raise AssertionError("the pixels were decoded")

    for module in list(sys.modules.values()):  # every format's own `load`
        for value in vars(module).values() if module.__name__.startswith(("PIL.", "pillow_")) else ():
            if isinstance(value, type) and issubclass(value, ImageFile.ImageFile) and "load" in vars(value):
                monkeypatch.setattr(value, "load", fail)
    with pytest.raises(TooManyPixels, match="56 x 40 pixels"):
        Photo(data, max_pixels=2239)


def test_a_limit_above_pillows_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "WEBP", "GIF", "TIFF", "JPEG"):
        data = encode(photo(40, 56), kind)
        with pytest.raises(TooManyPixels):
            Photo(data)
        assert Photo(data, max_pixels=2240).decode().shape == (3, 40, 56)
        assert PREPROCESS(data, keep_aspect=True, max_pixels=2240).shape == (3, 32, 44)
        (tmp_path / f"{kind}.jpg").write_bytes(data)
    store = extract(tiny_vit(), tmp_path, tmp_path / "store", max_pixels=2240, progress=False)
    assert len(store) == 5
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"max_pixels must be at least 1, got {limit}"):
        PREPROCESS(encode(photo(8, 8), "PNG"), max_pixels=limit)


WRONG_SIZES = """
from PIL import Image
from vitbackbone import Preprocess

for name, values in {"resolution": ["a", 2.5, True, (32,), (1, 2, 3)], "max_pixels": ["a", 2.5, True]}.items():
    for value in values:
        for image in (Image.new("RGB", (8, 8)), "missing.png"):
            try:
                Preprocess()(image, **{name: value})
            except (FileNotFoundError, ValueError) as error:
                assert isinstance(error, FileNotFoundError) or f"{name}" in str(error), error
            else:
                raise AssertionError((name, value))
"""


def test_a_size_that_is_none_is_refused_in_words() -> None:
    subprocess.run([sys.executable, "-c", WRONG_SIZES], check=True)  # the types are not checked there


def test_the_limit_holds_for_arrays_too() -> None:
    for image in (np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8), photo(8, 8)):
        with pytest.raises(TooManyPixels, match="8 x 8 pixels are more than the limit of 63"):
            PREPROCESS(image, max_pixels=63)


# ---- metadata -----------------------------------------------------------------------------------------------------


def png_with(name: bytes, body: bytes, before: bytes = b"IDAT", crc: int | None = None) -> bytes:
    data = encode(photo(20, 30), "PNG")
    at = data.index(before) - 4
    check = zlib.crc32(name + body) if crc is None else crc
    return data[:at] + struct.pack(">I", len(body)) + name + body + struct.pack(">I", check) + data[at:]


def jpeg_with(marker: int, body: bytes) -> bytes:
    data = encode(photo(20, 30), "JPEG", quality=95)
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def webp_with(name: bytes, body: bytes) -> bytes:
    whole = encode(photo(20, 30), "WEBP", exif=b"Exif\0\0" + EXIF_6, xmp=b"x" * 8, icc_profile=b"y" * 8)
    at = whole.index(name + struct.pack("<I", 0)[:0])
    (length,) = struct.unpack_from("<I", whole, at + 4)
    padded = body + b"\0" * (len(body) % 2)
    rest = whole[:at] + name + struct.pack("<I", len(body)) + padded + whole[at + 8 + length + length % 2 :]
    return rest[:4] + struct.pack("<I", len(rest) - 8) + rest[8:]


def exif(*entries: bytes, order: str = "<", tail: bytes = b"") -> bytes:
    head = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return head + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4) + tail


def entry(tag: int, kind: int, count: int, value: int, order: str = "<") -> bytes:
    if kind == 3:
        return struct.pack(order + "HHIHH", tag, kind, count, value, 0)
    return struct.pack(order + "HHII", tag, kind, count, value)


TURNED = entry(0x112, 3, 1, 6)
EXIF_6 = exif(TURNED)
GARBAGE = {
    "nothing": b"",
    "text": b"garbage, no TIFF header",
    "a header alone": b"II*\0",
    "a directory nowhere": b"II*\0\xff\xff\xff\x7f",
    "entries cut": b"II*\0\x08\0\0\0\x09\0\x12\x01",
    "signed rational": exif(entry(0x11A, 10, 1, 26), tail=struct.pack("<ii", -72, 1)),
    "a zero denominator": exif(entry(0x11A, 5, 1, 26), tail=struct.pack("<II", 72, 0)),
    "an unknown type": exif(entry(0x11A, 77, 9, 9)),
    "a huge count": exif(entry(0x11A, 5, 2**31, 26)),
    "a loop": exif(entry(0x8769, 4, 1, 8)),
    "orientation as text": exif(entry(0x112, 2, 4, 0x36363636)),
    "orientation 0": exif(entry(0x112, 3, 1, 0)),
    "orientation 9": exif(entry(0x112, 3, 1, 9)),
    "random": np.random.default_rng(0).integers(0, 256, 300, np.uint8).tobytes(),
}
TURNABLE = {
    "alone": exif(TURNED),
    "big-endian": exif(entry(0x112, 3, 1, 6, ">"), order=">"),
    "as LONG": exif(entry(0x112, 4, 1, 6)),
    "with a signed rational": exif(TURNED, entry(0x11A, 10, 1, 38), tail=struct.pack("<ii", -72, 1)),
    "with a zero denominator": exif(TURNED, entry(0x11A, 5, 1, 38), tail=struct.pack("<II", 72, 0)),
    "with an unknown type": exif(TURNED, entry(0x11A, 77, 9, 9)),
    "with a directory nowhere": exif(TURNED, entry(0x8769, 4, 1, 2**31)),
    "behind a huge count": exif(entry(0x10F, 2, 2**31, 9), TURNED),
}


def with_exif(kind: str, block: bytes) -> bytes:
    if kind == "PNG":
        return png_with(b"eXIf", block)
    return jpeg_with(0xE1, b"Exif\0\0" + block) if kind == "JPEG" else webp_with(b"EXIF", block)


def check_everywhere(data: bytes, expected: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert Photo(data).size == tuple(expected.shape[1:])
    assert torch.equal(Photo(data).decode(), expected)
    assert torch.equal(pixels(load_image(path)), expected)


@pytest.mark.parametrize("block", GARBAGE)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_garbage_exif_costs_no_pixels(kind: str, block: str, tmp_path: Path) -> None:
    plain = Photo(encode(photo(20, 30), kind, **({"quality": 95} if kind == "JPEG" else {}))).decode()
    check_everywhere(with_exif(kind, GARBAGE[block]), plain, tmp_path)


@pytest.mark.parametrize("block", TURNABLE)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_beside_garbage_is_applied(kind: str, block: str, tmp_path: Path) -> None:
    plain = Photo(encode(photo(20, 30), kind, **({"quality": 95} if kind == "JPEG" else {}))).decode()
    check_everywhere(with_exif(kind, TURNABLE[block]), plain.transpose(1, 2).flip(2), tmp_path)


CHUNKS = (b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"tIME", b"sBIT")
CHUNKS += (b"tRNS",)


BODIES = [b"", b"\0", b"x" * 5, b"\xff" * 40, b"key\0\0not deflate", b"key\0\1" + b"\xff" * 9]


@pytest.mark.parametrize(
    ("name", "body", "crc", "before"), grid(CHUNKS, BODIES, [None, 7], [b"IDAT", b"IEND"], rounds=4)
)
def test_chunks_of_png_cost_no_pixels(name: bytes, body: bytes, crc: int | None, before: bytes) -> None:
    assert torch.equal(Photo(png_with(name, body, before, crc)).decode(), pixels(photo(20, 30)))


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
@pytest.mark.parametrize(
    "body",
    [b"", b"JFIF\0", b"Adobe", b"MPF\0", b"MPF\0II*\0\x08\0\0\0\xff\xff", b"ICC_PROFILE\0", b"Photoshop 3.0\x008BIM\4"],
)
def test_segments_of_jpeg_cost_no_pixels(marker: int, body: bytes) -> None:
    plain = Photo(encode(photo(20, 30), "JPEG", quality=95)).decode()
    assert torch.equal(Photo(jpeg_with(marker, body)).decode(), plain)


@pytest.mark.parametrize("name", [b"EXIF", b"XMP ", b"ICCP"], ids=bytes.decode)
@pytest.mark.parametrize("body", [b"", b"\0", b"\xff" * 41])
def test_chunks_of_webp_cost_no_pixels(name: bytes, body: bytes) -> None:
    got = Photo(webp_with(name, body)).decode()
    turned = pixels(photo(20, 30)).transpose(1, 2).flip(2)
    assert torch.equal(got, pixels(photo(20, 30)) if name == b"EXIF" else turned)


def test_an_animation_of_impossible_length_is_its_first_frame() -> None:
    for count in (2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 0):
        read = Photo(png_with(b"acTL", struct.pack(">II", count, 0)))
        assert torch.equal(read.decode(), pixels(photo(20, 30)))
        if 0 < count <= 2**31:
            with pytest.raises(DamagedImage, match="frames, more than its bytes can hold"):
                read.frames()
        else:  # Pillow ignores these counts, which the format does not allow
            assert read.frames() == 1


# ---- what people hold ---------------------------------------------------------------------------------------------

ARRAY = np.array(photo(40, 56))
GREY = ARRAY[..., 0]
HELD: dict[str, Callable[[Path], object]] = {
    "path": lambda path: path,
    "text": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "file at its end": lambda path: moved(path.open("rb")),
    "PIL": lambda path: photo(40, 56),
    "PIL, opened": Image.open,
    "array": lambda path: ARRAY,
    "array, reversed twice": lambda path: ARRAY[:, ::-1][:, ::-1],
    "array, read only": lambda path: np.frombuffer(ARRAY.tobytes(), np.uint8).reshape(ARRAY.shape),
    "tensor": lambda path: torch.from_numpy(ARRAY).permute(2, 0, 1),
    "contiguous tensor": lambda path: torch.from_numpy(ARRAY).permute(2, 0, 1).contiguous(),
}


def moved(file: io.BufferedReader) -> io.BufferedReader:
    file.seek(0, os.SEEK_END)
    return file


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("options", [{}, {"resolution": 40, "keep_aspect": True}], ids=str)
def test_every_source_gives_the_same(held: str, options: dict, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    photo(40, 56).save(path)
    fused = FusedPreprocess((PREPROCESS, PREPROCESS), (32, 32))
    for preprocess in (PREPROCESS, fused):
        assert torch.equal(preprocess(HELD[held](path), **options), preprocess(path, **options))
    features = ImageFeatures(tiny_vit())
    np.testing.assert_array_equal(features.transform([HELD[held](path)]), features.transform([path]))


def test_grey_arrays_and_tensors() -> None:
    expected = PREPROCESS(Image.fromarray(GREY))
    held = (GREY, GREY[..., None], torch.from_numpy(GREY.copy()), torch.from_numpy(GREY.copy())[None])
    for image in held:
        assert torch.equal(PREPROCESS(image), expected)


def test_the_callers_array_is_not_written_to() -> None:
    before = ARRAY.copy()
    open_image(ARRAY).decode().zero_()
    assert (before == ARRAY).all()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((8, 8, 3)), "float64; want uint8.*Convert floats of 0 to 255"),
        (np.zeros((8, 8, 3), np.uint16), "uint16; want uint8"),
        (np.zeros((8, 8), bool), "bool; want uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\); want \(H, W, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((0, 8), np.uint8), r"\(0, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\(2, 8, 8, 3\)"),
        (torch.rand(3, 8, 8) * 255, "float32; want uint8.*backbone itself takes a tensor that is normalised"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"\(8, 8, 3\); want \(3, H, W\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\(2, 3, 8, 8\)"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), r"\(3, 0, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(), "sparse_coo; want one that holds its pixels densely"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"), "meta; want one that holds its pixels"),
        (io.StringIO("text"), "gives str; open it in binary mode"),
        (b"no image", "cannot identify"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels; want at least one"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_things_are_refused_with_a_word(image: object, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        PREPROCESS(image)
    with pytest.raises(ImageError, match=rf"image 1 cannot be read: .*{reason}"):
        PREPROCESS.batch([photo(8, 8), image])
    with pytest.raises(ImageError, match=rf"image 1 cannot be read: .*{reason}"):
        ImageFeatures(tiny_vit()).transform([photo(8, 8), image])


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "none", FileNotFoundError)):
        with pytest.raises(error):
            PREPROCESS(path)
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            PREPROCESS(path)


def test_a_batch_is_the_single_images_stacked(tmp_path: Path) -> None:
    images = [photo(40, 56), ARRAY[:20], encode(photo(30, 30), "PNG")]
    for preprocess in (PREPROCESS, FusedPreprocess((PREPROCESS, PREPROCESS), (32, 32))):
        batch = preprocess.batch(images)
        assert torch.equal(batch, torch.stack([preprocess(image) for image in images]))
        assert preprocess.batch(images, resolution=24).shape[2:] == (24, 24)
    with pytest.raises(ValueError, match=r"2 sizes after preprocessing.*Leave keep_aspect out"):
        PREPROCESS.batch([ARRAY, ARRAY[:20]], keep_aspect=True)
    with pytest.raises(ValueError, match="images is empty"):
        PREPROCESS.batch([])
    with pytest.raises(UnknownFormat, match="cannot identify"):
        PREPROCESS(b"BM no bitmap at all, but a text")


def test_the_default_dtype_changes_nothing() -> None:
    expected = PREPROCESS(ARRAY)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            got = PREPROCESS(ARRAY)
        finally:
            torch.set_default_dtype(torch.float32)
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)
