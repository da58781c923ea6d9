"""List the images of a folder or a glob. Every folder is listed once, and no odd file ends the listing."""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache, partial
from pathlib import Path

from vitbackbone.images import HEAD
from vitbackbone.store.layout import FOLDERS, LATEST
from vitbackbone.store.sources.names import Notes, escaped, is_hidden, is_image, is_video

Identity = tuple[int, int]  # device and inode of a folder


@dataclass(frozen=True)
class _Folder:
    """A folder to list."""

    path: str
    prefix: str  # its path from the root, with "/" at the end
    above: tuple[Identity, ...]  # the folders above it
    linked: bool  # whether it or a folder above it was reached by a link


@dataclass
class Walk:
    """Lists a folder and all folders below it.

    Links to folders are followed. A folder that the walk lists anyway is listed again only for a link of the first
    level, because its name is a class. So circles of links end.
    """

    root: Path
    notes: Notes
    keep: Callable[[str], bool] = lambda name: not is_hidden(name)  # whether a name is listed
    _reached: set[Identity] = field(default_factory=set)  # by links

    def files(self) -> Iterator[str]:
        """Yield the relative POSIX paths of all files, sorted. A folder that is named like an image is among them."""
        todo: list[_Folder | str] = [_Folder(str(self.root), "", (), False)]
        top = os.path.realpath(self.root)
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                yield item
            else:
                todo += reversed(self._list(item, top))

    def _list(self, folder: _Folder, top: str) -> list[_Folder | str]:
        try:
            status = os.stat(folder.path)  # noqa: PTH116  # a Path for each of a million costs more than asking for it
            here = (status.st_dev, status.st_ino)
            if folder.prefix and _is_store(folder.path):
                self.notes.say("folders that are feature stores are left out", escaped(folder.prefix))
                return []
            with os.scandir(folder.path) as entries:
                found = [(entry.name, entry.is_symlink(), _is_folder(entry)) for entry in entries]
        except OSError as error:
            if not folder.prefix:
                raise
            self.notes.say("folders that cannot be read", f"{escaped(folder.prefix)} ({error.strerror})")
            return []
        above = (*folder.above, here)
        skipped: Sequence[str] = ()
        if not folder.prefix and _is_store(folder.path):
            skipped = FOLDERS
            self.notes.say("folders that are feature stores are left out", ", ".join(f"{name}/" for name in FOLDERS))
        listed: list[tuple[str, _Folder | str]] = []
        for name, is_link, is_folder in found:
            if not self.keep(name) or name in skipped:
                continue
            if not is_folder or is_image(name, bytes):  # a folder that is named like an image is a failed row
                listed.append((name, folder.prefix + name))
            if is_folder:
                path = f"{folder.path.rstrip('/')}/{name}"
                if not is_link or self._follows(path, folder, above, top):
                    below = _Folder(path, f"{folder.prefix}{name}/", above, folder.linked or is_link)
                    listed.append((f"{name}/", below))  # "/" sorts it as its files are sorted
        return [item for _, item in sorted(listed, key=lambda pair: pair[0])]

    def _follows(self, path: str, folder: _Folder, above: tuple[Identity, ...], top: str) -> bool:
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError:
            return False
        target = (status.st_dev, status.st_ino)
        if target in above:
            why = "links that lead in circles are not followed"
        elif folder.prefix and (self._is_listed(path, top) or (folder.linked and target in self._reached)):
            why = "links to folders that are listed anyway are not followed"
        else:
            self._reached.add(target)
            return True
        self.notes.say(why, escaped(path[len(str(self.root)) :].lstrip("/")))
        return False

    def _is_listed(self, link: str, top: str) -> bool:
        """Tell whether the target of a link is below the root, in folders that are listed without links."""
        real = os.path.realpath(link)
        inner = os.path.relpath(real, top)
        return not inner.startswith("..") and all(self.keep(name) for name in inner.split("/"))


def images(found: Iterator[str], root: Path, notes: Notes) -> Iterator[str]:
    """Yield the paths of images and videos, by name or content. Other files are counted in `notes`."""
    for path in found:
        head = partial(_head, root / path)
        if is_image(path, head) or is_video(path, head):
            yield path
        elif not (root / path).is_dir():
            notes.ignore(path)


def expand(pattern: str, notes: Notes) -> list[str]:
    """Return the matches of a glob, sorted, each once. `**` is any depth and follows no circle of links."""
    if "**" not in pattern:
        return [path for path in sorted(set(glob.glob(pattern))) if not _is_circular(Path(path).parent)]  # noqa: PTH207  # Path.glob refuses absolute patterns
    fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")
    start, rest = fixed[0] + fixed[1], pattern[len(fixed[0] + fixed[1]) :]
    if not Path(start or ".").is_dir():
        return []
    parts = [part for part in rest.split("/") if part]
    hidden = any(part.startswith(".") for part in parts)
    walk = Walk(Path(start or "."), notes, lambda name: hidden or not is_hidden(name))
    wanted = [None if part == "**" else re.compile(translate(part)) for part in parts]
    return [start + path for path in walk.files() if matches(path.split("/"), wanted)]


@lru_cache(1024)
def _is_circular(folder: Path) -> bool:
    """Tell whether a folder is in itself, through a link."""
    whole = Path(os.path.abspath(folder))  # noqa: PTH100  # without ".."
    way = [part.stat() for part in (whole, *whole.parents)]
    return len({(status.st_dev, status.st_ino) for status in way}) < len(way)


def matches(names: Sequence[str], wanted: Sequence[re.Pattern[str] | None]) -> bool:
    """Tell whether the names of a path match the parts of a pattern. None matches any number of names."""
    reached = {0}  # indices of the parts that may match next
    for name in names:
        reached = _past_any(reached, wanted)
        following = {at for at in reached if at < len(wanted) and wanted[at] is None and not name.startswith(".")}
        for at in reached:
            part = wanted[at] if at < len(wanted) else None
            if part is not None and part.match(name) and (name[:1] != "." or part.pattern.startswith("(?s:\\.")):
                following.add(at + 1)
        reached = following
    return len(wanted) in _past_any(reached, wanted)


def _past_any(reached: set[int], wanted: Sequence[re.Pattern[str] | None]) -> set[int]:
    """Add the indices after each `**` that is reached, since it may match no name."""
    more = set(reached)
    for at in sorted(reached):
        while at < len(wanted) and wanted[at] is None:
            at += 1
            more.add(at)
    return more


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _is_store(folder: str) -> bool:
    return os.path.isfile(f"{folder}/{LATEST}") and os.path.isdir(f"{folder}/snapshots")  # noqa: PTH112, PTH113


def _head(file: Path) -> bytes:
    """Return the first bytes of a file; empty if it is not a regular file or cannot be read."""
    try:
        if not file.is_file():  # a device may act when it is opened
            return b""
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    except OSError:
        return b""
    try:
        return os.read(descriptor, HEAD)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
