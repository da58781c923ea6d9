"""List a source, which is a folder, a glob, a list or archives of images, as paths and labels."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path

import pyarrow as pa

from vitbackbone.files import ServiceDown, Stored
from vitbackbone.images import Sampling
from vitbackbone.store.sources.archive import WHOLE, Archive, ArchiveMember, damaged_member
from vitbackbone.store.sources.archive_kinds import ARCHIVES, ending_of
from vitbackbone.store.sources.braces import expand_braces, has_braces
from vitbackbone.store.sources.folder import Walk, expand, images
from vitbackbone.store.sources.frames import is_video, with_frames
from vitbackbone.store.sources.labels import UNKNOWN, Label, LabelError
from vitbackbone.store.sources.lists import add_csv, add_parquet, add_text
from vitbackbone.store.sources.names import EXTENSIONS, Notes, escaped
from vitbackbone.store.sources.parquet import has_images
from vitbackbone.store.sources.prefix import below, hint, images_of, matching
from vitbackbone.store.sources.remembered import Remembered
from vitbackbone.store.sources.remote import Remote, is_remote, open_file, split, version_of
from vitbackbone.store.sources.rows import Inputs, Root, Rows

LISTS: dict[str, Callable[[Rows, str, str, bool], None]] = {
    ".csv": add_csv,
    ".parquet": add_parquet,
    ".txt": add_text,
}
EVERY_FRAME = Sampling()
AT_ONCE = 16  # remote archives that are listed at once
COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lzma|Z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
BROKEN = re.compile(r"^(s3|gs|az|hf|https?):/(?!/)", re.IGNORECASE)  # a URL that became a `Path`
WANTED = (
    "want a folder of images, a glob such as 'photos/**/*.jpg', a .csv or .parquet list with a column 'path' or 'url', "
    f"an archive of images ({', '.join(ARCHIVES)}) or a pattern of several such as 'shards/*.tar', or one of these in "
    "a bucket (s3://, gs://, az://)"
)


def list_inputs(
    source: str | PathLike[str], *, allow_private_urls: bool = False, sampling: Sampling = EVERY_FRAME
) -> Inputs:
    """List the images of a folder, a glob, lists or archives. Images that cannot be read are listed too.

    - Folder: all images below it, sorted. The extension tells an image; for an unknown extension the content does.
      Classes are the first-level sub-folders. Hidden files and feature stores are skipped. Links are followed, except
      in circles.
    - Glob: all images that it matches, sorted, without labels. `**` is any depth. Braces as in
      `shard-{000000..000099}.tar` stand for all their names, in their order.
    - Lists, `.csv` or `.parquet`, one or a glob of several: the rows in their order. The column `path` holds paths,
      which start at the list's folder if they are relative, or the column `url` holds URLs. Labels come from the
      column `label`, if it exists. Names are sorted into classes. Whole numbers are class indices. Empty or -1 is
      unknown. A `.txt` holds a URL a line.
    - Archives, one or a glob of several: `.tar`, `.zip`, and `.parquet` with a column of images. They are sorted by
      name, and each keeps its own order. Classes are the archive's labels, else the folders
      below the one that holds all its images. A damaged place is listed as an image that cannot be read.

    A video (.mp4, .mov, .mkv, .webm, .ts and so on) is listed by its frames, whether it is named by any of these,
    alone, or in a `.tar` or `.zip`. A video that cannot be listed is one input that cannot be read.

    All of these may also be in a bucket: `s3://BUCKET/PREFIX` (also `gs://`, `az://`) is a folder, and globs, lists and
    archives are named likewise. `hf://datasets/OWNER/NAME` stands for the parquet files, else the archives, of a data
    set of the Hugging Face Hub. A list or an archive may also be at `https://`.

    `sampling`: the frames of a video that are listed; all by default.
    `allow_private_urls`: whether addresses of the web may belong to this machine or to a private network.

    `Inputs.notes` describes files that were left out. Raises `ValueError` if the source does not exist, is not one of
    these or has no image, or if labels contradict each other. Raises `OSError` if the source cannot be read.
    """
    return list_source(source, allow_private_urls, sampling)


def list_source(
    source: str | PathLike[str], private: bool, sampling: Sampling, remembered: Callable[[], Remembered] | None = None
) -> Inputs:
    """List a source as `list_inputs` does. `remembered`: gives the last listing, for archives that have not changed."""
    text = os.fspath(source)
    if not text:
        raise ValueError(f"the source is empty; {WANTED}")
    if not Path(text).exists():
        text = BROKEN.sub(r"\1://", text)
    found = _from_remote(text, private) if is_remote(text) else _from_disk(text, private)
    inputs = found if isinstance(found, Inputs) else _list_archives(found, remembered)
    if not len(inputs):
        said = "".join(f"\n  {note}" for note in inputs.notes)
        endings = ", ".join(sorted(EXTENSIONS))
        raise ValueError(f"{text}: found no image there; {WANTED}. Extensions of images: {endings}{said}")
    return with_frames(inputs, sampling)


def _from_disk(text: str, private: bool) -> "Inputs | _Archives":
    if Path(text).is_dir():
        return _from_folder(Path(text))
    if Path(text).is_file() and is_video(text):
        rows = Rows()
        rows.add(Path(text).name)
        return rows.inputs(Root(str(Path(text).absolute().parent), private))
    if Path(text).exists():
        return _from_files(Root(str(Path(text).absolute().parent), private), [Path(text).name], text)
    if has_braces(text) or glob.has_magic(text):
        return _from_patterns(text, private)
    raise ValueError(f"{text}: no such file or folder; {WANTED}")


def _from_folder(folder: Path) -> Inputs:
    rows = Rows()
    for path in images(Walk(folder, rows.notes).files(), folder, rows.notes):
        rows.add(path, _first_folder(path))
    return rows.inputs(Root(str(folder.absolute())))


def _first_folder(path: str) -> str | None:
    return path.split("/", 1)[0] if "/" in path else None


def _from_patterns(text: str, private: bool) -> "Inputs | _Archives":
    rows, found = Rows(), list[str]()
    for pattern in expand_braces(text):
        found += expand(pattern, rows.notes) if glob.has_magic(pattern) else [pattern]
    root = Root(str(Path.cwd()), private)
    files = _are_files(text, [path for path in found if not Path(path).is_dir()])
    if files:
        return _from_files(root, files, text)
    for path in images(iter(found), Path(), rows.notes):
        rows.add(path)
    return rows.inputs(root)


def _are_files(pattern: str, found: Sequence[str]) -> list[str]:
    """Return the lists or archives that a pattern names; none if it names images."""
    if found and all(COMPRESSED.search(path) for path in found):
        raise ValueError(f"{pattern}: these archives are compressed; unpack them to plain .tar files")
    files = [path for path in found if ending_of(path) in (*ARCHIVES, *LISTS)]
    named = ending_of(pattern) in (*ARCHIVES, *LISTS)
    return files if len(files) == len(found) or named else []


def _from_remote(url: str, private: bool) -> "Inputs | _Archives":
    try:
        service, key = split(url, private)
        if url.startswith(("http://", "https://")):
            start, _, name = url.rpartition("/")
            return _from_files(Root(start, private), [name], url)
        if COMPRESSED.search(key):
            raise ValueError(f"{url} is compressed; unpack it to a plain .tar")
        root = Root(url[: len(url) - len(key)], private)
        if has_braces(key) or glob.has_magic(key):
            return _from_keys(root, service, key, url)
        if ending_of(key) in (*ARCHIVES, *LISTS):
            folder, _, name = url.rpartition("/")
            return _from_files(Root(folder, private), [name], url)
        if is_video(key):
            rows = Rows()
            rows.add(key)
            return rows.inputs(root)
        return _from_prefix(root, service, key, url)
    except LabelError:
        raise
    except ValueError as error:
        raise error if url in str(error) else ValueError(f"{url}: {error}") from error
    except OSError as error:
        raise error if error.filename else OSError(error.errno, error.strerror or str(error), url) from error


def _from_keys(root: Root, service: Remote, pattern: str, source: str) -> "Inputs | _Archives":
    """List the keys of a pattern of a bucket. A million keys of images are streamed."""
    ones = (matching(service, one) if glob.has_magic(one) else [Stored(one, -1, "")] for one in expand_braces(pattern))
    found, begin = chain.from_iterable(ones), list[Stored]()
    named = ending_of(pattern) in (*ARCHIVES, *LISTS)
    for stored in found:
        begin.append(stored)
        if not (named or ending_of(stored.key) in (*ARCHIVES, *LISTS) or COMPRESSED.search(stored.key)):
            break  # they are images
    files = _are_files(pattern, [stored.key for stored in begin])
    if files:
        return _from_files(root, files, source)
    rows = Rows()
    for stored in images_of(service, chain(begin, found), rows.notes):
        rows.add(stored.key, size=stored.size, version=stored.version or None)  # a name of braces was not listed
    return rows.inputs(root)


def _from_prefix(root: Root, service: Remote, key: str, url: str) -> "Inputs | _Archives":
    """List a folder of a bucket, or the files of a data set."""
    prefix = f"{key.rstrip('/')}/" if key else ""
    rows, here = Rows(), Root(url.rstrip("/"), root.private)
    if url.startswith("hf://"):
        names = [stored.key[len(prefix) :] for stored in below(service, prefix)]
        of_kind = [[name for name in names if ending_of(name) == ending] for ending in (".parquet", ".tar", ".zip")]
        files = next((some for some in of_kind if some), [])
        if files:
            return _from_files(here, files, url)
    found = below(service, prefix)
    for stored in images_of(service, found, rows.notes):
        path = stored.key[len(prefix) :]
        rows.add(path, _first_folder(path), size=stored.size, version=stored.version)
    if not len(rows):
        raise ValueError(f"found no image below {url}{hint(service, url, key)}; {WANTED}")
    return rows.inputs(here)


def _from_files(root: Root, files: Sequence[str], source: str) -> "Inputs | _Archives":
    """Return the inputs of lists, or archives to list. `source`: the user's name for them, for errors."""
    rows = Rows()
    is_list = [_is_list(root.locate(file), root.private, len(files) > 1) for file in files]
    if any(is_list) and not all(is_list):
        ours, other = files[is_list.index(True)], files[is_list.index(False)]
        raise ValueError(f"{source}: {ours} is a list of images and {other} is an archive; give them in separate runs")
    if not any(is_list):
        return _Archives(root, files, source)
    for file in files:
        try:
            folder = os.path.dirname(file)  # noqa: PTH120  # Path.parent would be "." for no folder
            LISTS[ending_of(file)](rows, root.locate(file), folder, root.private)
        except ValueError as error:
            raise ValueError(f"{source if len(files) == 1 else file}: {error}") from error
    return rows.inputs(root)


