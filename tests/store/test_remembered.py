"""Archives in a bucket are listed again only if they have changed."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.buckets import going_to
from tests.helpers import photo, tiny_vit
from tests.servers import Faults, proxy, quick_repeats
from vitbackbone.files import open_storage
from vitbackbone.store import FeatureStore, extract
from vitbackbone.store.layout import ROWS
from vitbackbone.store.sources.remembered import Remembered
from vitbackbone.store.sources.rows import Root

pytest.importorskip("obstore", reason="buckets need the extra 'cloud'")
pytestmark = pytest.mark.usefixtures(quick_repeats.__name__)

SHARDS = "s3://photos/shards/*.tar"


@pytest.fixture
def faults(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    faults = Faults()
    with proxy(server, faults) as url, going_to(url, monkeypatch):
        yield faults


def shard(first: int) -> bytes:
    """Three photos, a label, and a member that leads out of the archive."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        for i in range(first, first + 3):
            picture = io.BytesIO()
            photo(40, 52, seed=i).save(picture, "PNG")
            add(f"{'ab'[i % 2]}/{i}.png", picture.getvalue())
            add(f"{'ab'[i % 2]}/{i}.cls", b"cat" if i % 2 else b"dog")
        add("../out.png", b"x")
    return data.getvalue()


def run(out: Path) -> FeatureStore:
    return extract(tiny_vit(), SHARDS, out, shard_size=2, progress=False)


def test_archives_that_have_not_changed_are_not_read_again(faults: Faults, tmp_path: Path) -> None:
    storage = open_storage("s3://photos/shards")
    for number in range(2):
        storage.put(f"{number}.tar", shard(10 * number))
    first = run(tmp_path / "out")
    faults.requests.clear()
    again = run(tmp_path / "out")
    assert again.snapshot == first.snapshot
    read = [path for method, path, part in faults.requests if method == "GET" and ".tar" in path and part]
    assert len(read) <= 2 * 2  # the members that failed are tried again
    storage.put("1.tar", shard(20))
    storage.put("2.tar", shard(30))
    grown, fresh = run(tmp_path / "out"), run(tmp_path / "fresh")
    at = {path: row for row, path in enumerate(grown.paths)}
    chosen = [at[path] for path in fresh.paths]
    np.testing.assert_array_equal(grown.cls[chosen], fresh.cls)
    np.testing.assert_array_equal(grown.labels[chosen], fresh.labels)
    assert grown.class_names == fresh.class_names
    assert len(grown.failed) == 3


def test_a_member_that_was_away_comes_back_with_the_listing(faults: Faults) -> None:
    storage = open_storage("s3://photos/away")
    storage.put("a.tar", shard(0))
    listed = storage.head("a.tar")
    assert listed is not None
    version = listed.version
    rows = [
        {"path": b"a.tar/1.png", "archive": 5, "offset": 0, "bytes": 9, "version": version, "label": 0, "gone": True},
        {
            "path": b"a.tar/2.png",
            "archive": 5,
            "offset": 512,
            "bytes": 9,
            "version": version,
            "label": 0,
            "gone": False,
        },
        {"path": b"a.tar/0.png", "archive": 5, "offset": 0, "bytes": 9, "version": "old", "label": 0, "gone": True},
    ]

    def listing(*files: str, **changed: object) -> list[str] | None:
        table = pa.Table.from_pylist([rows[0], {**rows[1], **changed}, rows[2]], ROWS)
        found = Remembered("s3://photos/away", table, ("x",)).listing(Root("s3://photos/away"), files)
        return found and list(found.paths)

    assert listing("a.tar") == ["a.tar/1.png", "a.tar/2.png"]
    assert listing("a.tar", "b.tar") is None
    assert listing("b.tar") is None
    assert listing("a.tar", version="old") is None
    assert listing("a.tar", path=b"b.tar/2.png") is None
    assert listing("a.tar", path=b"a.tar/c.mp4/0/000012@6144x1-12800k") is None
