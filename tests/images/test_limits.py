"""The limit of pixels: as an option of every reader, and as the commands take it."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from tests.helpers import photo, tiny_vit
from tests.images.encoded import EXTRA, PREPROCESS, SAVED, encode
from vitbackbone import FusedPreprocess, ImageError, ImageFeatures, Photo, extract, load_image, save_pretrained
from vitbackbone.cli import main
from vitbackbone.images.errors import TooManyPixels

WIDTH, HEIGHT = 60, 40
PIXELS = WIDTH * HEIGHT
OVER = f"{WIDTH} x {HEIGHT} pixels are more than the limit of {PIXELS - 1}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, a checkpoint with a classifier, and a probe fitted on two colours."""
    place = tmp_path_factory.mktemp("limits")
    (place / "one").mkdir()
    photo(HEIGHT, WIDTH).save(place / "one" / "photo.png")
    head = {"head.weight": torch.eye(3, 16), "head.bias": torch.zeros(3)}
    backbone = tiny_vit()
    backbone.preprocess = replace(backbone.preprocess, crop_rounding="down")  # as transformers crops
    save_pretrained(backbone, place / "model", "ViTForImageClassification", head)
    for label, level in (("dark", 0), ("bright", 200)):
        for i in range(10):
            file = place / "photos" / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo(20, 20, seed=i).point(lambda value, level=level: value // 5 + level).save(file)
    model = str(place / "model")
    assert main(["extract", str(place / "photos"), "--model", model, "--out", str(place / "store"), "-q"]) == 0
    assert main(["probe", str(place / "store"), "--out", str(place / "probe"), "-q"]) == 0
    return place


COMMANDS = {
    "extract": ["{place}/one", "--model", "{place}/model", "--out", "{out}"],
    "predict": ["{place}/one/photo.png", "--probe", "{place}/probe"],
    "classify": ["{place}/one/photo.png", "--model", "{place}/model"],
    "show": ["{place}/one/photo.png", "--model", "{place}/model", "--out", "{out}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_a_photo_above_its_limit(
    command: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"show": 2}  # its one photo is the input; for the others a photo that cannot be read is one of several
    for limit, code in ((PIXELS - 1, codes.get(command, 1)), (PIXELS, 0)):
        line = [part.format(place=place, out=tmp_path / str(limit)) for part in COMMANDS[command]]
        capsys.readouterr()
        assert main([command, *line, "--max-pixels", str(limit)]) == code
        said = "".join(capsys.readouterr())
        assert (OVER in said) == bool(code)
        assert ("--max-pixels" in said) == bool(code)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "many", ""])
def test_a_command_refuses_a_limit_that_is_no_count(
    command: str, limit: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [part.format(place=place, out=tmp_path / "out") for part in COMMANDS[command]]
    with pytest.raises(SystemExit) as ended:
        main([command, *line, f"--max-pixels={limit}"])
    assert ended.value.code == 2
    assert "want a whole number of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
