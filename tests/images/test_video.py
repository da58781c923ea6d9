"""Frames of videos. The oracle decodes the whole file with PyAV, one frame after the other."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("av")

import av

from tests.images.videos import KINDS, SIZE, Kind, decoded, make_video, packets, picture, trimmed, with_matrix
from vitbackbone.images.errors import DamagedImage, ImageError, TooManyPixels, UnknownFormat
from vitbackbone.images.video import Video, list_frames
from vitbackbone.images.video_files import VIDEO_HEAD, video_format
from vitbackbone.images.video_frames import FrameReader
from vitbackbone.images.video_sampling import Sampling

QUICK = ("mp4", "mkv", "webm vp8", "ts", "ts refreshed bit by bit", "mp4 open groups")
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in KINDS]
DAMAGED = [pytest.param(name, marks=[] if name in ("mp4", "ts") else pytest.mark.slow) for name in KINDS]


def listed(data: bytes) -> Video:
    return list_frames(io.BytesIO(data))


def equal(frame: Tensor, expected: np.ndarray) -> bool:
    return np.array_equal(frame.permute(1, 2, 0).numpy(), expected)


def read_all(data: bytes, stream: int = 0) -> dict[int, Tensor | str]:
    """Return each listed frame of a stream, or the reason why it cannot be read."""
    found: dict[int, Tensor | str] = {}
    with FrameReader(io.BytesIO(data)) as reader:
        for pts in reader.video.stream(stream).pts.tolist():
            try:
                found[pts] = reader.read(stream, pts)
            except ImageError as error:
                found[pts] = str(error)
    return found


# ---- whole files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_frames_equal_a_whole_decoding_in_any_order(name: str) -> None:
    data = make_video(KINDS[name])
    expected = dict(decoded(data))
    assert len(expected) == 40
    video = listed(data)
    stream = video.streams[0]
    assert stream.pts.tolist() == list(expected)
    assert stream.problem is None
    assert video_format(data[:VIDEO_HEAD]) is not None
    order = np.random.default_rng(0).permutation(stream.pts)
    with FrameReader(io.BytesIO(data), video) as reader:
        for pts in [*stream.pts.tolist(), *stream.pts[::7].tolist(), *order.tolist(), *order.tolist()]:
            assert equal(reader.read(stream.index, pts), expected[pts]), pts


@pytest.mark.parametrize("name", EVERY)
def test_a_frame_that_is_read_alone_equals_a_whole_decoding(name: str) -> None:
    data = make_video(KINDS[name], 30)
    for pts, expected in decoded(data)[::5]:
        with FrameReader(io.BytesIO(data)) as reader:
            assert equal(reader.read(0, pts), expected), pts


def test_keyframes_and_times_are_those_of_the_decoder() -> None:
    data = make_video(KINDS["mp4"])
    stream = listed(data).streams[0]
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        assert stream.time_base == container.streams[0].time_base
    assert stream.keyframe.tolist() == [frame.key_frame for frame in frames]
    assert 1 < stream.keyframe.sum() < 40


def test_frames_in_order_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbackbone.images import video_frames

    opened = []
    entered = video_frames._Decoder._go_to

    def spy(self: object, *args: int) -> None:
        opened.append(args)
        entered(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(video_frames._Decoder, "_go_to", spy)
    for name in ("mp4", "ts", "mp4 open groups"):
        opened.clear()
        assert len(read_all(make_video(KINDS[name]))) == 40
        assert len(opened) <= 2, name


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_turned_upright(rotation: int) -> None:
    data = make_video(KINDS["mp4"], 3, rotation=rotation)
    straight = decoded(make_video(KINDS["mp4"], 3))
    for (pts, frame), (_, unturned) in zip(read_all(data).items(), straight, strict=True):
        assert isinstance(frame, Tensor), pts
        assert frame.shape == (3, *(SIZE if rotation == 180 else SIZE[::-1]))
        assert equal(frame, np.rot90(unturned, rotation // 90))


@pytest.mark.parametrize(
    ("matrix", "show"),
    [
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda frame: np.rot90(frame.swapaxes(0, 1), 2)),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    ],
)
def test_mirrored_frames_are_shown_as_they_were_filmed(
    matrix: tuple[int, int, int, int], show: Callable[[np.ndarray], np.ndarray]
) -> None:
    data = make_video(KINDS["mp4"], 3)
    for frame, (_, stored) in zip(read_all(with_matrix(data, *matrix)).values(), decoded(data), strict=True):
        assert isinstance(frame, Tensor)
        assert equal(frame, show(stored))


@pytest.mark.parametrize(("start", "count"), [(0, 5), (512 * 13, 12), (512 * 13 + 200, 40)])
def test_a_trimmed_video_has_the_frames_that_are_shown(start: int, count: int) -> None:
    data = trimmed(make_video(KINDS["mp4 without B-frames"]), start, 40 * count)
    shown = decoded(data)
    assert 5 <= len(shown) < 40
    assert listed(data).streams[0].problem is None
    for frame, (_, expected) in zip(read_all(data).values(), shown, strict=True):
        assert isinstance(frame, Tensor)
        assert equal(frame, expected)


def test_each_stream_has_its_own_frames() -> None:
    data = make_video(KINDS["mkv"], 14, streams=2)
    video = listed(data)
    assert [stream.index for stream in video.streams] == [0, 1]
    with FrameReader(io.BytesIO(data), video) as reader:
        both = [(number, *frame) for number in (0, 1) for frame in decoded(data, number)]
        for stream, pts, expected in sorted(both, key=lambda each: each[1]):  # in turn
            assert equal(reader.read(stream, pts), expected)


# ---- damaged and cut files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mp4", "mkv"])
def test_a_damaged_packet_costs_the_frames_up_to_the_next_keyframe(name: str) -> None:
    data = make_video(KINDS[name])
    whole = dict(decoded(data))
    place, (_, position, size) = 16, packets(data)[16]
    spoilt = (
        data[: position + 5] + bytes(255 - b for b in data[position + 5 : position + size]) + data[position + size :]
    )
    stream = listed(data).streams[0]
    keys = np.flatnonzero(stream.packet_key)
    needs_it = (stream.place >= place) & (stream.place < keys[keys > place][0])
    found = read_all(spoilt)
    assert list(found) == list(whole)
    for pts, needs in zip(whole, needs_it.tolist(), strict=True):
        frame = found[pts]
        if needs:
            assert isinstance(frame, str)
            assert re.search("is damaged|gave no frame", frame)
        else:
            assert isinstance(frame, Tensor), (pts, frame)
            assert equal(frame, whole[pts])
    assert 1 <= needs_it.sum() < 12


# A damaged frame of VP8 depends on what its decoder saw before, so that it equals nothing.
@pytest.mark.parametrize("name", [each for each in DAMAGED if each.values[0] != "webm vp8"])
@pytest.mark.parametrize("seed", range(3))
def test_with_flipped_bytes_a_frame_is_refused_or_equals_a_whole_decoding(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(make_video(KINDS[name]))
    for place in rng.integers(len(data) // 4, 3 * len(data) // 4, 12):
        data[place] = rng.integers(256)
    try:
        found = read_all(bytes(data))
    except ImageError:
        return
    expected = dict(decoded(bytes(data)))
    for pts, frame in found.items():
        assert isinstance(frame, str) or equal(frame, expected[pts]), pts


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("share", [0.3, 0.75, 0.99])
def test_a_cut_file_gives_the_frames_that_are_there(name: str, share: float) -> None:
    data = make_video(KINDS[name])
    cut = data[: int(share * len(data))]
    expected = dict(decoded(cut))
    try:
        found = read_all(cut)
    except ImageError:  # such as an MP4 without the index at its end
        assert KINDS[name].format == "mp4" or not expected
        return
    read = {pts: frame for pts, frame in found.items() if isinstance(frame, Tensor)}
    assert all(equal(frame, expected[pts]) for pts, frame in read.items())
    assert len(read) >= len(expected) - 3  # the last packet may be cut, and frames that need it


def test_a_cut_mp4_with_its_index_in_front_says_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "faststart.mp4"
    with (
        av.open(io.BytesIO(make_video(KINDS["mp4 without B-frames"]))) as made,
        av.open(file, "w", options={"movflags": "faststart"}) as moved,
    ):
        stream = moved.add_stream_from_template(made.streams.video[0])
        for packet in made.demux(video=0):
            if packet.size:
                packet.stream = stream
                moved.mux(packet)
    data = file.read_bytes()
    cut = data[: int(0.7 * len(data))]
    whole, found = dict(decoded(data)), read_all(cut)
    assert 10 < len(found) < 40
    stream = listed(cut).streams[0]
    assert stream.problem is not None
    assert "its header promises 40" in stream.problem
    good = [pts for pts, frame in found.items() if isinstance(frame, Tensor)]
    assert len(good) >= len(found) - 4
    assert all(equal(found[pts], whole[pts]) for pts in good)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mkv", "webm vp8"])
def test_a_cut_matroska_says_what_it_lacks(name: str) -> None:
    data = make_video(KINDS[name])
    assert listed(data + b"more").streams[0].problem is None
    cut = listed(data[: int(0.7 * len(data))]).streams[0]
    assert 10 < len(cut.pts) < 40
    assert cut.problem is not None
    assert f"its header promises {len(data)}" in cut.problem
    live = make_video(replace(KINDS[name], file_options={"live": "1"}))  # its header promises nothing
    assert listed(live[: int(0.7 * len(live))]).streams[0].problem is None


def test_a_stream_that_was_cut_in_front_is_whole_from_its_first_keyframe_on() -> None:
    data = make_video(KINDS["ts"])
    whole, packets = dict(decoded(data)), len(data) // 188
    failed = 0
    for cut in range(packets // 5, packets // 2, 3):
        rest = data[188 * cut :]
        found, stream = read_all(rest), listed(rest).streams[0]
        begin = stream.pts[np.argmax(stream.keyframe)]
        assert 10 < len(found) < 40
        for pts, frame in found.items():
            if isinstance(frame, Tensor):
                assert equal(frame, whole[pts])
            else:
                failed += 1
                assert pts < begin
                assert frame == "the video has no keyframe before this frame: its beginning was cut off"
    assert failed


def test_a_frame_without_a_keyframe_is_refused() -> None:
    data = make_video(KINDS["mp4"])
    video = listed(data)
    stream = video.streams[0]
    none_before = replace(stream, packet_key=stream.packet_key & (np.arange(len(stream.packet_key)) > 0))
    with FrameReader(io.BytesIO(data), Video((none_before,))) as reader:
        with pytest.raises(DamagedImage, match="has no keyframe before this frame"):
            reader.read(0, 0)
        assert equal(reader.read(0, int(stream.pts[20])), decoded(data)[20][1])


# ---- hostile and other files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\x89PNG\r\n\x1a\n" + bytes(2000),
        b"G" * 100,
        bytes(4000),
    ],
)
@pytest.mark.promise(15)
def test_only_known_formats_are_opened(data: bytes) -> None:
    with pytest.raises(UnknownFormat, match="not a video of a known format"):
        listed(data)


@pytest.mark.promise(15)
def test_only_known_decoders_run() -> None:
    data = make_video(Kind("matroska", "rawvideo"), 2)
    with pytest.raises(ImageError, match="want one of h264"):
        listed(data)


def test_sound_alone_is_no_video() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ImageError, match="no video stream"):
        listed(file.getvalue())


@pytest.mark.promise(10)
def test_a_frame_above_the_limit_is_refused() -> None:
    data = make_video(KINDS["mp4"], 3)
    reader = FrameReader(io.BytesIO(data), max_pixels=SIZE[0] * SIZE[1] - 1)
    with reader, pytest.raises(TooManyPixels, match="64 x 48 pixels are more than the limit"):
        reader.read(0, 0)


def test_an_unknown_time_or_stream_is_an_error() -> None:
    with FrameReader(io.BytesIO(make_video(KINDS["mp4"], 3))) as reader:
        with pytest.raises(DamagedImage, match="no frame with the time 7"):
            reader.read(0, 7)
        with pytest.raises(DamagedImage, match="no stream 3"):
            reader.read(3, 0)


def test_without_av_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"pip install 'vitbackbone\[video\]'"):
        listed(b"")


# ---- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [0.5, 2, 2.5, 10, 25, 29.97, 1000])
@pytest.mark.parametrize("variable", [False, True])
def test_frames_a_second_are_those_that_are_shown_at_these_times(fps: float, variable: bool) -> None:
    """The oracle asks which frame is shown at each time: the last one that does not begin later."""
    rng = np.random.default_rng(0)
    pts = 5 + np.cumsum(rng.integers(1, 90, 60)) if variable else 5 + np.arange(60) * 20
    time_base, keyframe = Fraction(1, 500), np.zeros(60, bool)
    step, shown = 1 / Fraction(fps).limit_denominator(1_000_000), []
    for k in range(100_000):
        time = pts[0] * time_base + k * step
        if time > pts[-1] * time_base:
            break
        shown.append(max(i for i in range(60) if pts[i] * time_base <= time))
    assert Sampling(fps=fps).choose(pts, time_base, keyframe).tolist() == sorted(set(shown))


def test_strides_and_keyframes() -> None:
    pts, keyframe = np.arange(10) * 3, np.arange(10) % 4 == 0
    assert Sampling().choose(pts, Fraction(1, 25), keyframe).tolist() == list(range(10))
    assert Sampling(stride=4).choose(pts, Fraction(1, 25), keyframe).tolist() == [0, 4, 8]
    assert Sampling(keyframes=True).choose(pts, Fraction(1, 25), keyframe).tolist() == [0, 4, 8]
    assert len(Sampling(fps=2).choose(pts[:0], Fraction(1, 25), keyframe[:0])) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fps": 0}, "fps must be above 0"),
        ({"fps": float("inf")}, "fps must be above 0"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"fps": 2, "keyframes": True}, "at most one way"),
    ],
)
def test_impossible_samplings_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)  # type: ignore[arg-type]


def test_pictures_of_the_tests_differ() -> None:
    assert len({picture(i).tobytes() for i in range(100)}) == 100
    assert not torch.equal(torch.from_numpy(picture(0)), torch.from_numpy(picture(1000)))
