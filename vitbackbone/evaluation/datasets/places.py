"""Folders, list files and names in datasets: found as they are distributed, and never outside the dataset."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vitbackbone.evaluation.datasets.layout import LayoutError, need_file
from vitbackbone.files import read_bytes

LIST_BYTES = 64 << 20  # largest list file; KITTI's has 4 MB
PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def settle(root: Path, *folders: str) -> Path:
    """Return the first of `root/FOLDER` that exists, or `root` itself: users give the folder or the one around it."""
    return next((root / each for each in folders if (root / each).is_dir()), root)


def read_lines(root: Path, *parts: str, tree: str) -> list[str]:
    """Return the lines of a list file that are not empty. Raises `LayoutError` if it is missing or no text."""
    file = need_file(root, *parts, tree=tree)
    try:
        text = read_bytes(file, LIST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise LayoutError(f"{file} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def safe_name(name: str, where: str) -> str:
    """Return a relative path that a file of a dataset names. Raises `LayoutError` if it leads out of the dataset."""
    path = PurePosixPath(name.lstrip("/"))
    if not path.parts or ".." in path.parts or "\0" in name or "\\" in name:
        raise LayoutError(f"{where} names {name!r}; want a path inside the dataset")
    return str(path)


def list_photos(root: Path, folder: str = "") -> list[str]:
    """Return the photos of a folder, sorted by name, as paths relative to `root`."""
    place = root / folder
    if not place.is_dir():
        return []
    names = [each.name for each in place.iterdir() if each.suffix.lower() in PHOTOS and not each.name.startswith(".")]
    return [f"{folder}/{name}" if folder else name for name in sorted(names)]


def list_folders(root: Path, folder: str = "") -> list[str]:
    """Return the names of the folders in a folder, sorted."""
    place = root / folder
    if not place.is_dir():
        return []
    return sorted(each.name for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))


def need_some(found: Sequence[str], root: Path, what: str, tree: str) -> Sequence[str]:
    """Return what was found. Raises `LayoutError` if it is nothing."""
    if not found:
        raise LayoutError(f"{root} has no {what}; the official layout is {tree}")
    return found
