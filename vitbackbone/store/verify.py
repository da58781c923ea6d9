"""Check the files of a store against their checksums."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from vitbackbone.files import progress_bar
from vitbackbone.store.layout import read_marker
from vitbackbone.store.manifest import manifest_sha256
from vitbackbone.store.plan import read_outline, read_plan
from vitbackbone.store.store import read_manifest
from vitbackbone.store.writer import broken_files

READERS = 4  # threads


@dataclass(frozen=True)
class Verified:
    """The result of `verify`. `problems`: (file, problem) in order, empty for an undamaged store."""

    shards: int
    images: int
    problems: tuple[tuple[Path, str], ...]


def verify(directory: str | PathLike[str], progress: bool = False) -> Verified:
    """Read every file of a store and compare it with its checksum. Changes nothing.

    Raises `ValueError` if the directory is not a store.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    try:
        read_plan(folder, manifest["shard_size"])
        outline = read_outline(folder)
    except ValueError as error:
        return Verified(0, 0, ((folder / "inputs", str(error)),))
    expected = manifest_sha256(manifest)

    def check(number: int) -> list[tuple[Path, str]]:
        marker = read_marker(folder, number)
        file = folder / "shards" / f"{number:05}.json"
        if marker is None:
            return [(file, "is damaged; the shard is not complete" if file.exists() else "the shard is not complete")]
        if not marker.fits(expected, outline.shards[number], outline.rows[number]):
            return [(file, "the shard was made from other inputs or with another manifest")]
        return [
            (broken, "is damaged: its checksum differs" if broken.exists() else "is missing")
            for broken in broken_files(folder, number, marker)
        ]

    with ThreadPoolExecutor(READERS) as threads:
        found = threads.map(check, range(len(outline.shards)))
        bar = progress_bar(found, "verifying", progress, passing=True, total=len(outline.shards), unit="shard")
        problems = [problem for shard in bar for problem in shard]
    problems += [(path, "is a temporary file of a killed run; it does no harm") for path in _leftovers(folder)]
    return Verified(len(outline.shards), sum(outline.rows), tuple(problems))


def _leftovers(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "inputs", folder / "index", folder / "shards"):
        yield from sorted(place.glob(".*.tmp"))
