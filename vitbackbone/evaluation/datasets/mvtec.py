"""MVTec AD, anomaly detection (Bergmann et al. 2019)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from vitbackbone.evaluation.datasets.layout import Layout, LayoutError, need_folder, stamp
from vitbackbone.evaluation.datasets.photos import open_stored
from vitbackbone.evaluation.datasets.places import list_folders, list_photos, settle
from vitbackbone.evaluation.settings import digest

TREE = "CATEGORY/{train/good,test/{good,DEFECT},ground_truth/DEFECT/NNN_mask.png}"


@dataclass(frozen=True, eq=False)
class Category:
    """The photos of one category. A defect-free test photo has no mask."""

    root: Path
    name: str
    train: Sequence[str]
    test: Sequence[str]
    masks: Sequence[str | None]

    def mask(self, index: int, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
        """Return the defective pixels of a test photo of (H, W) pixels."""
        name = self.masks[index]
        if name is None:
            return np.zeros(size, dtype=bool)
        file = self.root / name
        mask = np.asarray(open_stored(file).convert("L")) > 0
        if mask.shape != size:
            raise LayoutError(f"{file} has {mask.shape} pixels, and its photo {size}; want equal sizes")
        return mask

    def digest(self) -> str:
        """Return a SHA-256 of the photos and masks."""
        return digest(self.name, stamp(self.root, [*self.train, *self.test, *filter(None, self.masks)]))


@dataclass(frozen=True, eq=False)
class Anomalies:
    """The categories, sorted by name."""

    categories: Sequence[Category]

    def digest(self) -> str:
        """Return a SHA-256 of the categories."""
        return digest([each.digest() for each in self.categories])


def _category(root: Path, name: str) -> Category:
    train = list_photos(root, f"{name}/train/good")
    test: list[str] = []
    masks: list[str | None] = []
    for kind in list_folders(root, f"{name}/test"):
        photos = list_photos(root, f"{name}/test/{kind}")
        test += photos
        if kind == "good":
            masks += [None] * len(photos)
        else:
            masks += [f"{name}/ground_truth/{kind}/{Path(each).stem}_mask.png" for each in photos]
    missing = [each for each in masks if each is not None and not (root / each).is_file()]
    if missing:
        raise LayoutError(f"{root} lacks {len(missing)} masks of {name}, such as {missing[0]}")
    if not train or None not in masks or len({each is None for each in masks}) < 2:
        raise LayoutError(
            f"{root / name} needs defect-free photos in train/good and test/good, and defective ones in test/"
        )
    return Category(root, name, train, test, masks)


def read_mvtec(root: Path) -> Anomalies:
    """Read every category that is there."""
    root = settle(root, "mvtec_anomaly_detection", "mvtec")
    names = [each for each in list_folders(root) if (root / each / "train").is_dir()]
    if not names:
        need_folder(root, "CATEGORY", "train", tree=TREE)
    return Anomalies([_category(root, name) for name in names])


def _counts(data: Anomalies) -> Mapping[str, int]:
    masks = [mask for each in data.categories for mask in each.masks]
    return {
        "categories": len(data.categories),
        "training photos": sum(len(each.train) for each in data.categories),
        "defect-free test photos": masks.count(None),
        "defective test photos": len(masks) - masks.count(None),
    }


LAYOUTS = {
    "mvtec": Layout(
        "mvtec",
        "anomalies",
        "MVTec AD",
        TREE,
        read_mvtec,
        _counts,
        {"categories": 15, "training photos": 3_629, "defect-free test photos": 467, "defective test photos": 1_258},
        "Bergmann et al. 2019",
    )
}
