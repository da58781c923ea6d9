"""Videos as sources of a store: a row for each frame, with the features of that frame."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

pytest.importorskip("av")

from tests.helpers import save_photo, tiny_vit
from tests.images.videos import KINDS, RATE, decoded, keyframes, make_video
from vitbackbone.cli import main
from vitbackbone.store import FeatureStore, extract, list_inputs, verify
from vitbackbone.store.formats import export
from vitbackbone.store.photos import read_photos, source_files
from vitbackbone.store.workers.lanes import RUN, Lanes

COUNT = 26


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos, a photo, and files that are neither."""
    photos = tmp_path / "photos"
    save_photo(photos / "dogs/1.png")
    (photos / "cats").mkdir()
    (photos / "cats/a b.mp4").write_bytes(make_video(KINDS["mp4"], COUNT))
    (photos / "dogs/clip.ts").write_bytes(make_video(KINDS["ts"], COUNT, first=100))
    (photos / "dogs/script.ts").write_text("export const answer = 42;\n" * 40)
    return photos


def rows_of(store: FeatureStore, video: str) -> list[dict[str, object]]:
    return [row for row in store.index.to_pylist() if row["path"].startswith(video)]


def check(store: FeatureStore, video: str, data: bytes, chosen: slice | list[int] = slice(None)) -> None:
    """Compare the rows of a video with its frames, decoded one after the other, and their features."""
    backbone = tiny_vit()
    frames = decoded(data)
    frames = frames[chosen] if isinstance(chosen, slice) else [frames[i] for i in chosen]
    rows = rows_of(store, video)
    assert [row["pts"] for row in rows] == [pts for pts, _ in frames]
    assert {row["status"] for row in rows} == {"ok"}
    at = {path: i for i, path in enumerate(store.paths)}
    for row, (_, picture) in zip(rows, frames, strict=True):
        image = backbone.preprocess(np.ascontiguousarray(picture))
        with torch.inference_mode():
            expected = backbone(image[None]).cls[0]
        np.testing.assert_allclose(store.cls[at[str(row["path"])]], expected, atol=1e-5)
        assert (row["height"], row["width"]) == picture.shape[:2]


def test_a_folder_gives_a_row_for_each_frame(folder: Path, tmp_path: Path) -> None:
    store = extract(tiny_vit(), folder, tmp_path / "out", shard_size=9, progress=False)
    assert len(store) == 2 * COUNT + 1
    assert store.failed == []
    for video in ("cats/a b.mp4", "dogs/clip.ts"):
        check(store, video, (folder / video).read_bytes())
    data = (folder / "cats/a b.mp4").read_bytes()
    row = rows_of(store, "cats/a b.mp4")[13]
    assert (row["stream"], row["frame"], row["label"]) == (0, 13, 0)
    numerator, denominator = map(int, str(row["time_base"]).split("/"))
    assert row["pts"] * numerator / denominator == pytest.approx((4 * 13 + 13 * 13 % 4) / 100)  # type: ignore[operator]
    assert [r["frame"] for r in rows_of(store, "cats/a b.mp4") if r["keyframe"]] == keyframes(data)
    assert rows_of(store, "dogs/1.png")[0]["stream"] is None
    assert verify(tmp_path / "out").problems == ()


