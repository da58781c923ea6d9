"""Write small datasets in official layouts for `vitbackbone evaluate`: CIFAR-10, a corrupted copy of it, and digits.

    python -m benchmarks.evaluation_data ../shared/data/cifar10/train.parquet --out data --train 5000 --val 1000

`data/cifar10` and `data/digits` have the layout {train,val}/CLASS/*. `data/cifar10-c` has that of ImageNet-C: 15
corruptions of 5 severities, drawn here in the manner of Hendrycks and Dietterich, on a part of the val images.
`data/digits-retrieval` has the layout of revisited Oxford: a fifth of the val digits ask for the training digits of
their class. The half that is nearest to a query, pixel by pixel, is easy, and the other half hard.
"""

import argparse
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.float64]  # (H, W, 3) from 0 to 1
Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]  # the severity is 1 to 5
HELD_OUT = 10  # every tenth photo of the parquet is not a training photo of `nano`: row % 10 == 9


def _blend(x: Pixels, other: float | Pixels, share: float) -> Pixels:
    return x * (1 - share) + share * other


def _blur(x: Pixels, sigma: tuple[float, float]) -> Pixels:
    return ndimage.gaussian_filter(x, (*sigma, 0))


def _impulse(x: Pixels, s: int, random: np.random.Generator) -> Pixels:
    hit = random.random(x.shape[:2]) < 0.03 * s
    return np.where(hit[..., None], random.integers(0, 2, x.shape[:2])[..., None], x)


def _moved(x: Pixels, s: int, random: np.random.Generator, smooth: float) -> Pixels:
    """Move each pixel by a random shift, which is smooth over a few pixels."""
    shifts = [ndimage.gaussian_filter(random.normal(0, s, x.shape[:2]), smooth) * (1 + smooth) for _ in range(2)]
    places = np.meshgrid(*map(np.arange, x.shape[:2]), indexing="ij")
    moved = [place + shift for place, shift in zip(places, shifts, strict=True)]
    return np.stack([ndimage.map_coordinates(x[..., i], moved, order=1, mode="reflect") for i in range(3)], axis=-1)


def _zoomed(x: Pixels, s: int) -> Pixels:
    views = []
    for scale in np.linspace(1, 1 + 0.08 * s, 4):
        side = max(int(len(x) / scale), 2)
        first = (len(x) - side) // 2
        crop = Image.fromarray(np.uint8(x[first : first + side, first : first + side] * 255))
        views.append(np.asarray(crop.resize(x.shape[1::-1], Image.Resampling.BILINEAR)) / 255)
    return np.mean(views, axis=0)


def _pixelated(x: Pixels, s: int) -> Pixels:
    image, side = Image.fromarray(np.uint8(x * 255)), max(int(len(x) * (1 - 0.14 * s)), 2)
    return np.asarray(image.resize((side, side)).resize(x.shape[1::-1], Image.Resampling.NEAREST)) / 255


def _compressed(x: Pixels, s: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(x * 255)).save(buffer, "JPEG", quality=[40, 25, 18, 12, 7][s - 1])
    return np.asarray(Image.open(buffer)) / 255


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": lambda x, s, r: x + r.normal(0, 0.04 * s, x.shape),
    "shot_noise": lambda x, s, r: r.poisson(x * 60 / s) * s / 60,
    "impulse_noise": _impulse,
    "defocus_blur": lambda x, s, r: _blur(x, (0.3 * s, 0.3 * s)),
    "glass_blur": lambda x, s, r: _moved(x, s, r, 0.0),
    "motion_blur": lambda x, s, r: _blur(x, (0.0, 0.6 * s)),
    "zoom_blur": lambda x, s, r: _zoomed(x, s),
    "snow": lambda x, s, r: np.maximum(
        x, _blur((r.random(x.shape[:2])[..., None] < 0.03 * s) * np.ones(3), (0.5, 0.5)) * 2
    ),
    "frost": lambda x, s, r: _blend(x, _blur(r.random((*x.shape[:2], 1)) * np.ones(3), (2, 2)) + 0.3, 0.12 * s),
    "fog": lambda x, s, r: _blend(x, 0.8, 0.14 * s),
    "brightness": lambda x, s, r: x + 0.08 * s,
    "contrast": lambda x, s, r: _blend(x, x.mean(), 0.17 * s),
    "elastic_transform": lambda x, s, r: _moved(x, s, r, 2.0),
    "pixelate": lambda x, s, r: _pixelated(x, s),
    "jpeg_compression": lambda x, s, r: _compressed(x, s),
}


def write_cifar(parquet: Path, out: Path, train: int, val: int, corrupted: int) -> None:
    table = pq.read_table(parquet)
    classes = table.schema.metadata[b"classes"].decode().split(",")
    rows = np.arange(len(table))
    held = rows % HELD_OUT == HELD_OUT - 1
    for split, chosen in (("train", rows[~held][:train]), ("val", rows[held][:val])):
        for row in chosen.tolist():
            label = classes[table["label"][row].as_py()]
            path = out / "cifar10" / split / label / f"{row:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(table["image"][row].as_py())
    for row in rows[held][:corrupted].tolist():
        label = classes[table["label"][row].as_py()]
        pixels = np.asarray(Image.open(io.BytesIO(table["image"][row].as_py())).convert("RGB")) / 255
        for kind, corrupt in CORRUPTIONS.items():
            for severity in range(1, 6):
                random = np.random.default_rng([row, severity])
                image = Image.fromarray(np.uint8(corrupt(pixels, severity, random).clip(0, 1) * 255))
                path = out / "cifar10-c" / kind / str(severity) / label / f"{row:05}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, quality=95)


def write_digits(out: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = out / "digits" / ("val" if i % 5 == 4 else "train") / str(label) / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels / 16 * 255)).save(path)


def write_retrieval(out: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.arange(len(digits.target))
    stored, asked = rows[rows % 5 != 4], rows[rows % 25 == 24]
    folder = out / "digits-retrieval" / "roxford5k"
    (folder / "jpg").mkdir(parents=True, exist_ok=True)
    for row in [*stored, *asked]:
        Image.fromarray(np.uint8(digits.images[row] / 16 * 255)).save(folder / "jpg" / f"{row:04}.jpg", quality=95)
    truth = []
    for row in asked:
        same = np.flatnonzero(digits.target[stored] == digits.target[row])
        far = np.linalg.norm(digits.data[stored[same]] - digits.data[row], axis=1)
        near, others = np.array_split(same[np.argsort(far)], 2)
        truth.append({"bbx": [0.0, 0.0, 7.0, 7.0], "easy": near.tolist(), "hard": others.tolist(), "junk": []})
    names = {"imlist": [f"{row:04}" for row in stored], "qimlist": [f"{row:04}" for row in asked]}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({**names, "gnd": truth}, protocol=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parquet",
        type=Path,
        help="parquet file of CIFAR-10 with the columns image and label, and the class names in its metadata",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--train", type=int, default=5000, help="training photos of CIFAR-10")
    parser.add_argument("--val", type=int, default=1000, help="val photos of CIFAR-10")
    parser.add_argument("--corrupted", type=int, default=100, help="val photos to corrupt, each in 75 ways")
    args = parser.parse_args()
    write_cifar(args.parquet, args.out, args.train, args.val, args.corrupted)
    write_digits(args.out)
    write_retrieval(args.out)
