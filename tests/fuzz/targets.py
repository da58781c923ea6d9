"""The targets of the fuzzing. Each mutates a file, reads it as a user would, and returns the outcome."""

import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageOps

from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import archives, folders, images

PROMISED = (OSError, ValueError)  # what a reader may raise
PLAIN = ("RGB", "L", "P", "1", "RGBA", "LA")  # modes whose RGB Pillow defines without scaling


@dataclass(frozen=True)
class Outcome:
    """The outcome of one input."""

    what: str  # the file that was mutated
    rows: int = 0  # images that were read, or files that were loaded
    reasons: int = 0  # inputs refused with a promised error, or failed rows
    differs: bool = False  # whether pixels differ from Pillow's
    broken: str = ""  # an exception that is not promised


def image(index: int) -> Outcome:
    """Decode a mutated image with every public reader, and compare the pixels with Pillow's."""
    from vitbackbone import Photo, load_image

    random = Random(f"image {index}")
    name, whole = random.choice(images())
    data = mutate(whole, random)
    try:
        ours = np.asarray(load_image(data))
        decoded = Photo(data).decode().permute(1, 2, 0).numpy()
    except PROMISED:
        return Outcome(name, reasons=1)
    if ours.shape != decoded.shape or (ours != decoded).any():
        return Outcome(name, rows=1, broken="load_image and Photo.decode differ")
    theirs = None if name.startswith("TIFF") else by_pillow(data)
    differs = theirs is not None and (theirs.shape != ours.shape or bool((theirs != ours).any()))
    return Outcome(name, rows=1, differs=differs)


def by_pillow(data: bytes) -> np.ndarray | None:
    """Return the upright RGB pixels as Pillow decodes them, or None if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data))
            if picture.mode not in PLAIN:
                return None
            picture.load()
            turned = ImageOps.exif_transpose(picture)
            if turned.mode in ("RGBA", "LA"):  # the stored colour is kept, alpha is dropped
                turned = (
                    Image.merge(turned.mode[:-1], turned.split()[:-1])
                    if turned.mode == "RGBA"
                    else turned.getchannel(0)
                )
            return np.asarray(turned.convert("RGB"))
    except Exception:  # Pillow raises anything here; it is the oracle, not the subject
        return None


@cache
def tiny() -> object:
    """Return a backbone that is quick to run."""
    import torch

    from vitbackbone import Preprocess, ViT, ViTConfig

    torch.manual_seed(0)
    config = ViTConfig(image_size=(16, 16), patch_size=16, dim=8, depth=1, num_heads=1, mlp_dim=8)
    return ViT(config, Preprocess((16, 16)), name="tiny")


def archive(index: int) -> Outcome:
    """Extract a mutated archive or list: every member is a row, or the archive is refused."""
    from vitbackbone import extract

    random = Random(f"archive {index}")
    name, whole = random.choice(archives())
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / name
        file.write_bytes(mutate(whole, random))
        try:
            store = extract(tiny(), file, Path(temporary) / "store", progress=False)  # type: ignore[arg-type]
        except PROMISED:
            return Outcome(name, reasons=1)
        rows, failed = len(store), len(store.failed)
        if rows + failed != len(store.index):
            return Outcome(name, rows, failed, broken=f"{len(store.index)} inputs, {rows} rows and {failed} failed")
        return Outcome(name, rows, failed)


def _load_model(folder: Path) -> None:
    from vitbackbone import load_backbone

    load_backbone(folder)


def _load_head(folder: Path) -> None:
    from heads import load_head
    from vitbackbone import load_backbone

    load_head(folder, load_backbone("nano"))


def _load_probe(folder: Path) -> None:
    from heads import load_probe

    load_probe(folder)


def _load_store(folder: Path) -> None:
    from vitbackbone import FeatureStore

    store = FeatureStore(folder)
    np.asarray(store.cls).sum()
    _ = store.labels, store.failed, store.paths


LOADERS: dict[str, Callable[[Path], None]] = {
    "model": _load_model,
    "head": _load_head,
    "probe": _load_probe,
    "store": _load_store,
}


def folder(index: int) -> Outcome:
    """Load a folder in which one file is mutated."""
    random = Random(f"folder {index}")
    kind = random.choice(sorted(LOADERS))
    files = folders()[kind]
    chosen = random.choice(sorted(files))
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / kind
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(mutate(data, random) if name == chosen else data)
        try:
            LOADERS[kind](place)
        except PROMISED:
            return Outcome(f"{kind}/{Path(chosen).suffix}", reasons=1)
    return Outcome(f"{kind}/{Path(chosen).suffix}", rows=1)


TARGETS: dict[str, Callable[[int], Outcome]] = {"image": image, "archive": archive, "folder": folder}
SHARES = {"image": 0.6, "archive": 0.2, "folder": 0.2}  # of the inputs
