"""DAVIS 2017, video object segmentation (Pont-Tuset et al. 2017)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitbackbone.evaluation.datasets.layout import Layout, LayoutError, need_folder, stamp
from vitbackbone.evaluation.datasets.photos import open_stored
from vitbackbone.evaluation.datasets.places import list_photos, read_lines, safe_name, settle
from vitbackbone.evaluation.settings import digest

TREE = "{JPEGImages,Annotations}/480p/SEQUENCE/00000.{jpg,png} and ImageSets/2017/val.txt"
VOID = 255


@dataclass(frozen=True, eq=False)
class Video:
    """A video: its frames and their masks, in order."""

    root: Path
    name: str
    frames: Sequence[str]
    masks: Sequence[str]

    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        """Return the object of each pixel of a frame, 0 for the background. Void pixels are background."""
        file = self.root / self.masks[index]
        image = open_stored(file)
        if image.mode not in ("P", "L"):
            raise LayoutError(f"{file} has mode {image.mode}; want 8-bit object indices, as DAVIS's palette has them")
        stored = np.asarray(image)
        with Image.open(self.root / self.frames[index]) as frame:
            if frame.size != image.size:
                raise LayoutError(f"{file} has {image.size} pixels, and its frame {frame.size}; want equal sizes")
        return np.where(stored == VOID, 0, stored).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Videos:
    """The validation sequences."""

    root: Path
    sequences: Sequence[Video]

    def digest(self) -> str:
        """Return a SHA-256 of the frames and masks."""
        return digest([stamp(self.root, [*each.frames, *each.masks]) for each in self.sequences])


def read_davis(root: Path) -> Videos:
    """Read the validation set at 480p."""
    root = settle(root, "DAVIS")
    for folder in ("JPEGImages", "Annotations"):
        need_folder(root, folder, "480p", tree=TREE)
    found = []
    for line in read_lines(root, "ImageSets", "2017", "val.txt", tree=TREE):
        name = safe_name(line, "val.txt")
        frames = [each for each in list_photos(root, f"JPEGImages/480p/{name}") if each.lower().endswith(".jpg")]
        masks = [f"Annotations/480p/{name}/{Path(each).stem}.png" for each in frames]
        missing = [each for each in masks if not (root / each).is_file()]
        if len(frames) < 3 or missing:
            lacks = f"such as {missing[0]}" if missing else "and J&F leaves the first and the last out"
            raise LayoutError(
                f"{root}: sequence {name} has {len(frames)} frames and lacks {len(missing)} masks, {lacks}"
            )
        found.append(Video(root, name, frames, masks))
    if not found:
        raise LayoutError(f"{root}/ImageSets/2017/val.txt names no sequence; the official layout is {TREE}")
    return Videos(root, found)


def _counts(data: Videos) -> Mapping[str, int]:
    objects = sum(int(each.mask(0).max()) for each in data.sequences)
    return {
        "sequences": len(data.sequences),
        "frames": sum(len(each.frames) for each in data.sequences),
        "objects": objects,
    }


LAYOUTS = {
    "davis": Layout(
        "davis",
        "videos",
        "DAVIS 2017 validation",
        TREE,
        read_davis,
        _counts,
        {"sequences": 30, "frames": 1_999, "objects": 61},
        "Pont-Tuset et al. 2017",
    )
}
