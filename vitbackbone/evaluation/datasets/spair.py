"""SPair-71k, semantic correspondence (Min et al. 2019)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vitbackbone.evaluation.datasets.layout import Layout, LayoutError, need_folder, stamp
from vitbackbone.evaluation.datasets.places import read_lines, safe_name, settle
from vitbackbone.evaluation.settings import digest
from vitbackbone.files import read_bytes

TREE = "SPair-71k/{JPEGImages/CATEGORY/,PairAnnotation/test/*.json,Layout/large/test.txt}"
JSON_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Pair:
    """Two photos of a category, and the keypoints (x, y) in pixels that both show."""

    name: str
    category: str
    source: str  # photos, relative to the dataset
    target: str
    source_points: Float[np.ndarray, "K 2"]
    target_points: Float[np.ndarray, "K 2"]
    box: Float[np.ndarray, "4"]  # box of the object in the target: left, top, right, bottom

    @property
    def size(self) -> float:
        """Longer side of the target's box, to which PCK is relative."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))


@dataclass(frozen=True, eq=False)
class Correspondences:
    """The test pairs of SPair-71k, in the order of its list."""

    root: Path
    pairs: Sequence[Pair]

    @property
    def categories(self) -> list[str]:
        return sorted({each.category for each in self.pairs})

    def digest(self) -> str:
        """Return a SHA-256 of the pairs, their keypoints and their photos."""
        photos = sorted({photo for pair in self.pairs for photo in (pair.source, pair.target)})
        pairs = [[p.name, p.source_points.tolist(), p.target_points.tolist(), p.box.tolist()] for p in self.pairs]
        return digest(pairs, stamp(self.root, photos))


def _points(value: Any) -> Float[np.ndarray, "K 2"]:
    points = np.asarray(value, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError("keypoints must be pairs of numbers")
    return points


def _pair(root: Path, name: str) -> Pair:
    file = root / "PairAnnotation" / "test" / f"{name}.json"
    try:
        record = json.loads(read_bytes(file, JSON_BYTES))
        folder = "JPEGImages/" + safe_name(record["category"], file.name) + "/"
        source, target = (folder + safe_name(record[key], file.name) for key in ("src_imname", "trg_imname"))
        points = _points(record["src_kps"]), _points(record["trg_kps"])
        if len(points[0]) != len(points[1]):
            raise ValueError(f"it has {len(points[0])} source and {len(points[1])} target keypoints")
        box = np.asarray(record["trg_bndbox"], dtype=np.float64).reshape(4)
    except FileNotFoundError:
        raise LayoutError(f"{root} lacks {file.relative_to(root)}; the official layout is {TREE}") from None
    except LayoutError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LayoutError(f"{file} is not a pair of SPair-71k: {error}") from error
    return Pair(name, record["category"], source, target, *points, box)


def read_spair(root: Path) -> Correspondences:
    """Read the test pairs."""
    root = settle(root, "SPair-71k")
    need_folder(root, "JPEGImages", tree=TREE)
    names = [safe_name(each, "test.txt") for each in read_lines(root, "Layout", "large", "test.txt", tree=TREE)]
    pairs = [_pair(root, name) for name in names]
    if not pairs:
        raise LayoutError(f"{root}/Layout/large/test.txt names no pair; the official layout is {TREE}")
    missing = sorted({p for pair in pairs for p in (pair.source, pair.target) if not (root / p).is_file()})
    if missing:
        raise LayoutError(f"{root} lacks {len(missing)} photos of its pairs, such as {missing[0]}")
    return Correspondences(root, pairs)


def _counts(data: Correspondences) -> Mapping[str, int]:
    return {"test pairs": len(data.pairs), "categories": len(data.categories)}


LAYOUTS = {
    "spair": Layout(
        "spair",
        "correspondences",
        "SPair-71k",
        TREE,
        read_spair,
        _counts,
        {"test pairs": 12_234, "categories": 18},
        "Min et al. 2019",
    )
}
