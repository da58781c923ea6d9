"""Whole files to mutate: images in up to fourteen formats, archives, and every JSON and safetensors file that is read.

HEIF and JPEG XL are among the images if their encoders are installed.
"""

import importlib.util
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES: tuple[tuple[str, str, dict[str, object]], ...] = (  # Pillow's format, mode, options
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True, "quality": 60}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("PNG", "LA", {}),
    ("PNG", "1", {}),
    ("PNG", "I;16", {}),
    ("GIF", "P", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "L", {"compression": "tiff_deflate"}),
    ("TIFF", "I;16", {}),
    ("PPM", "RGB", {}),
    ("PPM", "L", {}),
    ("AVIF", "RGB", {}),
    ("JPEG2000", "RGB", {}),
    ("MPO", "RGB", {}),
    ("ICO", "RGBA", {}),
    ("TGA", "RGB", {}),
)
EXTRA: tuple[tuple[str, str, str, dict[str, object]], ...] = (  # module that encodes, format, mode, options
    ("pillow_heif", "HEIF", "RGB", {}),
    ("pillow_jxl", "JXL", "RGB", {}),
    ("pillow_jxl", "JXL", "RGB", {"lossless": True}),
)
ORIENTED = ("JPEG", "PNG", "TIFF", "WEBP")  # formats that get EXIF with an orientation, too


def picture(mode: str, seed: int = 0, size: tuple[int, int] = (40, 28)) -> Image.Image:
    """Return a smooth colourful picture in a mode of Pillow."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    rgb = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    return rgb.convert("L").convert("1") if mode == "1" else rgb.convert(mode)


def encode(kind: str, mode: str, options: dict[str, object], orientation: int | None = None, seed: int = 0) -> bytes:
    """Return the bytes of a picture in a format."""
    file = io.BytesIO()
    extra = dict(options)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        extra["exif"] = exif.tobytes()
    picture(mode, seed).save(file, kind, **extra)
    return file.getvalue()


@cache
def images() -> tuple[tuple[str, bytes], ...]:
    """Return (name, bytes) of each whole image."""
    found = [(f"{kind} {mode}", encode(kind, mode, options)) for kind, mode, options in IMAGES]
    found += [(f"{kind} turned", encode(kind, "RGB", {}, orientation=6)) for kind in ORIENTED]
    for module, kind, mode, options in EXTRA:
        if importlib.util.find_spec(module):
            encoder = importlib.import_module(module)
            if module == "pillow_heif":
                encoder.register_heif_opener()
            found.append((f"{kind} {mode}", encode(kind, mode, options)))
    return tuple(found)


def _members() -> list[tuple[str, bytes]]:
    return [
        (f"{'cat' if i % 2 else 'dog'}/{i}.{ending}", encode(kind, "RGB", {}, seed=i))
        for i, (kind, ending) in enumerate([("JPEG", "jpg"), ("PNG", "png"), ("PNG", "png"), ("JPEG", "jpg")])
    ]


def _zip(compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in _members():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return file.getvalue()


def _tar(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for name, data in [*_members(), ("cat/1.cls", b"1"), ("long/" + "é" * 120 + ".jpg", _members()[0][1])]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    members = _members()
    images = [{"bytes": data, "path": name} for name, data in members]
    pq.write_table(pa.table({"image": images, "label": list(range(len(members)))}), file, row_group_size=2)
    return file.getvalue()


@cache
def archives() -> tuple[tuple[str, bytes], ...]:
    """Return (file name, bytes) of each whole archive."""
    return (
        ("stored.zip", _zip(zipfile.ZIP_STORED)),
        ("deflated.zip", _zip(zipfile.ZIP_DEFLATED)),
        ("bzip2.zip", _zip(zipfile.ZIP_BZIP2)),
        ("lzma.zip", _zip(zipfile.ZIP_LZMA)),
        ("plain.tar", _tar("w:")),
        ("table.parquet", _parquet()),
        ("list.csv", b"path,label\na.jpg,cat\nb.jpg,dog\n"),
    )


Make = Callable[[Path], None]


def _transformers(folder: Path) -> None:
    """Write a tiny model directory as transformers has it, with a processor and sharded weights."""
    import torch
    from safetensors.torch import load_file, save_file

    from vitbackbone import Preprocess, ViT, ViTConfig, save_pretrained

    torch.manual_seed(0)
    config = ViTConfig(image_size=(32, 32), patch_size=16, dim=16, depth=1, num_heads=2, mlp_dim=32)
    save_pretrained(ViT(config, Preprocess((32, 32), crop_rounding="down")), folder, "ViTModel")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    half = len(names) // 2
    parts = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _head(folder: Path) -> None:
    from heads import create_head, save_head
    from vitbackbone import load_backbone

    backbone = load_backbone("nano")
    save_head(create_head("mlp", backbone.spec, num_classes=3), folder, backbone)


def _probe(folder: Path) -> None:
    from heads import LinearProbe, save_probe

    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    save_probe(LinearProbe().fit(x, np.arange(20) % 2), folder, about={})


def _store(folder: Path) -> None:
    from tests.fuzz.targets import tiny
    from vitbackbone import extract

    with tempfile.TemporaryDirectory() as photos:
        for i, (_, data) in enumerate(images()[:3]):
            (Path(photos) / f"{i}.jpg").write_bytes(data)
        extract(tiny(), photos, folder, progress=False)


FOLDERS: dict[str, Make] = {"model": _transformers, "head": _head, "probe": _probe, "store": _store}


@cache
def folders() -> dict[str, dict[str, bytes]]:
    """Return, for each kind of folder, its files and their bytes."""
    found = {}
    for kind, make in FOLDERS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / kind
            make(folder)
            found[kind] = {
                str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
            }
    return found
