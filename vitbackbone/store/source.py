"""List a source, which is a folder, a glob, a list or archives of images, as paths and labels."""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path

import pyarrow as pa

from vitbackbone.store.archive import WHOLE, Archive, ArchiveMember, damaged_member
from vitbackbone.store.folder import Walk, expand, images
from vitbackbone.store.labels import UNKNOWN, Label, LabelError
from vitbackbone.store.lists import add_csv, add_parquet
from vitbackbone.store.names import EXTENSIONS, escaped
from vitbackbone.store.parquet import Parquet, has_images
from vitbackbone.store.rows import Inputs, Rows
from vitbackbone.store.tar import Tar
from vitbackbone.store.zip import Zip

ARCHIVES: dict[str, Callable[[Path], Archive]] = {".tar": Tar, ".zip": Zip, ".parquet": Parquet}
LISTS: dict[str, Callable[[Rows, Path, str], None]] = {".csv": add_csv, ".parquet": add_parquet}
COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lzma|Z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
WANTED = (
    "want a folder of images, a glob such as 'photos/**/*.jpg', a .csv or .parquet list with a column 'path', or "
    f"an archive of images ({', '.join(ARCHIVES)}) or a glob of several such as 'shards/*.tar'"
)


def list_inputs(source: str | PathLike[str]) -> Inputs:
    """List the images of a folder, a glob, lists or archives. Images that cannot be read are listed too.

    - Folder: all images below it, sorted. The extension tells an image; for an unknown extension the content does.
      Classes are the first-level sub-folders. Hidden files and feature stores are skipped. Links are followed, except
      in circles.
    - Glob: all images that it matches, sorted, without labels. `**` is any depth.
    - Lists, `.csv` or `.parquet`, one or a glob of several: the rows in their order. Labels come from the column
      `label`, if it exists. Names are sorted into classes. Whole numbers are class indices. Empty or -1 is unknown.
      Relative paths start at the list's folder.
    - Archives, one or a glob of several: `.tar`, `.zip`, and `.parquet` with a column of images. They are sorted by
      name, and each keeps its own order. Classes are the archive's labels, else its folders, as if it were unpacked. A
      damaged place is listed as an image that cannot be read.

    `Inputs.notes` describes files that were left out. Raises `ValueError` if the source does not exist, is none of
    these or has no image, or if labels contradict each other. Raises `OSError` if the source cannot be read.
    """
    text = os.fspath(source)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ValueError(f"{text} is an address; copy the images to this machine, or mount them as a folder")
    if Path(text).is_dir():
        inputs = _from_folder(Path(text))
    elif Path(text).exists():
        inputs = _from_files(Path(text).absolute().parent, [Path(text).name], text)
    elif glob.has_magic(text):
        inputs = _from_glob(text)
    else:
        raise ValueError(f"{text}: no such file or folder; {WANTED}")
    if not len(inputs):
        said = "".join(f"\n  {note}" for note in inputs.notes)
        endings = ", ".join(sorted(EXTENSIONS))
        raise ValueError(f"{text}: found no image there; {WANTED}. Extensions of images: {endings}{said}")
    return inputs


def _from_folder(folder: Path) -> Inputs:
    rows = Rows()
    for path in images(Walk(folder, rows.notes).files(), folder, rows.notes):
        rows.add(path, path.split("/", 1)[0] if "/" in path else None)
    return rows.inputs(folder.absolute())


def _from_glob(pattern: str) -> Inputs:
    rows = Rows()
    found = expand(pattern, rows.notes)
    tables = [path for path in found if _ending(path) in (*ARCHIVES, *LISTS) and Path(path).is_file()]
    if found and all(COMPRESSED.search(path) for path in found):
        raise ValueError(f"{pattern}: these archives are compressed; unpack them to plain .tar files")
    if tables and (len(tables) == len(found) or _ending(pattern) in (*ARCHIVES, *LISTS)):
        return _from_files(Path.cwd(), tables, pattern)
    for path in images(iter(found), Path(), rows.notes):
        rows.add(path)
    return rows.inputs(Path.cwd())


