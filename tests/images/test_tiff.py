"""TIFF files by TIFF 6.0: written by tifffile from known samples, and compared with the formulas of the standard."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from tests.images.grids import grid
from vitbackbone import Photo, load_image
from vitbackbone.images.errors import DamagedImage, ImageError, MissingDecoder, UnsupportedPixels

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

HEIGHT, WIDTH = 21, 35
RNG = np.random.default_rng(0)
ACROSS, DOWN = np.linspace(0, 1, WIDTH)[None, :, None], np.linspace(0, 0.5, HEIGHT)[:, None, None]
UNIT = np.clip(ACROSS * np.array([1, 0.5, 0.25]) + DOWN, 0, 1)  # (H, W, 3), what each picture shows
ORDERS = ["<", ">"]


def write(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **{"metadata": None, **options})
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return Photo(data).decode().permute(1, 2, 0).numpy().astype(int)


def check(data: bytes, unit: np.ndarray, most: int = 1) -> None:
    """Compare the decoded pixels with `unit`, (H, W) or (H, W, 3), where 0 is black and 1 is white."""
    expected = np.round(255 * (unit if unit.ndim == 3 else unit[..., None].repeat(3, 2)))
    got = decoded(data)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= most


def integers(unit: np.ndarray, dtype: str, bits: int) -> np.ndarray:
    return np.round(unit * (2**bits - 1)).astype(dtype)


COMPRESSIONS = ["none", "lzw", "deflate", "adobe_deflate", "packbits", "lzma", "zstd", "lerc", "jpeg2000", "png"]


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_compressions(photometric: str, compression: str, dtype: str) -> None:
    unit = UNIT if photometric == "rgb" else UNIT[..., 0]
    values = integers(1 - unit if photometric == "miniswhite" else unit, dtype, 8 * np.dtype(dtype).itemsize)
    check(write(values, photometric=photometric, compression=compression), unit)


@pytest.mark.parametrize(
    ("order", "big", "predictor", "tile", "dtype", "planar"),
    grid(
        ORDERS,
        [False, True],
        [False, True],
        [None, (16, 16)],
        ["uint8", "uint16", "uint32"],
        ["contig", "separate"],
        rounds=10,
    ),
)
def test_layouts_of_colours(
    order: str, big: bool, predictor: bool, tile: tuple[int, int] | None, dtype: str, planar: str
) -> None:
    values = integers(UNIT, dtype, 8 * np.dtype(dtype).itemsize)
    values = np.moveaxis(values, 2, 0) if planar == "separate" else values
    options = {"compression": "lzw", "predictor": True} if predictor else {}
    data = write(values, byteorder=order, bigtiff=big, planarconfig=planar, photometric="rgb", tile=tile, **options)
    check(data, UNIT)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int16"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_grey_of_every_type(order: str, big: bool, photometric: str, dtype: str, compression: str | None) -> None:
    bits = 8 * np.dtype(dtype).itemsize - (dtype[0] == "i")
    unit = UNIT[..., 0]
    values = integers(1 - unit if photometric == "miniswhite" else unit, dtype, min(bits, 50))
    if bits > 50:
        values = (values.astype(object) * (2**bits - 1) // (2**50 - 1)).astype(dtype)
    data = write(values, byteorder=order, bigtiff=big, photometric=photometric, compression=compression)
    check(data, unit, most=2 if dtype == "int8" else 1)


def by_hand(samples: np.ndarray, bits: int, photometric: int, order: str = "<", extra: dict | None = None) -> bytes:
    """Write samples (H, W) or (H, W, S) as one strip of packed bits. Each row starts at a whole byte."""
    samples = samples if samples.ndim == 3 else samples[..., None]
    height, width, count = samples.shape
    shifts = np.arange(bits - 1, -1, -1)
    rows = ((samples.reshape(height, -1, 1) >> shifts) & 1).astype(np.uint8).reshape(height, -1)
    strip = np.packbits(rows, axis=1).tobytes()
    strip += b"\0" * (len(strip) % 2)
    tags: dict[int, tuple] = {256: (width,), 257: (height,), 258: (bits,) * count, 259: (1,), 262: (photometric,)}
    tags |= {273: (8,), 277: (count,), 278: (height,), 279: (len(strip),)} | (extra or {})
    at = 8 + len(strip) + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    shorts = f"{order}u2"
    for tag, values in sorted(tags.items()):
        kind = 4 if len(values) == 1 else 3
        payload = np.array(values, f"{order}u4" if kind == 4 else shorts).tobytes()
        if len(payload) > 4:
            place = np.array([at + len(tail)], f"{order}u4").tobytes()
            tail += payload
        else:
            place = payload.ljust(4, b"\0")
        entries += np.array([tag, kind], shorts).tobytes() + np.array([len(values)], f"{order}u4").tobytes() + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + np.array([8 + len(strip)], f"{order}u4").tobytes()
    return head + strip + np.array([len(tags)], shorts).tobytes() + entries + bytes(4) + tail


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
def test_grey_of_any_number_of_bits(order: str, photometric: int, bits: int) -> None:
    if bits == 16 and order == ">":
        pytest.skip("16 bits are bytes in the file's order, which the writer packs as big-endian")
    levels = np.round(UNIT[..., 0] * (2**bits - 1)).astype(np.int64)
    samples = (2**bits - 1) - levels if photometric == 0 else levels
    if bits == 16:
        samples = samples.astype("<u2").view(">u2").astype(np.int64)
    check(by_hand(samples, bits, photometric, order), levels / (2**bits - 1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [4, 12])
def test_colours_of_odd_bits(order: str, bits: int) -> None:
    levels = np.round(UNIT * (2**bits - 1)).astype(np.int64)
    check(by_hand(levels, bits, 2, order), levels / (2**bits - 1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("wide", [True, False])
def test_palettes(order: str, bits: int, wide: bool) -> None:
    table = RNG.integers(0, 256, (2**bits, 3))
    index = RNG.integers(0, 2**bits, (HEIGHT, WIDTH))
    entries = tuple((table * (257 if wide else 1)).T.ravel().tolist())
    check(by_hand(index, bits, 3, order, {320: entries}), table[index] / 255)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "planar"), [(1, "contig"), (2, "contig"), (0, "contig"), (1, "separate")])
def test_alpha_is_dropped_and_premultiplied_colours_divided_by_it(bits: int, kind: int, planar: str) -> None:
    alpha = np.linspace(0.2, 1, WIDTH)[None, :, None].repeat(HEIGHT, 0)
    stored = UNIT * alpha if kind == 1 else UNIT
    values = integers(np.concatenate([stored, alpha], 2), f"uint{bits}", bits)
    values = np.moveaxis(values, 2, 0) if planar == "separate" else values
    check(write(values, photometric="rgb", extrasamples=[kind], planarconfig=planar), UNIT, most=6 if kind == 1 else 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_cmyk(order: str, bits: int, planar: str) -> None:
    inks = np.concatenate([UNIT * 0.8, np.full((HEIGHT, WIDTH, 1), 0.1)], 2)
    values = integers(inks, f"uint{bits}", bits)
    values = np.moveaxis(values, 2, 0) if planar == "separate" else values
    data = write(values, photometric="separated", planarconfig=planar, byteorder=order)
    check(data, (1 - inks[..., :3]) * (1 - inks[..., 3:]), most=2)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["cielab", "icclab"])
def test_lab(bits: int, planar: str, photometric: str) -> None:
    srgb = Image.fromarray(np.round(UNIT * 255).astype(np.uint8))
    lab = ImageCms.profileToProfile(
        srgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    values = np.frombuffer(lab.tobytes("raw", "LAB"), np.uint8).reshape(HEIGHT, WIDTH, 3).copy()  # as CIELab has it
    if photometric == "icclab":
        values[..., 1:] ^= 128
    if bits == 16:
        values = values.astype(np.uint16) * np.array([257, 256, 256], np.uint16)
    values = np.moveaxis(values, 2, 0) if planar == "separate" else values
    check(write(values, photometric=photometric, planarconfig=planar), UNIT, most=6)  # Lab of 8 bits is coarse


@pytest.mark.parametrize("compression", ["none", "jpeg", "lzw"])
def test_ycbcr(compression: str) -> None:
    values = np.array(Image.fromarray(np.round(UNIT * 255).astype(np.uint8)).convert("YCbCr"))
    if compression == "jpeg":
        rgb = np.round(UNIT * 255).astype(np.uint8)  # which the codec stores as YCbCr
        check(write(rgb, photometric="rgb", compression="jpeg", compressionargs={"level": 98}), UNIT, most=12)
        return
    file = io.BytesIO()
    Image.fromarray(values, "YCbCr").save(file, "TIFF", compression=None if compression == "none" else "tiff_lzw")
    check(file.getvalue(), UNIT, most=4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["raw", "tiff_lzw", "tifffile", "JPEG"])
@pytest.mark.promise(11)
def test_orientations_are_applied_once(orientation: int, kind: str) -> None:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    stored = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    upright = stored.transpose(turn[orientation]) if orientation > 1 else stored
    if kind == "tifffile":  # what Pillow cannot decode
        values = np.moveaxis(np.array(stored), 2, 0).astype(np.uint16) * 257
        data = write(values, photometric="rgb", planarconfig="separate", extratags=[(274, "H", 1, orientation, True)])
    else:
        file = io.BytesIO()
        extra = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"compression": kind}
        exif = Image.Exif()
        exif[274] = orientation
        stored.save(file, "JPEG" if kind == "JPEG" else "TIFF", exif=exif, **extra)
        data = file.getvalue()
    photo = Photo(data)
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    assert photo.size == tuple(expected.shape[1:])
    got = photo.decode()
    assert got.shape == expected.shape
    assert (got.int() - expected.int()).abs().max() <= (16 if kind == "JPEG" else 0)
    opened = Image.open(io.BytesIO(data))
    same = torch.from_numpy(np.array(load_image(opened))).permute(2, 0, 1)
    assert torch.equal(same, got)


def test_a_grey_file_is_read_by_path_as_by_bytes(tmp_path) -> None:
    """Pillow maps uncompressed grey files of a path into memory, and turns the map wrongly."""
    grey = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8))
    grey.save(tmp_path / "a.tif", tiffinfo={274: 6})
    expected = np.array(grey.transpose(Image.Transpose.ROTATE_270).convert("RGB"))
    assert (np.array(load_image(tmp_path / "a.tif")) == expected).all()
    with Image.open(tmp_path / "a.tif") as opened:
        assert (np.array(load_image(opened)) == expected).all()


def test_the_first_page_is_read_and_all_are_counted() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for level in (40, 90, 200):
            writer.write(np.full((8, 9), level, np.uint8), metadata=None)
    photo = Photo(file.getvalue())
    assert photo.frames() == 3
    assert photo.decode().unique().tolist() == [40]


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        (np.ones((4, 4), np.float32), {}, "no agreed range"),
        (np.ones((4, 4), np.float64), {}, "no agreed range"),
        (np.ones((4, 4, 3), np.float16), {"photometric": "rgb"}, "no agreed range"),
        (np.full((4, 4), -3, np.int16), {}, "signed integers from -3"),
        (np.full((4, 4), 70000, np.int32), {}, "scale it to 16 bits"),
    ],
)
def test_values_without_an_agreed_range_are_refused(values: np.ndarray, options: dict, reason: str) -> None:
    with pytest.raises(UnsupportedPixels, match=reason):
        Photo(write(values, **options)).decode()


def test_32_bits_that_hold_16_are_read_as_16() -> None:
    values = integers(UNIT[..., 0], "int32", 16)
    check(write(values), UNIT[..., 0])


METADATA = [270, 282, 283, 296, 305, 330, 700, 33723, 34377, 34665, 34675, 34853, 37724, 65000]


@pytest.mark.parametrize(
    ("tag", "kind", "value"), grid(METADATA, [0, 1, 2, 5, 7, 10, 12, 13, 99], [1, 2**31], rounds=3)
)
def test_metadata_is_never_parsed(tag: int, kind: int, value: int) -> None:
    """Entries have unknown types, wrong types, or values outside the file."""
    data = bytearray(write(integers(UNIT, "uint8", 8), photometric="rgb", software="x"))
    at = data.index((305).to_bytes(2, "little") + b"\2\0")
    data[at : at + 12] = np.array([tag, kind, value & 0xFFFF, value >> 16, 0xFFFF, 0x7FFF], "<u2").tobytes()
    check(bytes(data), UNIT, most=0)


def test_a_cut_or_damaged_file_is_an_image_error() -> None:
    for options in ({}, {"compression": "lzw"}, {"planarconfig": "separate", "photometric": "rgb"}):
        values = integers(np.moveaxis(UNIT, 2, 0) if "planarconfig" in options else UNIT, "uint16", 16)
        whole = write(values, **options)
        for length in range(0, len(whole), max(1, len(whole) // 40)):
            with pytest.raises(ImageError):
                Photo(whole[:length]).decode()
        for _ in range(60):
            data = bytearray(whole)
            for place in RNG.integers(0, min(len(data), 400), RNG.integers(1, 4)):
                data[place] = RNG.integers(256)
            try:
                picture: Tensor = Photo(bytes(data)).decode()
                assert picture.shape[0] == 3
            except ImageError:
                pass


def test_a_chain_of_pages_that_never_ends_is_counted() -> None:
    data = bytearray(write(integers(UNIT, "uint8", 8), photometric="rgb"))
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    data[first + 2 + 12 * count : first + 6 + 12 * count] = data[4:8]
    assert Photo(bytes(data)).frames() == 1


@pytest.mark.parametrize("missing", ["tifffile", "imagecodecs"])
def test_a_missing_library_is_named_with_its_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(integers(UNIT, "uint16", 16), photometric="rgb", compression="jpeg2000")
    if missing == "tifffile":
        monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    else:
        page = tifffile.TiffPage

        def fail(*_: object, **__: object) -> None:
            raise ValueError("<COMPRESSION.JPEG2000: 34712> requires the 'imagecodecs' package")

        monkeypatch.setattr(page, "asarray", fail)
    with pytest.raises(MissingDecoder, match=r"vitbackbone\[tiff\]"):
        Photo(data).decode()


def test_a_bomb_is_refused_by_its_header() -> None:
    data = by_hand(np.zeros((2, 2), np.int64), 8, 1, extra={256: (60000,), 257: (60000,)})
    with pytest.raises(ImageError, match="60000 x 60000 pixels are more than the limit"):
        Photo(data)
    with pytest.raises(DamagedImage):
        Photo(data, max_pixels=4_000_000_000).decode()
