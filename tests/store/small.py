"""Small pictures and a small backbone for the tests of the store, and what its folder holds."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tests.helpers import save_photo, tiny_vit
from vitbackbone.contract.features import Features
from vitbackbone.contract.geometry import Images
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.vit import ViT
from vitbackbone.store import FeatureStore

TINY = ViTConfig(image_size=(32, 32), patch_size=8, dim=16, depth=2, num_heads=2, mlp_dim=32)
FOURS = {"shard_size": 4, "batch_size": 4, "progress": False}  # options of `extract`: shards of four images
SIZES = [(121, 68), (40, 33), (32, 32), (9, 50), (1, 1), (64, 48), (30, 31)]  # (W, H)


class Watched(ViT):
    """Records the images of each forward, and the number of shards in `out` at that time."""

    out: Path | None = None

    def forward_layers(self, images: Images, layers: Sequence[int], norm: bool = True) -> tuple[Features, ...]:
        if not hasattr(self, "seen"):
            self.seen: list[tuple[int, int]] = []
        markers = len(list(self.out.glob("done/*.json"))) if self.out else 0
        self.seen.append((len(images), markers))
        return super().forward_layers(images, layers, norm)


class Interrupted(Watched):
    """Ends by Ctrl-C when it is called once more than `limit` times."""

    limit = 2

    def forward_layers(self, images: Images, layers: Sequence[int], norm: bool = True) -> tuple[Features, ...]:
        if len(getattr(self, "seen", [])) == self.limit:
            raise KeyboardInterrupt
        return super().forward_layers(images, layers, norm)


def backbone(**fields: object) -> Watched:
    torch.manual_seed(0)
    return Watched(replace(TINY, **fields)).eval()


def picture(seed: int, size: tuple[int, int] = (40, 33), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def save(path: Path, seed: int, size: tuple[int, int] = (40, 33), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size, mode).save(path)
    return path


def direct(model: ViT, path: Path, layer: int = -1, **options: object) -> Features:
    """The features of one image by itself."""
    with torch.no_grad():
        return model.forward_layers(model.preprocess(path, **options)[None], [layer])[0]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def objects(directory: Path) -> dict[str, bytes]:
    """The files of a store that are named by their content. Records also hold times."""
    return {name: data for name, data in contents(directory).items() if name.startswith("objects/")}


def features_of(directory: Path, shard: int) -> Path:
    """The file with the features of a shard."""
    name = FeatureStore(directory).table.names[shard]
    return directory / "objects" / name[:2] / name


def write_list(file: Path, rows: Sequence[tuple[object, ...]], header: tuple[str, ...] = ("path", "label")) -> Path:
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([header, *rows])
    else:
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(header)}), file)
    return file


def ten_photos(folder: Path) -> Path:
    for i in range(10):
        save_photo(folder / f"{i}.png", 40, 50, seed=i)
    return folder


def rows(store: FeatureStore) -> dict[str, list[float]]:
    """The CLS token of each image of a store."""
    return {path: row.tolist() for path, row in zip(store.paths, store.cls, strict=True)}


def meanwhile(act: Callable[[], object]) -> ViT:
    """A model that does something in its first forward."""
    model = tiny_vit()

    def hook(*_: object) -> None:
        handle.remove()
        act()

    handle = model.norm.register_forward_pre_hook(hook)
    return model
