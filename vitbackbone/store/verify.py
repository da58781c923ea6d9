"""Whether a store is what was written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from tqdm import tqdm

from vitbackbone.store.layout import read_marker
from vitbackbone.store.manifest import fingerprint
from vitbackbone.store.plan import read_outline, read_plan
from vitbackbone.store.store import read_manifest
from vitbackbone.store.writer import damaged

READERS = 4  # threads


@dataclass(frozen=True)
class Verified:
    """`problems`: (file, what is wrong with it), in order; none where all is as it was written."""

    shards: int
    images: int
    problems: tuple[tuple[Path, str], ...]


def verify(directory: str | PathLike[str], progress: bool = False) -> Verified:
    """Reads every file of a store and compares it with what was written. Changes nothing.

    Raises `ValueError` if the directory is not a store.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    try:
        read_plan(folder, manifest["shard_size"])
        outline = read_outline(folder)
    except ValueError as error:
        return Verified(0, 0, ((folder / "inputs", str(error)),))
    expected = fingerprint(manifest)

    def check(number: int) -> list[tuple[Path, str]]:
        marker = read_marker(folder, number)
        file = folder / "shards" / f"{number:05}.json"
        if marker is None:
            return [(file, "is damaged: the shard counts as not done" if file.exists() else "the shard is not done")]
        if not marker.fits(expected, outline.shards[number], outline.rows[number]):
            return [(file, "the shard is of other inputs, or of another model, than the store is now")]
        return [
            (broken, "is damaged: its checksum is not the one that was written" if broken.exists() else "is missing")
            for broken in damaged(folder, number, marker)
        ]

    with ThreadPoolExecutor(READERS) as threads:
        found = threads.map(check, range(len(outline.shards)))
        bar = tqdm(found, "verifying", len(outline.shards), unit="shard", disable=not progress, delay=2)
        problems = [problem for shard in bar for problem in shard]
    problems += [(path, "was left by a run that was killed; it does no harm") for path in _leftovers(folder)]
    return Verified(len(outline.shards), sum(outline.rows), tuple(problems))


def _leftovers(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "inputs", folder / "index", folder / "shards"):
        yield from sorted(place.glob(".*.tmp"))