def test_a_second_run_decodes_nothing_and_a_changed_video_is_redone_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbackbone.images import video_frames

    first = extract(tiny_vit(), folder, tmp_path / "out", progress=False)
    read: list[int] = []
    original = video_frames._Decoder.read

    def spy(self: video_frames._Decoder, pts: int) -> object:
        read.append(pts)
        return original(self, pts)

    monkeypatch.setattr(video_frames._Decoder, "read", spy)
    again = extract(tiny_vit(), folder, tmp_path / "out", progress=False)
    assert read == []
    assert again.snapshot.number == first.snapshot.number
    data = make_video(KINDS["mp4"], COUNT, first=300)
    (folder / "cats/a b.mp4").write_bytes(data)
    changed = extract(tiny_vit(), folder, tmp_path / "out", progress=False)
    assert len(read) == COUNT
    check(changed, "cats/a b.mp4", data)
    check(changed, "dogs/clip.ts", (folder / "dogs/clip.ts").read_bytes())


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (["--stride", "5"], list(range(0, COUNT, 5))),
        (["--keyframes"], None),
        (["--fps", "10"], None),
    ],
)
def test_frames_are_chosen_by_options(
    options: list[str], chosen: list[int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbackbone.cli.commands import extract as command

    monkeypatch.setattr(command, "load", lambda _: tiny_vit())
    data = make_video(KINDS["mp4 without B-frames"], COUNT)
    (tmp_path / "clip.mp4").write_bytes(data)
    if options == ["--keyframes"]:
        chosen = keyframes(data)
    if chosen is None:  # the frame that is shown at each tenth of a second
        chosen = sorted({int(k / 10 * RATE + 1e-9) for k in range(COUNT) if k / 10 * RATE <= COUNT - 1})
    assert main(["extract", str(tmp_path / "clip.mp4"), "--out", str(tmp_path / "out"), *options, "-q"]) == 0
    check(FeatureStore(tmp_path / "out"), "clip.mp4", data, chosen)


def test_several_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most one way to choose frames"):
        extract(tiny_vit(), tmp_path, tmp_path / "out", fps=2, stride=3, progress=False)


@pytest.mark.promise(7)
def test_a_bad_video_is_one_failed_row_and_a_damaged_one_fails_in_part(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "cats/a b.mp4").read_bytes()
    (folder / "cats/a b.mp4").unlink()
    for name, data in {
        "cut.mp4": whole[: len(whole) // 2],
        "empty.mkv": b"",
        "text.webm": b"not a video",
        "photo.mp4": (folder / "dogs/1.png").read_bytes(),
    }.items():
        (folder / "cats" / name).write_bytes(data)
    (folder / "cats/folder.mp4").mkdir()
    store = extract(tiny_vit(), folder, tmp_path / "out", progress=False)
    failed = dict(store.failed)
    assert set(failed) == {"cats/cut.mp4", "cats/empty.mkv", "cats/text.webm", "cats/photo.mp4"}
    assert "cannot be opened" in failed["cats/cut.mp4"]
    assert "not a video of a known format" in failed["cats/text.webm"]
    check(store, "dogs/clip.ts", (folder / "dogs/clip.ts").read_bytes())
    (folder / "cats/cut.mp4").write_bytes(whole)  # healed
    healed = extract(tiny_vit(), folder, tmp_path / "out", progress=False)
    check_frames = [row for row in healed.index.to_pylist() if row["path"].startswith("cats/cut.mp4/")]
    assert len(check_frames) == COUNT
    assert {row["status"] for row in check_frames} == {"ok"}


def test_frames_that_a_file_lost_are_a_failed_row(tmp_path: Path) -> None:
    data = make_video(KINDS["mkv"], COUNT)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/cut.mkv").write_bytes(data[: int(0.6 * len(data))])
    store = extract(tiny_vit(), tmp_path / "videos", tmp_path / "out", progress=False)
    whole = dict(decoded(data))
    rows = rows_of(store, "cut.mkv")
    good = [row for row in rows if row["status"] == "ok"]
    assert 5 < len(good) < COUNT
    assert {row["pts"] for row in good} <= set(whole)


def test_workers_and_one_process_give_the_same_features(folder: Path, tmp_path: Path) -> None:
    """The workers are forked from a process that has read frames, and whose decoder has threads that they have not."""
    one = extract(tiny_vit(), folder, tmp_path / "one", shard_size=8, batch_size=4, progress=False)
    two = extract(tiny_vit(), folder, tmp_path / "two", shard_size=8, batch_size=4, workers=2, progress=False)
    assert one.table.names == two.table.names


@pytest.mark.promise(21)
def test_workers_share_the_decoding_of_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each decodes a run of frames, and not those between its batches, too."""
    from vitbackbone.images import video_frames

    original = video_frames._Decoder._feed

    def spy(self: video_frames._Decoder) -> None:
        with (tmp_path / f"decoded-{os.getpid()}").open("a") as file:
            file.write("x")
        original(self)

    monkeypatch.setattr(video_frames._Decoder, "_feed", spy)
    # A process with clients of clouds starts its workers afresh, without the spy.
    monkeypatch.setattr("vitbackbone.store.workers.reader.has_clients", lambda: False)
    (tmp_path / "clip.mp4").write_bytes(make_video(KINDS["mp4"], 72))
    extract(tiny_vit(), tmp_path / "clip.mp4", tmp_path / "out", batch_size=4, workers=2, progress=False)
    decoded = [file.stat().st_size for file in tmp_path.glob("decoded-*")]
    assert len(decoded) == 2
    assert sum(decoded) < 1.5 * 72  # and not twice 72
    check(FeatureStore(tmp_path / "out"), "clip.mp4", (tmp_path / "clip.mp4").read_bytes())


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_portions_of_frames_are_asked_in_runs_and_come_back_in_order(processes: int) -> None:
    groups = [(list(range(100, 229)), True), (list(range(300, 304)), False), (list(range(400, 401)), True)]
    lanes = Lanes(processes)
    asked = list(lanes.ask(groups))
    assert sorted(asked) == [place for batches, _ in groups for place in batches]
    assert list(lanes.in_order(iter(asked))) == sorted(asked)
    of_first = asked[: min(129, RUN * processes) : processes]
    assert of_first == list(range(100, 100 + len(of_first)))


@pytest.mark.slow
def test_copies_of_a_video_share_their_features(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "cats/a b.mp4", folder / "cats/z.mp4")
    store = extract(tiny_vit(), folder, tmp_path / "out", progress=False)
    assert [row["same_as"] for row in rows_of(store, "cats/z.mp4")] == list(range(COUNT))
    check(store, "cats/z.mp4", (folder / "cats/z.mp4").read_bytes())


def test_lists_and_globs_name_videos(folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("path,label\ncats/a b.mp4,x\ndogs/1.png,y\nmissing.mp4,x\n")
    inputs = list_inputs(folder / "list.csv")
    assert len(inputs) == COUNT + 2
    assert inputs.labels == (*[0] * COUNT, 1, 0)
    store = extract(tiny_vit(), folder / "list.csv", tmp_path / "out", progress=False)
    check(store, "cats/a b.mp4", (folder / "cats/a b.mp4").read_bytes())
    assert [path for path, _ in store.failed] == ["missing.mp4"]
    assert len(list_inputs(f"{folder}/*/*.mp4")) == COUNT


def test_shards_begin_with_keyframes_where_possible(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(make_video(KINDS["mp4"], 60))
    store = extract(tiny_vit(), tmp_path / "clip.mp4", tmp_path / "out", shard_size=20, progress=False)
    slots = store.table.rows["slot"].to_pylist()
    first = [row["frame"] for row, slot in zip(rows_of(store, "clip.mp4"), slots, strict=True) if slot == 0]
    keys = keyframes((tmp_path / "clip.mp4").read_bytes())
    assert set(first) <= set(keys)
    assert len(first) > 3
    check(store, "clip.mp4", (tmp_path / "clip.mp4").read_bytes())


@pytest.mark.slow
def test_exports_tell_the_times_of_frames(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    store = extract(tiny_vit(), folder, tmp_path / "out", progress=False)
    table = pa.concat_tables(pq.ParquetFile(file).read() for file in export(store, "parquet", tmp_path / "table"))
    assert table["pts"].to_pylist() == store.images["pts"].to_pylist()
    assert set(table["time_base"].to_pylist()) == {"1/12800", "1/90000", None}


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_arrays_have_a_value_in_place_of_what_photos_lack(format: str, folder: Path, tmp_path: Path) -> None:
    library = pytest.importorskip({"zarr": "zarr", "hdf5": "h5py"}[format])
    store = extract(tiny_vit(), folder, tmp_path / "out", keyframes=True, shard_size=2, progress=False)
    export(store, format, tmp_path / "arrays")
    file = (
        library.open_group(tmp_path / "arrays/features.zarr", mode="r")
        if format == "zarr"
        else library.File(tmp_path / "arrays/features.h5")
    )
    images = store.images
    for name, none in (("stream", -1), ("frame", -1), ("pts", -1), ("keyframe", False)):
        assert file[name][:].tolist() == [none if value is None else value for value in images[name].to_pylist()]
    bases = (file["time_base"].asstr() if format == "hdf5" else file["time_base"])[:].tolist()
    assert bases == [base or "" for base in images["time_base"].to_pylist()]
    assert set(bases) == {"1/12800", "1/90000", ""}
    np.testing.assert_array_equal(file["cls"][:], store.cls)


def test_frames_are_read_as_photos(folder: Path, tmp_path: Path) -> None:
    backbone = tiny_vit()
    photos = list(read_photos([str(folder / "cats")], backbone.preprocess))
    frames = decoded((folder / "cats/a b.mp4").read_bytes())
    assert len(photos) == COUNT
    for photo, (_, picture) in list(zip(photos, frames, strict=True))[::6]:
        assert photo.pixels is not None
        assert torch.equal(photo.pixels, backbone.preprocess(np.ascontiguousarray(picture)))
    store = extract(backbone, folder, tmp_path / "out", progress=False)
    files = source_files(store, [3], folder)
    assert files is not None
    assert files[0] is not None
    assert torch.equal(backbone.preprocess(files[0]), backbone.preprocess(np.ascontiguousarray(frames[3][1])))
