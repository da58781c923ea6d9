"""Write a whole export, or nothing.

An export is written into a folder next to its own. It then replaces the export before, so that no file of an older
snapshot stays. A record in it, `_export.json`, lists its files. A folder with any other file is not replaced.
"""

import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitbackbone.files import Record, beside, flush, leftovers, parse_json, private_folder, sweep_folder
from vitbackbone.store.output_folder import check_folder
from vitbackbone.store.store import FeatureStore

RECORD = "_export.json"  # readers of a folder of parquet files skip names that begin with "_"

# Each format: the module here that writes it, the library that it needs, and the extra that installs that
FORMATS: dict[str, tuple[str, str | None, str | None]] = {
    "npy": ("npy", None, None),
    "parquet": ("parquet", None, None),
    "csv": ("csv", None, None),
    "webdataset": ("webdataset", None, None),
    "zarr": ("zarr", "zarr", "zarr"),
    "hdf5": ("hdf5", "h5py", "hdf5"),
    "lance": ("lance", "lance", "lance"),
}

Writer = Callable[[FeatureStore, Path, bool], None]  # writes a store into an empty folder; whether to show progress


class _Export(Record):
    """The record of an export."""

    format: str
    snapshot: int
    files: tuple[str, ...]  # all others in the folder


def export(store: FeatureStore, format: str, out: str | PathLike[str], progress: bool = False) -> list[Path]:
    """Write a store into the folder `out`, and return the files.

    It exports the snapshot and the layer that `store` shows. Failed images are left out. The folder is there whole or
    as it was before; an older export in it is replaced.

    `npy`: `img_emb/img_emb_0.npy`, `metadata/metadata_0.parquet`, ...: arrays (n, D) of CLS tokens, as `clip inference`
    of clip-retrieval writes them. The tables have the path, label, class name, size and sha256 of each image.
    `parquet`: `00000.parquet`, ...: the same columns, and the stored tokens. `cls` is a list of D numbers, `registers`
    R such lists, and `patches` h*w such lists, with `grid` (h, w). Numbers have the dtype of the store; bfloat16
    becomes float32.
    `csv`: `00000.csv`, ...: the same columns, and `cls0`, `cls1`, ... for the CLS tokens. float32 numbers are read back
    exactly.
    `webdataset`: `00000.tar`, ...: for each image KEY.json with the columns, KEY.npy (D,), KEY.registers.npy (R, D) and
    KEY.patches.npy (h, w, D).
    `zarr`, `hdf5`: `features.zarr` (version 3), `features.h5`: an array for each column and each kind of tokens, with a
    row for each image: `cls` (N, D), `registers` (N, R, D). `patches` (L, D) has the patches of all images, one image
    after the other. Image i has rows `offsets[i]` to `offsets[i + 1]`, row-major over its `grid[i]` (h, w).
    `lance`: `features.lance`: the table of `parquet`. `registers` and `patches` are flat lists of numbers, since Lance
    has no lists of lists.

    Raises `ValueError` for an unknown format, for `npy` and `csv` if the store has no CLS tokens, for `lance` if the
    path is not UTF-8, if no image has features, and if the folder has files that no export wrote. Raises `ImportError`
    that names the extra if a library is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}; want one of {', '.join(FORMATS)}")
    if format in ("npy", "csv") and "cls" not in store.manifest["tokens"]:
        raise ValueError(f"{store.storage.url} has no CLS tokens, and {format} holds only these; export it as parquet")
    if not len(store):
        raise ValueError(
            f"no image of {store.storage.url} has features, so there is nothing to export; "
            f"FeatureStore({store.storage.url!r}).failed tells why"
        )
    write = _writer(format)
    check_folder(Path(out))
    folder = Path(out).resolve()  # what a link leads to is replaced, and the link stays
    _check_old(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in leftovers(folder):
        sweep_folder(left)
    private = beside(folder)
    with private_folder(private):
        temporary = private / folder.name
        temporary.mkdir()
        write(store, temporary, progress)
        names = _files(temporary)
        record = {"format": format, "snapshot": store.snapshot.number, "files": names}
        (temporary / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        for name in [*names, RECORD]:
            flush(temporary / name)
        _check_old(folder)  # again, because writing takes long
        _take_place(temporary, folder)
    return [Path(out) / name for name in names]


def _writer(format: str) -> Writer:
    module, library, extra = FORMATS[format]
    if library is not None:
        try:
            import_module(library)
        except ImportError as error:
            raise ImportError(
                f"the format {format} needs {library}, which is not installed; run pip install 'vitbackbone[{extra}]'"
            ) from error
    write: Writer = import_module(f"vitbackbone.store.formats.{module}").write
    return write


def _check_old(folder: Path) -> None:
    """Raise `ValueError` if a folder has files that no export wrote."""
    if not folder.exists():
        return
    found = set(_files(folder))
    try:
        known = {RECORD, *parse_json((folder / RECORD).read_bytes(), _Export, RECORD).files}
    except (FileNotFoundError, ValueError, ValidationError):
        known = set()
    strange = sorted(found - known)
    if strange:
        raise ValueError(
            f"{folder} has files that no export wrote, such as {strange[0]!r}; they would be lost. Give another folder"
        )


def _files(folder: Path) -> list[str]:
    """Return the POSIX paths of all files below a folder, sorted. A link counts as a file."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(f"{parent}/{name}")]  # noqa: PTH114
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in [*names, *links]]
    return sorted(found)


def _take_place(temporary: Path, folder: Path) -> None:
    """Put a folder in place of another. The caller removes what is at `temporary` then."""
    if not folder.exists():
        temporary.rename(folder)
    elif not _exchanged(temporary, folder):  # a system that cannot: the place is empty for a moment
        aside = beside(temporary)
        folder.rename(aside)
        temporary.rename(folder)
        aside.rename(temporary)
    flush(folder.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step, as Linux can. Return False where that is not possible."""
    if sys.platform != "linux":
        return False
    at_current, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(at_current, os.fsencode(one), at_current, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
