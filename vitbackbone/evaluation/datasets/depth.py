"""Depth datasets: NYU Depth v2 as BTS prepared it, and KITTI's Eigen split."""

from collections.abc import Callable, Mapping
from pathlib import Path

from vitbackbone.evaluation.datasets.layout import Layout, LayoutError
from vitbackbone.evaluation.datasets.pairs import Depths, Pairs, paired
from vitbackbone.evaluation.datasets.places import read_lines, safe_name, settle

NYU_TREE = "nyu_{train,test}.txt with `/SCENE/rgb.jpg /SCENE/depth.png FOCAL` a line, and SCENE/"
KITTI_TREE = "kitti_eigen_{train,test}.txt, input/ and gt_depth/"
NYU_SCALE, KITTI_SCALE = 1000.0, 256.0  # stored values of a metre


def _split(root: Path, file: str, folders: tuple[str, str], tree: str) -> Pairs:
    """Return the pairs of a list file. Lines whose depth is `None` are dropped."""
    photos: list[str] = []
    depths: list[str] = []
    for line in read_lines(root, file, tree=tree):
        fields = line.split()
        if len(fields) < 2:
            raise LayoutError(f"{root / file} has the line {line[:80]!r}; want a photo, its depth and a focal length")
        if fields[1] == "None":
            continue
        for found, name, folder in zip((photos, depths), fields[:2], folders, strict=True):
            found.append(folder + safe_name(name, file))
    return paired(root, photos, depths, file, tree)


def read_nyu(root: Path) -> Depths:
    """Read NYU Depth v2: 16-bit millimetres."""
    root = settle(root, "nyu")
    train, test = (_split(root, f"nyu_{each}.txt", ("", ""), NYU_TREE) for each in ("train", "test"))
    return Depths(train, test, NYU_SCALE)


def read_kitti(root: Path) -> Depths:
    """Read KITTI: 16-bit values of 1/256 m, sparse."""
    root, folders = settle(root, "kitti"), ("input/", "gt_depth/")
    train, test = (_split(root, f"kitti_eigen_{each}.txt", folders, KITTI_TREE) for each in ("train", "test"))
    return Depths(train, test, KITTI_SCALE)


def _counts(data: Depths) -> Mapping[str, int]:
    return {"training photos": len(data.train), "test photos": len(data.test)}


def _layout(
    name: str, title: str, tree: str, read: Callable[[Path], Depths], train: int, test: int, source: str
) -> Layout:
    official = {"training photos": train, "test photos": test}
    return Layout(name, f"depth-{name}", title, tree, read, _counts, official, source)


BTS = "Silberman et al. 2012, as prepared by BTS (Lee et al. 2019)"
EIGEN = "Geiger et al. 2013; Eigen et al. 2014"
LAYOUTS = {
    "nyu": _layout("nyu", "NYU Depth v2", NYU_TREE, read_nyu, 24_231, 654, BTS),
    "kitti": _layout("kitti", "KITTI, Eigen split", KITTI_TREE, read_kitti, 23_158, 652, EIGEN),
}
