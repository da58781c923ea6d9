"""Compare probes on the frozen features of a folder of photos, whose sub-folders are the classes.

    python examples/probe.py                                  # on scikit-learn's handwritten digits, offline
    python examples/probe.py photos --backbone vit_small_patch14_dinov2.lvd142m --out features

`LinearProbe` and `KnnProbe` read CLS, or the mean of the patches if there is no CLS. `AttentiveProbe` reads every
patch. Each is fitted on four fifths of every class and measured on the rest, and copies of a photo stay together.
Features are stored in OUT, and reused the next time.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from heads import AttentiveProbe, KnnProbe, LinearProbe, Report, hold_out, report
from vitbackbone import FeatureStore, extract, load_backbone
from vitbackbone.store import copies


def draw_digits(folder: Path) -> Path:
    """Write scikit-learn's 1,797 handwritten digits, 8 x 8 pixels each, to sub-folders by digit."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels / 16 * 255)).save(path)
    return folder


def features(store: FeatureStore) -> Any:
    """Return one vector for each image (N, D)."""
    if "cls" in store.manifest["tokens"]:
        return store.cls
    return np.stack([tokens.mean(axis=0) for tokens in store.tokens])


def compare(store: FeatureStore, epochs: int) -> dict[str, Report]:
    """Measure each probe on photos that it was not fitted on."""
    known = np.flatnonzero(store.labels >= 0)
    if len(known) < len(store):
        print(f"{len(store) - len(known)} photos have no class; they are left out", file=sys.stderr)
    y, vectors, tokens = store.labels[known], features(store)[known], store.tokens[known]
    test = hold_out(y, 0.2, groups=copies(store)[known])
    probes = {
        "linear": (LinearProbe(), vectors),
        "knn": (KnnProbe(), vectors),
        "attentive, V-JEPA": (AttentiveProbe("vjepa", epochs=epochs), tokens),
        "attentive, AIM": (AttentiveProbe("aim", epochs=epochs), tokens),
    }
    return {
        name: report(probe.fit(X[~test], y[~test]), X[test], y[test], store.class_names)
        for name, (probe, X) in probes.items()
    }


def main(arguments: list[str] | None = None) -> dict[str, Report]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", help="folder whose sub-folders are classes (default: digits)")
    parser.add_argument("--backbone", default="nano", help="a backbone, as for load_backbone (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the features (default: a temporary one)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the attentive probes (default: %(default)s)")
    args = parser.parse_args(arguments)
    backbone = load_backbone(args.backbone)
    with tempfile.TemporaryDirectory() as scratch:
        photos = args.photos or draw_digits(Path(scratch) / "digits")
        tokens = ("cls", "patches") if backbone.spec.has_cls else ("patches",)
        store = extract(backbone, photos, args.out or Path(scratch) / "features", tokens=tokens)
        reports = compare(store, args.epochs)
    print(f"\n{'probe':<18}  accuracy  95 % interval      worst class")
    for name, each in reports.items():
        (low, high), worst = each.interval, min(each.classes, key=lambda row: row.recall)
        print(f"{name:<18}  {each.accuracy:8.4f}  {low:.4f} to {high:.4f}  {worst.name} ({worst.recall:.4f})")
    return reports


if __name__ == "__main__":
    main()