def _is_list(file: str, private: bool, of_several: bool) -> bool:
    """Tell whether a file is a list, else an archive. Raises `ValueError` if it is neither.

    `of_several`: whether the file is one archive of several. If it is missing, its row says so.
    """
    if not is_remote(file) and not Path(file).is_file() and (not of_several or Path(file).exists()):
        raise ValueError(f"{file} is neither a file nor a folder; {WANTED}")
    if COMPRESSED.search(file):
        raise ValueError(f"{file} is compressed; unpack it to a plain .tar")
    ending = ending_of(file)
    if ending not in (*ARCHIVES, *LISTS):
        raise ValueError(f"{file} is neither a list nor an archive of images; {WANTED}")
    try:
        return ending in LISTS and (ending not in ARCHIVES or not has_images(file, private))
    except (OSError, ValueError):
        return False  # the archive's reader raises the error


@dataclass(frozen=True)
class _Archives:
    """Archives that are not listed yet. `source`: the user's name for them."""

    root: Root
    files: Sequence[str]
    source: str


def _list_archives(archives: _Archives, remembered: Callable[[], Remembered] | None) -> Inputs:
    root, files, source = archives.root, archives.files, archives.source
    known = remembered().listing(root, files) if remembered is not None and is_remote(root.place) else None
    if known is not None:
        return known
    rows, names = Rows(), _ClassNames()
    images, damages = 0, list[str]()
    for listing in _listings(root, files):
        names.begin(listing.file, listing.class_names)
        for member in listing.members:
            images += member.damage is None
            if member.damage is not None:
                damages.append(member.damage)
                rows.notes.say("damaged archives", f"{escaped(listing.file)}: {escaped(member.damage)}")
            label = names.label(member, listing.file)
            rows.add(member.name, label, listing.file, member.offset, member.bytes, listing.version, member.sha256)
        rows.notes.join(listing.notes)
    names.check()
    if damages and not images:
        raise ValueError(f"{source}: found no image there: {'; '.join(damages[:3])}")
    return rows.inputs(root, names.all)


