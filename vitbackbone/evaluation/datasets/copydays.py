"""INRIA Copydays, copy detection (Douze et al. 2009), and folders of photos to whiten by or to distract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vitbackbone.evaluation.datasets.layout import Layout, LayoutError
from vitbackbone.evaluation.datasets.places import list_photos, need_some

TREE = "{original,strong,jpegqual/{3,5,8,10,15,20,30,50,75},crops/{10,15,20,30..80}}/"
BLOCKS = (
    "strong",
    *(f"jpegqual/{quality}" for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75)),
    *(f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80)),
)
PREFIX = 4  # characters that a strong copy has in common with its original


@dataclass(frozen=True, eq=False)
class Copies:
    """The originals and the blocks of copies that are there, as paths relative to `root`."""

    root: Path
    originals: Sequence[str]
    blocks: Mapping[str, Sequence[str]]

    def positives(self, block: str, index: int) -> list[int]:
        """Return the originals of a copy. The name of a strong copy begins like its original's; other copies have the
        index of their original."""
        if block != "strong":
            return [index]
        name = PurePosixPath(self.blocks[block][index]).name[:PREFIX]
        return [i for i, each in enumerate(self.originals) if PurePosixPath(each).name[:PREFIX] == name]


@dataclass(frozen=True, eq=False)
class Photos:
    """A folder of photos without labels."""

    root: Path
    names: Sequence[str]


def _jpegs(root: Path, folder: str) -> list[str]:
    return [each for each in list_photos(root, folder) if each.lower().endswith(".jpg")]


def read_copydays(root: Path) -> Copies:
    """Read the originals and every block that is there; `strong` must be."""
    originals = need_some(_jpegs(root, "original"), root, "photo in original/", TREE)
    blocks = {name: found for name in BLOCKS if (found := _jpegs(root, name))}
    need_some(blocks.get("strong", []), root, "photo in strong/", TREE)
    for name, found in blocks.items():
        if name != "strong" and len(found) != len(originals):
            raise LayoutError(f"{root / name} has {len(found)} photos, and original/ has {len(originals)}; want equal")
    copies = Copies(root, originals, blocks)
    orphans = [each for i, each in enumerate(blocks["strong"]) if not copies.positives("strong", i)]
    if orphans:
        raise LayoutError(f"{root}: {orphans[0]} has no original with the same first {PREFIX} characters")
    return copies


def read_photos(root: Path) -> Photos:
    """Read a folder of photos."""
    return Photos(root, need_some(list_photos(root), root, "photo", "a folder of photos"))


def _counts(data: Copies) -> Mapping[str, int]:
    return {"originals": len(data.originals), "strong": len(data.blocks["strong"]), "blocks": len(data.blocks)}


def _photo_counts(data: Photos) -> Mapping[str, int]:
    return {"photos": len(data.names)}


LAYOUTS = {
    "copydays": Layout(
        "copydays",
        "copies",
        "Copydays",
        TREE,
        read_copydays,
        _counts,
        {"originals": 157, "strong": 229, "blocks": 19},
        "Douze et al. 2009",
    ),
    "copydays-whitening": Layout(
        "copydays-whitening",
        "photos",
        "photos to learn the whitening from",
        "a folder of photos; the paper's are 20,000 of YFCC100M",
        read_photos,
        _photo_counts,
        {"photos": 20_000},
    ),
    "copydays-distractors": Layout(
        "copydays-distractors",
        "photos",
        "distractors",
        "a folder of photos; the paper's are 10,000 of YFCC100M",
        read_photos,
        _photo_counts,
        {"photos": 10_000},
    ),
}
