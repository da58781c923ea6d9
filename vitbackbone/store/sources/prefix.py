"""List the images below a prefix of a bucket, or the keys that a pattern matches."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import translate
from functools import partial
from itertools import islice

from vitbackbone.files import ServiceError, Stored
from vitbackbone.images import HEAD, VIDEO_EXTENSIONS
from vitbackbone.store.sources.folder import matches
from vitbackbone.store.sources.names import EXTENSIONS, OTHERS, Notes, escaped, extension, is_hidden, is_image, is_video
from vitbackbone.store.sources.remote import Remote

AT_ONCE = 64  # requests under way for the first bytes of files without a known extension
CHUNK = 1000  # files that are looked at together


def below(service: Remote, prefix: str) -> Iterator[Stored]:
    """Yield the files below a prefix, sorted. Hidden ones and the marks of folders are left out."""
    for stored in service.list(prefix):
        name = stored.key[len(prefix) :]
        if name and not name.endswith("/") and not is_hidden(name):
            yield stored


def matching(service: Remote, pattern: str) -> Iterator[Stored]:
    """Yield the files whose keys match a pattern, sorted. `**` is any depth."""
    start = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    wanted = [None if part == "**" else re.compile(translate(part)) for part in pattern.split("/")]
    for stored in service.list(start):
        if not stored.key.endswith("/") and matches(stored.key.split("/"), wanted):
            yield stored


def images_of(service: Remote, found: Iterator[Stored], notes: Notes) -> Iterator[Stored]:
    """Yield the images and videos, by name or content. Other files are counted in `notes`."""

    def head(stored: Stored) -> bytes:
        try:
            return service.read(stored.key, 0, HEAD)
        except ServiceError:  # an image that nobody could look at must not count as another file
            raise
        except (OSError, ValueError):
            return b""

    with ThreadPoolExecutor(AT_ONCE) as threads:
        while some := list(islice(found, CHUNK)):
            told = (EXTENSIONS | OTHERS | VIDEO_EXTENSIONS) - {"ts", "mts"}
            unknown = [stored for stored in some if extension(stored.key) not in told]
            begins = dict(zip((stored.key for stored in unknown), threads.map(head, unknown), strict=True))
            for stored in some:
                first = partial(begins.__getitem__, stored.key)
                if is_image(stored.key, first) or is_video(stored.key, first):
                    yield stored
                else:
                    notes.ignore(stored.key)


def hint(service: Remote, url: str, prefix: str) -> str:
    """Return what to do if nothing is below a prefix."""
    first = next(iter(service.list(prefix)), None) if prefix else None
    if first is None:
        return ""
    return f". Keys such as {escaped(first.key)} begin so; give {url}* for them"
