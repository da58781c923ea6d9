"""Read photos one by one, outside an extraction: the images of a command, and the source files of a store."""

import glob
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from vitbackbone.images import ImageTransform, Resolution
from vitbackbone.store.sources.archive_kinds import ARCHIVES, ending_of
from vitbackbone.store.sources.braces import has_braces
from vitbackbone.store.sources.frames import is_video
from vitbackbone.store.sources.locate import Locator, Reason, Unreadable, content_sha256, is_frame, locators, read_bytes
from vitbackbone.store.sources.names import EXTENSIONS, escaped
from vitbackbone.store.sources.remote import is_remote
from vitbackbone.store.sources.rows import Root
from vitbackbone.store.sources.source import LISTS, list_inputs
from vitbackbone.store.store import FeatureStore
from vitbackbone.store.workers.reader import ImageReader

LISTED = (*LISTS, *ARCHIVES)  # the extensions of files that hold several photos, beside videos
log = logging.getLogger("vitbackbone")


@dataclass(frozen=True, eq=False)
class ReadPhoto:
    """A photo with the path that the user knows. It has either pixels, or a reason and an error."""

    path: str
    pixels: Float[Tensor, "C H W"] | None = None  # preprocessed
    reason: Reason | None = None
    error: str | None = None


def read_photos(
    sources: Sequence[str],
    preprocess: ImageTransform,
    resolution: Resolution | None = None,
    keep_aspect: bool = False,
    max_pixels: int | None = None,
) -> Iterator[ReadPhoto]:
    """Read the photos of some sources. Photos that cannot be read have the reasons of `extract`.

    `sources`: image files, and folders, patterns, lists, archives and videos as for `list_inputs`. A source that cannot
    be listed is yielded as unreadable. `Inputs.notes` of each source are logged as warnings. `max_pixels`: as for
    `Photo`.
    """
    reader = ImageReader(preprocess, resolution, keep_aspect, "exact", max_pixels)
    for source in sources:
        try:
            found = _list(source)
        except (OSError, ValueError) as error:
            yield ReadPhoto(source, reason="unreadable", error=str(error))
            continue
        for path, at in found:
            yield _read(path, at, reader, preprocess)


def _list(source: str) -> list[tuple[str, Locator]]:
    """Return the path and the place of each photo of a source."""
    if _is_one_photo(source):
        return [(source, Locator(source))]
    inputs = list_inputs(source)
    for note in inputs.notes:
        log.warning("%s: %s", escaped(source), note)
    names = [_path(source, name, inputs.root) for name in inputs.paths]
    return list(zip(names, locators(inputs.root, inputs.table, inputs.table["bytes"].to_pylist()), strict=True))


def _is_one_photo(source: str) -> bool:
    """Tell whether a source is neither a folder, a pattern, a list, an archive nor a video."""
    if is_remote(source):
        return ending_of(source)[1:] in EXTENSIONS and not glob.has_magic(source)
    path = Path(source)
    if path.exists():
        return not path.is_dir() and not (path.is_file() and (ending_of(source) in LISTED or is_video(source)))
    return not glob.has_magic(source) and not has_braces(source)


def _path(source: str, name: str, root: Root) -> str:
    """Return the path that the user knows of an input of a source."""
    if is_remote(source) or is_remote(name):
        return root.locate(name)
    path = Path(source)
    return str((path if path.is_dir() else path.parent if path.exists() else Path()) / name)


def _read(path: str, at: Locator, reader: ImageReader, preprocess: ImageTransform) -> ReadPhoto:
    try:
        sha256 = content_sha256(at)
    except Unreadable as unreadable:
        return ReadPhoto(path, reason=unreadable.reason, error=str(unreadable))
    record, pixels = reader[at, sha256]
    if pixels is None:
        return ReadPhoto(path, reason=record.reason, error=record.error)
    return ReadPhoto(path, preprocess.normalise(pixels))


def source_files(store: FeatureStore, images: Sequence[int], folder: Path | None = None) -> list[bytes | None] | None:
    """Read the source files of some images of a store: the bytes of each, None for a file that has changed.

    `folder`: the folder of the photos. The default tries the folder that the store remembers, the store's parent
    folder, the current folder, and the folders inside both. Returns None if no file is found.
    """
    table = store.images.take(list(images))
    plan = store.table.rows.take(table["row"])
    roots = [folder] if folder is not None else [store.snapshot.root, *_near(store.directory)]
    for root in roots:
        found = [
            _unchanged(at, sha256)
            for at, sha256 in zip(
                locators(Root(str(root)), plan, plan["bytes"].to_pylist()), table["sha256"].to_pylist(), strict=True
            )
        ]
        if any(data is not None for data in found):
            return found
    return None


def _near(directory: Path) -> Iterator[Path]:
    for start in dict.fromkeys((directory.absolute().parent, Path.cwd())):
        yield start
        try:
            yield from sorted(path for path in start.iterdir() if path.is_dir() and path != directory)
        except OSError:
            continue  # a folder without permission


def _unchanged(at: Locator, sha256: str) -> bytes | None:
    try:
        data = read_bytes(at)
        found = content_sha256(at) if is_frame(at) else hashlib.sha256(data).digest()
    except Unreadable:
        return None
    return data if found.hex() == sha256 else None
