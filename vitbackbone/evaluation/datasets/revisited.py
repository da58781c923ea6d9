"""Revisited Oxford and Paris (Radenović et al. 2018)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitbackbone.evaluation.datasets.layout import Layout, LayoutError, need_file, need_folder, stamp
from vitbackbone.evaluation.datasets.places import safe_name, settle
from vitbackbone.evaluation.safe_pickle import read_pickle
from vitbackbone.evaluation.settings import digest


@dataclass(frozen=True, eq=False)
class Query:
    """The ground truth of a query: indices into the database, and the query's box in its photo."""

    easy: Int[np.ndarray, " _"]
    hard: Int[np.ndarray, " _"]
    junk: Int[np.ndarray, " _"]
    box: Float[np.ndarray, "4"]  # left, top, right, bottom in pixels


@dataclass(frozen=True, eq=False)
class Revisited:
    """Queries, a database, and which of its images show the query's landmark."""

    root: Path
    photos: Sequence[str]  # photos of the database, relative to `root`
    queries: Sequence[str]
    truth: Sequence[Query]

    def digest(self) -> str:
        """Return a SHA-256 of the photos and the boxes of the queries."""
        return digest(stamp(self.root, [*self.queries, *self.photos]), [each.box.tolist() for each in self.truth])


def _names(value: Any, file: Path) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise LayoutError(f"{file}: imlist and qimlist must be lists of names")
    return [f"jpg/{safe_name(each, file.name)}.jpg" for each in value]


def _indices(value: Any, count: int, file: Path) -> Int[np.ndarray, " _"]:
    """Return indices of database images. Raises `LayoutError` on anything else."""
    found = np.asarray(value).reshape(-1)
    if len(found) and (not np.issubdtype(found.dtype, np.integer) or found.min() < 0 or found.max() >= count):
        raise LayoutError(f"{file}: gnd names an image that imlist lacks")
    return found.astype(np.int64)


def _query(value: Any, count: int, file: Path) -> Query:
    if not isinstance(value, dict) or not {"easy", "hard", "junk"} <= set(value):
        raise LayoutError(f"{file}: each entry of gnd must have easy, hard and junk")
    box = np.asarray(value.get("bbx", (0, 0, 0, 0)), dtype=np.float64).reshape(-1)
    if box.shape != (4,):
        raise LayoutError(f"{file}: a query's bbx has {len(box)} numbers; want 4")
    easy, hard, junk = (_indices(value[key], count, file) for key in ("easy", "hard", "junk"))
    return Query(easy, hard, junk, box)


def _read(name: str, root: Path) -> Revisited:
    tree = f"{name}/{{gnd_{name}.pkl,jpg/}}"
    root = settle(root, name, f"datasets/{name}")
    file = need_file(root, f"gnd_{name}.pkl", tree=tree)
    need_folder(root, "jpg", tree=tree)
    try:
        content = read_pickle(file)
    except ValueError as error:
        raise LayoutError(str(error)) from error
    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= set(content):
        raise LayoutError(f"{file} must hold a dict with imlist, qimlist and gnd")
    photos, queries = _names(content["imlist"], file), _names(content["qimlist"], file)
    truth = [_query(each, len(photos), file) for each in content["gnd"]]
    if len(truth) != len(queries):
        raise LayoutError(f"{file} has {len(queries)} queries, and the ground truth of {len(truth)}")
    missing = [each for each in [*photos, *queries] if not (root / each).is_file()]
    if missing:
        raise LayoutError(f"{root} lacks {len(missing)} photos that {file.name} names, such as {missing[0]}")
    return Revisited(root, photos, queries, truth)


def read_roxford5k(root: Path) -> Revisited:
    """Read revisited Oxford."""
    return _read("roxford5k", root)


def read_rparis6k(root: Path) -> Revisited:
    """Read revisited Paris."""
    return _read("rparis6k", root)


def _counts(data: Revisited) -> Mapping[str, int]:
    return {"queries": len(data.queries), "database photos": len(data.photos)}


SOURCE = "Radenović et al. 2018"
LAYOUTS = {
    "roxford5k": Layout(
        "roxford5k",
        "landmarks",
        "revisited Oxford",
        "roxford5k/{gnd_roxford5k.pkl,jpg/}",
        read_roxford5k,
        _counts,
        {"queries": 70, "database photos": 4_993},
        SOURCE,
    ),
    "rparis6k": Layout(
        "rparis6k",
        "landmarks",
        "revisited Paris",
        "rparis6k/{gnd_rparis6k.pkl,jpg/}",
        read_rparis6k,
        _counts,
        {"queries": 70, "database photos": 6_322},
        SOURCE,
    ),
}
