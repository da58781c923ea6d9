"""Image sources: paths, bytes, file objects, PIL images, arrays and tensors give the same pixels."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import photo, tiny_vit
from tests.images.encoded import PREPROCESS, encode
from vitbackbone import FusedPreprocess, ImageError, ImageFeatures
from vitbackbone.images.errors import UnknownFormat
from vitbackbone.images.sources import open_image

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
