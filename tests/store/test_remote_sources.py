"""Sources that are in a bucket: the same listing and the same bytes as on the disk, in few large requests."""

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.buckets import going_to, put_folder
from tests.servers import Faults, proxy, quick_repeats
from vitbackbone.files import bucket_clients
from vitbackbone.files.cloud_requests import ServiceDown
from vitbackbone.files.object_storage import open_bucket
from vitbackbone.files.ranged import LARGEST, SMALLEST, RangedContent, RangedFile
from vitbackbone.store.sources import braces
from vitbackbone.store.sources.braces import expand_braces, has_braces
from vitbackbone.store.sources.identity import read_contents
from vitbackbone.store.sources.locate import AWAY_SERVICE, Unreadable, locators, read_bytes
from vitbackbone.store.sources.rows import Inputs
from vitbackbone.store.sources.source import list_inputs

pytest.importorskip("obstore", reason="buckets need the extra 'cloud'")
pytestmark = pytest.mark.usefixtures(quick_repeats.__name__)


@pytest.fixture
def faults(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Faults of the proxy before the server; none at first. It records the requests."""
    faults = Faults()
    with proxy(server, faults) as url, going_to(url, monkeypatch):
        yield faults


def picture(number: int, size: int = 60_000) -> bytes:
    """Bytes that begin as a PNG; no listing decodes them."""
    return b"\x89PNG\r\n\x1a\n" + number.to_bytes(4, "big") + os.urandom(size)


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every kind of source, on the disk."""
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/dog").mkdir()
    (tmp_path / "photos/.hidden").mkdir()
    for i in range(6):
        (tmp_path / f"photos/{'cat' if i % 2 else 'dog'}/{i} ü%+.png").write_bytes(picture(i))
    (tmp_path / "photos/cat/without-extension").write_bytes(picture(9))
    (tmp_path / "photos/cat/text").write_bytes(b"no image")
    (tmp_path / "photos/.hidden/a.png").write_bytes(picture(10))
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / f"shards/part-{shard:04}.tar", "w") as tar:
            for i in range(4):
                add_to_tar(tar, f"{'long-' * 30}{shard}{i}.png", picture(100 + 4 * shard + i))
                add_to_tar(tar, f"{'long-' * 30}{shard}{i}.cls", b"%d" % (i % 2))
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(5):
            archive.writestr(f"kind{i % 2}/{i}.png", picture(200 + i))
    images = [{"bytes": picture(300 + i), "path": f"{i}.png"} for i in range(7)]
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 3 + [0]}), tmp_path / "table.parquet", row_group_size=3)
    (tmp_path / "list.csv").write_text("path,label\nphotos/cat/1 ü%+.png,a\n../photos/x.png,b\nphotos/none.png,\n")
    pq.write_table(pa.table({"path": ["photos/dog/0 ü%+.png", "photos/dog/2 ü%+.png"]}), tmp_path / "list.parquet")
    (tmp_path / "damaged.tar").write_bytes((tmp_path / "shards/part-0000.tar").read_bytes()[:150_000])
    return tmp_path


def contents(inputs: Inputs) -> list[bytes | str]:
    """The bytes of each input, or why it cannot be read."""
    found: list[bytes | str] = []
    for at in locators(inputs.root, inputs.table, inputs.table["bytes"].to_pylist()):
        try:
            found.append(read_bytes(at))
        except Unreadable as unreadable:
            found.append(f"{unreadable.reason}: {unreadable}")
    return found


