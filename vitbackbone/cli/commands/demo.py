"""The command `demo`: features, pictures, a feature store and a probe in a minute, offline.

It uses two photos and 1,797 handwritten digits that scikit-learn ships. The built-in backbone was not trained on them.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from vitbackbone.checkpoints import load_backbone
from vitbackbone.cli.text import escaped

if TYPE_CHECKING:
    from vitbackbone.store import FeatureStore

RESOLUTIONS = (32, 128)  # pixels of the shorter side
NEXT = """What next (after `source .venv/bin/activate` where make installed it):
  vitbackbone extract PHOTOS --model vit_small_patch14_dinov2.lvd142m --out features    your photos, a strong backbone
  vitbackbone probe features                                                            if sub-folders are classes
  vitbackbone show PHOTO --out pictures --resolution 128                                what the backbone looks at
  vitbackbone models                                                                    every backbone known by name
`nano` is a toy trained on CIFAR-10: good for trying things out, not for results."""


def run_demo(args: argparse.Namespace) -> int:
    from heads.probes.linear import LinearProbe
    from heads.probes.measures import report

    with redirect_stdout(StringIO()) if args.quiet else nullcontext():
        return _run(Path(args.out), lambda X, y, X_test, y_test: report(LinearProbe().fit(X, y), X_test, y_test))


def _run(out: Path, measure: Callable[..., Any]) -> int:
    """Write pictures and features into `out`, print every step, and return the exit code.

    `measure(X, y, X_test, y_test)` fits a probe and returns its report.
    """
    began = time.perf_counter()
    backbone = load_backbone("nano")
    spec = backbone.spec
    print(f"nano: {spec.depth} blocks of width {spec.dim}, patches of {spec.stride} x {spec.stride} pixels\n")
    _photos(backbone, out)
    _digits(backbone, out, measure)
    print(f"\nDone in {time.perf_counter() - began:.0f} s.\n\n{NEXT}")
    return 0


def _photos(backbone: Any, out: Path) -> None:
    from sklearn.datasets import load_sample_images

    from vitbackbone.inspection import show

    print("1. Features of two photos at two resolutions")
    for array, file in zip(*(load_sample_images()[key] for key in ("images", "filenames")), strict=True):
        name, photo = Path(file).stem, Image.fromarray(array)
        for resolution in RESOLUTIONS:
            pixels = backbone.preprocess(photo, resolution, keep_aspect=True)
            with torch.inference_mode():
                features = backbone(pixels[None])
            print(
                f"   {name:<8} {pixels.shape[1]:>4} x {pixels.shape[2]:<4} pixels -> cls {tuple(features.cls.shape)}, "
                f"patches {tuple(features.patches.shape)}"
            )
        pictures = show(backbone, photo, out / name, resolution=RESOLUTIONS[-1])
    print(f"   pictures: {escaped(str(out))}/*/overview.png and {len(pictures) - 1} more of each photo\n")


def _digits(backbone: Any, out: Path, measure: Callable[..., Any]) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from vitbackbone.store import extract

    print("2. A folder of 1,797 digits, 8 x 8 pixels each, to a feature store")
    digits = load_digits()
    folder = out / "digits"
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels / 16 * 255)).save(path)
    shutil.rmtree(out / "digits-features", ignore_errors=True)  # another version may have made it
    store: FeatureStore = extract(backbone, folder, out / "digits-features", tokens=("cls", "patches"), batch_size=64)
    where = escaped(str(out / "digits-features"))
    print(f"   {where}: {len(store)} images, {len(store.failed)} failed, cls {store.cls.shape}\n")

    print("3. A linear probe: trained on one half, measured on the other")
    rows = [int(Path(path).stem) for path in store.paths]
    raw = digits.data[rows] / 16
    maps = torch.from_numpy(np.stack([store.patches(i) for i in range(len(store))]))
    halves = train_test_split(np.arange(len(rows)), test_size=0.5, random_state=0, stratify=store.labels)
    for what, X in [
        ("raw pixels", raw.astype(np.float32)),
        ("nano, CLS", store.cls),
        ("nano, patch map at 4 x 4", F.adaptive_avg_pool2d(maps, 4).flatten(1).numpy()),
    ]:
        fit, test = halves
        result = measure(X[fit], store.labels[fit], X[test], store.labels[test])
        low, high = result.interval
        print(f"   {what:<26} {100 * result.accuracy:5.1f} %   (95% interval {100 * low:.1f} to {100 * high:.1f})")
