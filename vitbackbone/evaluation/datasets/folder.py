"""Any labelled images in class folders."""

from pathlib import Path

from vitbackbone.evaluation.datasets.layout import Labelled, Layout, LayoutError, class_folders, count_labelled

TREE = "train/CLASS/* and val/CLASS/* (or test/CLASS/*)"


def read_folder(root: Path) -> Labelled:
    """Read `train/CLASS/*` and `val/CLASS/*`, or `test/CLASS/*`. Raises `LayoutError` on another layout."""
    train = class_folders(root, "train", None, TREE)
    split = next((name for name in ("val", "test") if (root / name).is_dir()), None)
    if split is None:
        raise LayoutError(f"{root} has neither val nor test; want {TREE}")
    return Labelled(train, class_folders(root, split, train.classes, TREE))


LAYOUTS = {
    "folder": Layout("folder", "classification", "your own images", TREE, read_folder, count_labelled),
}
