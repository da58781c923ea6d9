"""Videos inside archives: the rows and features of the same videos outside, or a named failure."""

import io
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from tests.buckets import going_to, moto
from tests.helpers import photo, tiny_vit
from tests.images.videos import KINDS, make_video
from vitbackbone.files import open_storage
from vitbackbone.store import FeatureStore, extract, list_inputs
from vitbackbone.store.photos import source_files

COUNT = 14
Members = dict[str, bytes]


def png() -> bytes:
    file = io.BytesIO()
    photo(30, 40).save(file, "PNG")
    return file.getvalue()


def write_tar(file: Path, members: Members) -> None:
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_zip(file: Path, members: Members, method: int) -> None:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


WRITERS: dict[str, tuple[str, Callable[[Path, Members], None]]] = {
    "tar": ("packed.tar", write_tar),
    "zip, stored": ("packed.zip", lambda file, members: write_zip(file, members, zipfile.ZIP_STORED)),
    "zip, deflated": ("packed.zip", lambda file, members: write_zip(file, members, zipfile.ZIP_DEFLATED)),
}


@pytest.fixture(scope="module")
def members() -> Members:
    return {
        "cats/1.png": png(),
        "cats/clip.mp4": make_video(KINDS["mp4"], COUNT),
        "dogs/clip.ts": make_video(KINDS["ts"], COUNT, first=100),
        "dogs/script.ts": b"export const answer = 42;\n" * 40,
    }


def extracted(source: Path | str, out: Path) -> FeatureStore:
    return extract(tiny_vit(), source, out, shard_size=9, batch_size=4, progress=False)


def rows(store: FeatureStore) -> dict[str, tuple[object, ...]]:
    """The row of each input in a store, by its path without the archive."""
    names = ("label", "stream", "frame", "pts", "time_base", "keyframe", "width", "height", "status", "sha256")
    table = store.index.to_pylist()
    return {re.sub(r"^.*packed\.\w+/", "", row["path"]): tuple(row[name] for name in names) for row in table}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_packed_video_has_the_rows_of_the_same_video_in_a_folder(kind: str, members: Members, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    name, write = WRITERS[kind]
    write(tmp_path / name, members)
    plain, packed = extracted(folder, tmp_path / "plain"), extracted(tmp_path / name, tmp_path / "out")
    assert packed.failed == []
    assert len(packed) == 2 * COUNT + 1
    assert rows(packed) == rows(plain)
    np.testing.assert_array_equal(packed.cls, plain.cls)
    again = extracted(tmp_path / name, tmp_path / "out")
    assert again.snapshot.number == packed.snapshot.number
    files = source_files(packed, [0, 3], tmp_path)
    assert files is not None
    assert all(files)


@pytest.mark.promise(7)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_bad_packed_video_is_a_failed_row(kind: str, members: Members, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    whole = members["cats/clip.mp4"]
    bad = {"cut.mp4": whole[: len(whole) // 2], "text.webm": b"no video", "empty.mkv": b"", "../out.mp4": whole}
    write(tmp_path / name, {**bad, "good.mp4": whole})
    store = extracted(tmp_path / name, tmp_path / "out")
    failed = {path.partition("/")[2]: reason for path, reason in store.failed}
    assert set(failed) == set(bad)
    assert "cannot be opened" in failed["cut.mp4"]
    assert "not a video of a known format" in failed["text.webm"]
    assert "leads out of its archive" in failed["../out.mp4"]
    assert len(store) == COUNT


def test_a_flipped_bit_in_a_zip_is_noticed(members: Members, tmp_path: Path) -> None:
    for kind, (name, write) in WRITERS.items():
        if not kind.startswith("zip"):
            continue
        write(tmp_path / name, {"clip.mp4": members["cats/clip.mp4"], "1.png": png()})
        data = bytearray((tmp_path / name).read_bytes())
        data[len(members["cats/clip.mp4"]) // 3] ^= 16
        (tmp_path / name).write_bytes(data)
        store = extracted(tmp_path / name, tmp_path / kind)
        assert [path for path, _ in store.failed] == [f"{name}/clip.mp4"]
        assert "damaged" in store.failed[0][1]
        assert len(store) == 1


def test_a_sample_of_webdataset_gives_its_frames_its_class(members: Members, tmp_path: Path) -> None:
    clip = members["cats/clip.mp4"]
    write_tar(tmp_path / "a.tar", {"0.mp4": clip, "0.cls": b"3", "1.png": png(), "1.cls": b"1"})
    inputs = list_inputs(tmp_path / "a.tar")
    assert inputs.labels == (*[inputs.labels[0]] * COUNT, inputs.labels[-1])
    assert inputs.class_names == ("1", "3") or inputs.labels[0] != inputs.labels[-1]


@pytest.mark.slow
def test_packed_videos_are_read_from_a_bucket(
    members: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    write_tar(tmp_path / "packed.tar", members)
    with moto() as url, going_to(url, monkeypatch):
        open_storage("s3://photos/videos").put("packed.tar", (tmp_path / "packed.tar").read_bytes())
        there = extracted("s3://photos/videos/packed.tar", tmp_path / "there")
    here = extracted(tmp_path / "packed.tar", tmp_path / "here")
    assert rows(there) == rows(here)
    np.testing.assert_array_equal(there.cls, here.cls)
