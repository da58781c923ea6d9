"""Measure `nano`, the built-in backbone, and print the table of its model card.

    python examples/evaluate_nano.py train.parquet                              # the parquet that train_nano.py takes
    python examples/evaluate_nano.py train.parquet --weights runs/nano/nano.safetensors

On CIFAR-10, probes are fitted on the 45,000 photos that it was trained on, and measured on the 5,000 held-out ones. The
digits are scikit-learn's, 8 x 8 pixels, which it has never seen, in five folds that are equal for all features.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from train_nano import HELD_OUT, normalised, read_photos

from heads import KnnProbe, LinearProbe, report
from vitbackbone import ViT, evaluate, evaluating, load_backbone

Array = NDArray[np.float32]


def features(backbone: ViT, images: Tensor) -> dict[str, Array]:
    """Return three kinds of features (N, F): CLS, the mean of the patches, and their means over a 4 x 4 grid."""
    kinds: dict[str, list[Tensor]] = {"CLS": [], "patch mean": [], "patch map at 4 x 4": []}
    with evaluating(backbone):
        for batch in tqdm(images.split(250), leave=False):
            out = backbone(batch)
            kinds["CLS"].append(out.cls)
            kinds["patch mean"].append(out.patches.mean(dim=(2, 3)))
            kinds["patch map at 4 x 4"].append(F.adaptive_avg_pool2d(out.patches, 4).flatten(1))
    return {kind: torch.cat(parts).numpy() for kind, parts in kinds.items()}


def on_cifar(backbone: ViT, data: Path) -> None:
    photos, labels = read_photos(data, limit=None)
    held = np.arange(len(photos)) % HELD_OUT == HELD_OUT - 1
    y = labels.numpy()
    for kind, X in features(backbone, normalised(photos)).items():
        if kind == "patch map at 4 x 4":
            continue  # 3072 values for each of 50,000 photos
        probes = {"linear": LinearProbe(), "kNN": KnnProbe()}
        if kind == "CLS":
            del probes["kNN"]  # `by_protocol` measures it
        for name, probe in probes.items():
            result = report(probe.fit(X[~held], y[~held]), X[held], y[held])
            low, high = (100 * bound for bound in result.interval)
            accuracy = f"{100 * result.accuracy:.1f} % ({low:.1f}–{high:.1f})"
            print(f"| CIFAR-10, 5,000 held out | {name} probe, {kind} | {accuracy} |")


def by_protocol(backbone: ViT, data: Path) -> None:
    """Measure nearest neighbours on CLS by DINO's protocol."""
    table = pq.read_table(data, columns=["image", "label"])
    with tempfile.TemporaryDirectory() as scratch:
        for row, (photo, label) in enumerate(
            zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        ):
            split = "val" if row % HELD_OUT == HELD_OUT - 1 else "train"
            photo_file = Path(scratch) / "cifar10" / split / str(label) / f"{row:05}.jpg"
            photo_file.parent.mkdir(parents=True, exist_ok=True)
            photo_file.write_bytes(photo)
        side = backbone.config.image_size[0]
        settings = {"view.short": side, "view.crop": side, "fit.ks": 20}
        score = evaluate("knn", backbone, {"folder": Path(scratch) / "cifar10"}, settings=settings)["knn"].scores[0]
    low, high = score.interval or (score.value, score.value)
    print(f"| CIFAR-10, 5,000 held out | kNN probe, CLS | {score.value:.1f} % ({low:.1f}–{high:.1f}) |")


def on_digits(backbone: ViT) -> None:
    digits = load_digits()
    grey = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    large = F.interpolate(grey, size=backbone.config.image_size, mode="bicubic", antialias=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    kinds = {"raw pixels": (digits.data / 16).astype(np.float32), **features(backbone, normalised(large))}
    for kind, X in kinds.items():
        scores = cross_val_score(LinearProbe(), X, digits.target, cv=folds)
        print(f"| scikit-learn's digits, 5 folds | linear probe, {kind} | {100 * scores.mean():.1f} % |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="parquet file with the columns image and label")
    parser.add_argument("--weights", type=Path, default=None, help="weights to measure (default: the built-in ones)")
    args = parser.parse_args()
    nano = load_backbone("nano", args.weights)
    print("| data | probe | accuracy |\n| --- | --- | --- |")
    on_digits(nano)
    on_cifar(nano, args.data)
    by_protocol(nano, args.data)