SOURCES = [
    "photos",
    "all.zip",
    "table.parquet",
    "list.csv",
    "list.parquet",
    "damaged.tar",
    "shards/part-0001.tar",
]
PATTERNS = [
    "shards/*.tar",
    "shards/part-{0000..0002}.tar",
    "shards/part-{0000..0003}.tar",
    "photos/**/*.png",
    "photos/{dog,cat}/[0-3]*",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_in_a_bucket_is_the_source_on_the_disk(faults: Faults, folder: Path, source: str) -> None:
    storage = open_bucket("s3://photos/sources")
    put_folder(folder, storage)
    faults.refused = faults.cut = 0.1
    there, here = list_inputs(f"s3://photos/sources/{source}"), list_inputs(folder / source)
    same(there, here)
    assert list_inputs(Path(f"s3://photos/sources/{source}")).paths == here.paths


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_in_a_bucket_is_the_pattern_on_the_disk(
    faults: Faults, folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the root: paths start at the bucket, as they start at the current folder on the disk."""
    put_folder(folder, open_bucket("s3://photos"))
    monkeypatch.chdir(folder)
    same(list_inputs(f"s3://photos/{pattern}"), list_inputs(pattern))


def same(there: Inputs, here: Inputs) -> None:
    assert there.paths == here.paths
    assert there.labels == here.labels
    assert there.class_names == here.class_names
    assert there.notes == here.notes
    found = contents(there)
    assert found == contents(here)
    assert len(there) > 1
    for data, sha256 in zip(found, there.table["sha256"].to_pylist(), strict=True):
        assert sha256 is None or (isinstance(data, bytes) and hashlib.sha256(data).digest() == sha256)


def test_versions_tell_which_inputs_changed(faults: Faults, folder: Path) -> None:
    storage = open_bucket("s3://photos/versions")
    put_folder(folder, storage)

    def versions(source: str) -> dict[str, tuple[int, str]]:
        inputs = list_inputs(f"s3://photos/versions/{source}")
        return dict(
            zip(
                inputs.paths,
                zip(inputs.table["bytes"].to_pylist(), inputs.table["version"].to_pylist(), strict=True),
                strict=True,
            )
        )

    for source, changed in (("photos", "photos/cat/1 ü%+.png"), ("shards/part-0000.tar", "shards/part-0000.tar")):
        before = versions(source)
        assert before == versions(source)
        data = storage.get(changed)
        storage.put(changed, data[:-1] + bytes([data[-1] ^ 1]))
        differ = {path for path, version in versions(source).items() if before[path] != version}
        assert differ == {path for path in before if f"{source}/{path}".startswith(changed) or source == changed}


def test_an_archive_is_read_by_few_large_ranges_and_a_member_by_a_small_one(faults: Faults) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for i in range(300):
            add_to_tar(tar, f"{i:04}.png", picture(i, 100_000))
    size = len(data.getvalue())
    open_bucket("s3://photos/large").put("a.tar", data.getvalue())
    faults.requests.clear()
    inputs = list_inputs("s3://photos/large/a.tar")
    assert len(inputs) == 300
    listed = len(faults.requests)
    assert listed < 20
    assert sum(_length(request[2]) for request in faults.requests if request[2]) < 1.1 * size  # nothing twice
    at = locators(inputs.root, inputs.table, inputs.table["bytes"].to_pylist())
    faults.requests.clear()
    sizes = inputs.table["bytes"].to_numpy()
    digests = [sha256 for sha256, _, _ in read_contents(inputs.root, inputs.table, sizes, np.arange(300))]
    assert faults.requests == []  # the listing has read them
    assert digests == [hashlib.sha256(read_bytes(one)).digest() for one in at]
    faults.requests.clear()
    from vitbackbone.store.sources import remote

    remote._known.__dict__.clear()  # as in a process that has read nothing
    assert len(read_bytes(at[200])) == 100_012
    ranges = [request[2] for request in faults.requests if request[2]]
    assert sum(_length(text) for text in ranges) <= 2 * SMALLEST < size / 10
    faults.requests.clear()
    assert all(len(read_bytes(one)) == 100_012 for one in at)
    assert len(faults.requests) < 20  # and not 300


def _length(text: str) -> int:
    start, end = text.removeprefix("bytes=").split("-")
    return int(end) - int(start) + 1


def test_an_archive_that_is_replaced_while_it_is_read_gives_no_mixed_bytes(faults: Faults, folder: Path) -> None:
    storage = open_bucket("s3://photos/replaced")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for i in range(40):
            add_to_tar(tar, f"{i:04}.png", picture(i, 100_000))
    storage.put("a.tar", data.getvalue())
    inputs = list_inputs("s3://photos/replaced/a.tar")
    at = locators(inputs.root, inputs.table, inputs.table["bytes"].to_pylist())
    read_bytes(at[0])
    storage.put("a.tar", data.getvalue()[:-1] + b"x")
    with pytest.raises(Unreadable, match="has changed while it was read"):
        read_bytes(at[39])
    assert read_bytes(at[39])  # opened again


def test_an_object_that_fails_is_a_row_and_a_service_that_is_down_ends_the_run(
    faults: Faults, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbackbone.files.cloud_requests.PATIENCE", 0.05)
    monkeypatch.setitem(bucket_clients.RETRIES, "max_retries", 0)
    put_folder(folder, open_bucket("s3://photos/ill"))
    inputs = list_inputs("s3://photos/ill/photos")
    faults.refused, faults.only = 1.0, "GET .*cat/1"
    found = contents(inputs)
    assert [data for data in found if isinstance(data, str)] == [f"unreadable: {AWAY_SERVICE}"]
    faults.only = ""
    with pytest.raises(ServiceDown, match="does not answer as it should.*run the same command again"):
        contents(inputs)
    faults.refused = 0
    assert not [data for data in contents(inputs) if isinstance(data, str)]


def test_a_list_in_a_bucket_never_names_a_file_of_this_machine(faults: Faults, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(1))
    storage = open_bucket("s3://photos/lists")
    storage.put("paths.csv", f"path\n{secret}\n../../../../../..{secret}\nfile://{secret}\n".encode())
    storage.put("urls.txt", f"{secret}\nfile://{secret}\n{secret.name}\n".encode())
    for source in ("paths.csv", "urls.txt"):
        inputs = list_inputs(f"s3://photos/lists/{source}")
        assert len(inputs) == 3
        assert all(isinstance(found, str) for found in contents(inputs))


def test_wrong_sources_are_errors_that_say_what_to_do(faults: Faults) -> None:
    open_bucket("s3://photos/wrong").put("train-1.png", picture(1))
    for source, text in {
        "s3://photos/wrong/train": r"Keys such as wrong/train-1\.png begin so; give s3://photos/wrong/train\*",
        "s3://photos/nothing": "found no image below s3://photos/nothing",
        "s3://other-bucket/a": "s3://other-bucket",
        "ftp://host/a": "has the scheme 'ftp'; want one of s3, gs, az, hf, http, https",
        "s3://photos/wrong/a.tar.gz": r"compressed; unpack it to a plain \.tar",
        "https://example.com/": "neither a list nor an archive",
    }.items():
        with pytest.raises((ValueError, OSError), match=text):
            list_inputs(source)


def test_a_key_that_cannot_be_read_is_named(faults: Faults) -> None:
    import urllib.request

    url = os.environ["AWS_ENDPOINT_URL"]
    urllib.request.urlopen(urllib.request.Request(f"{url}/photos/odd//a.png", data=b"x", method="PUT")).close()
    with pytest.raises(OSError, match="a key that cannot be read.*odd//a.png.*give a prefix without it"):
        list_inputs("s3://photos/odd")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-{8..11}", ["s-8", "s-9", "s-10", "s-11"]),
        ("s-{3..1}", ["s-3", "s-2", "s-1"]),
        ("s-{0..10..5}", ["s-0", "s-5", "s-10"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a,b{1..2}}", ["a", "b1", "a", "b2"]),
        ("{a..c}", ["a", "b", "c"]),
        ("{a}", ["{a}"]),
        ("{}", ["{}"]),
        ("{a,}", ["a", ""]),
        ("plain", ["plain"]),
    ],
)
def test_braces_stand_for_names(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names
    assert has_braces(pattern) == (names != [pattern])


def test_braces_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(braces, "MOST", 100)
    with pytest.raises(ValueError, match="more than 100 names"):
        expand_braces("{0..999}{0..999}{0..999999999}")


def test_a_ranged_file_is_the_file(faults: Faults) -> None:
    """Against a file in memory, by reads at random."""
    import random

    data = os.urandom(3_000_000)
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return data[start : start + length]

    file, expected = RangedFile(RangedContent(read, len(data), "v"), "name"), io.BytesIO(data)
    chance = random.Random(0)
    for _ in range(300):
        if chance.random() < 0.5:
            where = chance.choice([0, len(data) - 100, chance.randrange(len(data) + 10)])
            assert file.seek(where) == expected.seek(where)
        length = chance.choice([0, 1, 100, 70_000, 1_000_000])
        assert file.read(length) == expected.read(length)
        assert file.tell() == expected.tell()
    assert max(asked) <= LARGEST
    file.seek(0)
    assert file.read() == data
