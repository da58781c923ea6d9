"""Tell by names and first bytes which files are images, and which files are hidden."""

from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath

from vitbackbone.images import VIDEO_EXTENSIONS, ImageError, image_format, video_format

# A file with one of these extensions is an image. If it cannot be decoded, it is a failed row.
_IMAGES = """
    jpg jpeg jpe jfif jif jfi pjpeg pjp mpo png apng webp bmp dib gif tif tiff ppm pgm pbm pnm
    avif avifs heic heif hif jp2 j2k jpx jpc jpf j2c jxl
"""
EXTENSIONS = frozenset(_IMAGES.split())

# A file with one of these extensions is not an image, and is not opened. Raw photos and slides are among them: they
# begin as a TIFF does, but the TIFF in them is a thumbnail.
_OTHERS = """
    txt md rst html htm xml json jsonl yaml yml toml ini log py ipynb sh c h cpp csv tsv cls caption
    parquet npy npz pt pth safetensors bin pkl h5 hdf5 tar tgz gz bz2 xz zst zip 7z rar
    mp4 mov mkv avi webm mp3 wav flac pdf svg doc docx xls xlsx ppt pptx
    dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw 3fr iiq rwl x3f erf kdc dcr mef mos mrw fff
    svs ndpi scn vms bif lsm stk
"""
OTHERS = frozenset(_OTHERS.split())

# Most names in one note: a folder may have a million such files.
SHOWN = 5


def extension(name: str) -> str:
    """Return the extension of a name in lower case without the dot; "" if it has none."""
    stem, _, ending = name.rpartition("/")[2].rpartition(".")
    return ending.lower() if stem else ""


def is_image(name: str, head: Callable[[], bytes]) -> bool:
    """Tell whether a file is an image. `head` returns its first `HEAD` bytes; it is called only for an unknown
    extension."""
    kind = extension(name)
    return kind in EXTENSIONS or (kind not in OTHERS and _begins_as_image(head()))


def is_video(name: str, head: Callable[[], bytes]) -> bool:
    """Tell whether a file is a video. `head` is called for the extensions that other files have too, as TypeScript."""
    kind = extension(name)
    return kind in VIDEO_EXTENSIONS and (kind not in ("ts", "mts") or video_format(head()) is not None)


def _begins_as_image(head: bytes) -> bool:
    try:
        image_format(head)
    except ImageError:
        return False
    return True


def is_hidden(name: str) -> bool:
    """Tell whether a path is hidden: a part begins with a dot or is the `__MACOSX` folder of archives."""
    parts = name.split("/")
    return any(part == "__MACOSX" or (part[:1] == "." and part.partition("\\")[0] not in (".", "..")) for part in parts)


class Escape(ValueError):
    """The name of a member leads out of its archive."""


def check_name(name: str) -> None:
    """Raise `Escape` if the name of a member leads out of its archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":":
        raise Escape(f"the name {name!r} leads out of its archive")


def escaped(name: str) -> str:
    """Return a name as it can be printed: bytes that are not UTF-8 are \\udcXX, and control characters \\xXX."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class Notes:
    """Notes about the files that a listing leaves out, and why."""

    def __init__(self) -> None:
        self._kinds: dict[str, list[str]] = {}
        self._ignored: Counter[str] = Counter()

    def say(self, kind: str, text: str) -> None:
        """Add a note. `kind` is its heading: notes with one heading become one line."""
        self._kinds.setdefault(kind, []).append(text)

    def join(self, others: "Notes") -> None:
        """Add the notes of another listing."""
        for kind, texts in others._kinds.items():
            self._kinds.setdefault(kind, []).extend(texts)
        self._ignored.update(others._ignored)

    def ignore(self, name: str) -> None:
        """Count a file that is not an image by name or content."""
        self._ignored[extension(name)] += 1

    def lines(self) -> tuple[str, ...]:
        """Return the notes, a line for each heading and a line for the counted files."""
        lines = []
        for kind, texts in self._kinds.items():
            more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
            lines.append(f"{kind}: {'; '.join(texts[:SHOWN])}{more}")
        if count := self._ignored.total():
            common = self._ignored.most_common(SHOWN)
            kinds = [f"{number} {'.' + kind if kind else 'without extension'}" for kind, number in common]
            rest = count - sum(number for _, number in common)
            kinds += [f"{rest} others"] if rest else []
            files = "1 file" if count == 1 else f"{count} files"
            lines.append(escaped(f"{files} ignored, not images by name or content ({', '.join(kinds)})"))
        return tuple(lines)