def _from_files(root: Path, files: Sequence[str], source: str) -> Inputs:
    """List archives or lists. `source`: the user's name for them, for errors."""
    rows = Rows()
    is_list = [_is_list(root / file) for file in files]
    if any(is_list) and not all(is_list):
        ours, other = files[is_list.index(True)], files[is_list.index(False)]
        raise ValueError(f"{source}: {ours} is a list of images and {other} is an archive; give them one by one")
    if not any(is_list):
        return _from_archives(rows, root, files, source)
    for file in files:
        try:
            folder = os.path.dirname(file)  # noqa: PTH120  # Path.parent would be "." for no folder
            LISTS[_ending(file)](rows, root / file, folder)
        except ValueError as error:
            raise ValueError(f"{source if len(files) == 1 else file}: {error}") from error
    return rows.inputs(root)


def _ending(path: str) -> str:
    return Path(path).suffix.lower()


def _is_list(file: Path) -> bool:
    """Tell whether a file is a list, else an archive. Raises `ValueError` if it is neither."""
    if not file.is_file():
        raise ValueError(f"{file} is neither a file nor a folder; {WANTED}")
    if COMPRESSED.search(file.name):
        raise ValueError(f"{file} is compressed; unpack it to a plain .tar")
    ending = _ending(file.name)
    if ending not in (*ARCHIVES, *LISTS):
        raise ValueError(f"{file} is neither a list nor an archive of images; {WANTED}")
    try:
        return ending in LISTS and (ending not in ARCHIVES or not has_images(file))
    except (OSError, ValueError):
        return False  # the archive's reader raises the error


def _from_archives(rows: Rows, root: Path, files: Sequence[str], source: str) -> Inputs:
    names = _ClassNames()
    images, damages = 0, list[str]()
    for file in files:
        for member in _members(rows, names, root, file):
            images += member.damage is None
            if member.damage is not None:
                damages.append(member.damage)
                rows.notes.say("damaged archives", f"{escaped(file)}: {escaped(member.damage)}")
            rows.add(member.name, names.label(member, file), file, member.offset, member.bytes)
    names.check()
    if damages and not images:
        raise ValueError(f"{source}: found no image there: {'; '.join(damages[:3])}")
    return rows.inputs(root, names.all)


def _members(rows: Rows, names: "_ClassNames", root: Path, file: str) -> Iterator[ArchiveMember]:
    """Yield the members of an archive. An archive that cannot be listed is one damaged member."""
    archive = ARCHIVES[_ending(file)](root / file)
    try:
        names.begin(file, archive.class_names())
        before = len(rows)
        yield from archive.members(rows.notes)
        if len(rows) == before:
            rows.notes.say("archives without images", escaped(file))
    except LabelError as error:
        raise LabelError(f"{file}: {error}") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        yield damaged_member(-1, f"the archive {text}" if text.startswith("is ") else text, WHOLE)


class _ClassNames:
    """The class names of several archives. Each archive may number its classes in another order."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._own: list[str] = []
        self._index: list[int] = []  # of each of the archive's names in `all`
        self._reordered: str | None = None  # an archive that numbers its classes in another order
        self._nameless: str | None = None  # an archive with numbers and without class names

    def begin(self, file: str, names: list[str]) -> None:
        """Begin the next archive. `names`: its class names; empty if it has none."""
        self._own = names
        if names and names[: len(self.all)] == self.all:
            self.all = list(names)
        if names == self.all[: len(names)]:
            self._index = list(range(len(names)))
            return
        self._reordered = file
        self.all += [name for name in dict.fromkeys(names) if name not in self.all]
        self._index = [self.all.index(name) for name in names]

    def label(self, member: ArchiveMember, file: str) -> Label:
        """Return the label of a member. A whole number becomes an index into `all`."""
        label = member.label
        if not isinstance(label, int) or label == UNKNOWN:
            return label
        if not self._own:
            self._nameless = file
            return label
        if not 0 <= label < len(self._own):
            raise LabelError(
                f"{file}, row {member.offset}: label {label}; the file names {len(self._own)} classes, so want "
                f"0 to {len(self._own) - 1}"
            )
        return self._index[label]

    def check(self) -> None:
        """Raise `LabelError` if the class of some number is ambiguous."""
        if self._reordered and self._nameless:
            raise LabelError(
                f"{self._nameless} has numbers as labels and no class names, and {self._reordered} numbers its "
                "classes in another order than the archives before it; add class names to each archive"
            )
