"""JPEGs that a GPU decodes. torchvision's decoder of the CPU stands in for the GPU's: it has the same interface."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers import photo, save_photo, tiny_vit
from vitbackbone import Photo
from vitbackbone.images import Preprocess, gpu
from vitbackbone.images.sources import open_image
from vitbackbone.store import extract


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Decode on the CPU, 3 levels brighter, and note the size of every picture."""
    from torchvision import io as codecs

    found: list[tuple[int, int]] = []
    decode: Callable[..., Tensor] = codecs.decode_jpeg

    def brighter(*given: object) -> Tensor:
        picture = decode(*given)
        found.append((picture.shape[1], picture.shape[2]))
        return picture.clamp(max=252) + 3

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(codecs, "decode_jpeg", brighter)
    return found


def encoded(picture: Image.Image, format: str = "JPEG", **fields: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **fields)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_decoded_there_and_turned_here(
    asked: list[tuple[int, int]], mode: str, progressive: bool, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(41, 70).convert(mode), progressive=progressive, exif=exif)
    expected = Photo(data).decode().clamp(max=252) + 3
    assert torch.equal(Photo(data).decode(on_gpu=True), expected)
    assert asked == [(41, 70)]


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_other_formats_are_decoded_by_the_cpu(asked: list[tuple[int, int]], format: str) -> None:
    data = encoded(photo(41, 70), format)
    assert torch.equal(Photo(data).decode(on_gpu=True), Photo(data).decode())
    assert not asked


@pytest.mark.parametrize("fault", ["refused", "another size", "CMYK"])
def test_what_the_gpu_does_not_decode_is_decoded_by_the_cpu(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def faulty(*_: object) -> Tensor:
        if fault == "another size":
            return torch.zeros(3, 40, 70, dtype=torch.uint8)
        raise RuntimeError("nvjpegDecode failed: 5")

    monkeypatch.setattr("torchvision.io.decode_jpeg", faulty)
    data = encoded(photo(41, 70).convert("CMYK" if fault == "CMYK" else "RGB"))
    assert torch.equal(Photo(data).decode(on_gpu=True), Photo(data).decode())


def test_a_truncated_jpeg_is_refused_though_the_gpu_decodes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda *_: torch.full((3, 200, 300), 128, dtype=torch.uint8))
    data = encoded(photo(200, 300))
    assert (Photo(data + bytes(100)).decode(on_gpu=True) == 128).all()
    with pytest.raises(ValueError, match="truncated"):
        Photo(data[: len(data) // 2]).decode(on_gpu=True)


def test_pixels_in_memory_stay_where_they_are(asked: list[tuple[int, int]]) -> None:
    pixels = Preprocess((32, 32)).pixels(open_image(photo(90, 70), None), decoding="gpu")
    assert pixels.shape == (3, 32, 32)
    assert not asked


def test_the_pixels_of_a_view_come_from_there(asked: list[tuple[int, int]]) -> None:
    data, preprocess = encoded(photo(90, 70)), Preprocess((32, 32))
    fast, by_gpu = (preprocess.pixels(Photo(data), decoding=how) for how in ("fast", "gpu"))
    assert asked == [(90, 70)]
    assert 2 < (by_gpu.float() - fast.float()).mean() < 4


@pytest.mark.parametrize("given", [{}, {"device": "cuda", "workers": 2}, {"devices": ["cpu", "cpu"]}])
def test_it_wants_a_gpu_and_the_computing_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object]
) -> None:
    monkeypatch.setattr("vitbackbone.store.run.check_device", lambda device: None)
    save_photo(tmp_path / "in" / "a.jpg", 40, 50)
    with pytest.raises(ValueError, match="wants a CUDA device and workers=0"):
        extract(tiny_vit(), tmp_path / "in", tmp_path / "out", decoding="gpu", **given)
    assert not (tmp_path / "out").exists()


def test_a_store_keeps_to_the_decoder_that_began_it(
    asked: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = tiny_vit()
    save_photo(tmp_path / "in" / "a.jpg", 40, 50)
    store = extract(vit, tmp_path / "in", tmp_path / "out", progress=False)
    assert store.manifest["preprocessing"]["decoder"] == "pillow"
    monkeypatch.setattr("vitbackbone.store.run.check_device", lambda device: None)
    with pytest.raises(ValueError, match="(?s)decoder.*pillow.*nvjpeg"):
        extract(vit, tmp_path / "in", tmp_path / "out", decoding="gpu", device="cuda", progress=False)
    assert not asked