@dataclass(frozen=True)
class _Listing:
    """The members that an archive lists."""

    file: str
    class_names: list[str]
    members: Iterable[ArchiveMember]
    version: str | None
    notes: Notes


def _listings(root: Root, files: Sequence[str]) -> Iterator[_Listing]:
    """List archives in their order: local archives one by one, and several remote ones at once."""
    if not is_remote(root.place):
        yield from (_listing(root, file) for file in files)
        return
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            yield from threads.map(lambda file: _listing(root, file, whole=True), some)


def _listing(root: Root, file: str, whole: bool = False) -> _Listing:
    """List an archive. One that cannot be listed is one damaged member. `whole`: read all members now."""
    notes, place = Notes(), root.locate(file)
    names, version = list[str](), None
    try:
        archive = ARCHIVES[ending_of(file)](place, root.private)
        with open_file(place, root.private, anew=True) as opened:
            version = version_of(opened)
        names = archive.class_names()
    except ServiceDown:
        raise
    except LabelError as error:
        raise LabelError(f"{file}: {error}") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        return _Listing(file, [], [_whole(error)], version, notes)
    members = _members(archive, notes, file)
    return _Listing(file, names, list(members) if whole else members, version, notes)


def _members(archive: Archive, notes: Notes, file: str) -> Iterator[ArchiveMember]:
    """Yield the members of an archive, and one damaged member if the listing breaks off."""
    found = False
    try:
        for member in archive.members(notes):
            found = True
            yield member
        if not found:
            notes.say("archives without images", escaped(file))
    except ServiceDown:
        raise
    except LabelError as error:
        raise LabelError(f"{file}: {error}") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        yield _whole(error)


def _whole(error: Exception) -> ArchiveMember:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return damaged_member(-1, f"the archive {text}" if text.startswith("is ") else text, WHOLE)


class _ClassNames:
    """The class names of several archives. Each archive may number its classes in another order."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._own: list[str] = []
        self._index: list[int] = []  # position in `all` of each of the archive's names
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
