"""Videos that are made for tests, and PyAV as the oracle: it decodes all frames of a file, one after the other."""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

RATE = 25
SIZE = (48, 64)  # (H, W)


def picture(i: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return a picture (H, W, 3) that is like no other number's."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x * 2 + i * 7, y * 3 + i * 5, x + y + i * 11], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class Kind:
    """How a video is coded."""

    format: str  # FFmpeg's name
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    variable: bool = False  # frames last from 1 to 7 hundredths of a second
    file_options: dict[str, str] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "mp4": Kind("mp4", "libx264", {"bf": "3", "g": "12"}, True),
    "mp4 without B-frames": Kind("mp4", "libx264", {"bf": "0", "g": "12"}),
    "mp4 open groups": Kind("mp4", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}, True),
    "mp4 hevc": Kind("mp4", "libx265", {"x265-params": "keyint=12:log-level=none"}, True),
    "mp4 part 2": Kind("mp4", "mpeg4", {"g": "12"}),
    "mp4 fragments": Kind("mp4", "libx264", {"g": "12"}, True, {"movflags": "frag_keyframe+empty_moov"}),
    "mkv": Kind("matroska", "libx264", {"bf": "3", "g": "12"}, True),
    "mkv lossless": Kind("matroska", "ffv1"),
    "webm vp8": Kind("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10", "g": "12"}, True),
    "webm vp9": Kind("webm", "libvpx-vp9", {"g": "12", "cpu-used": "8"}, True),
    "ts": Kind("mpegts", "libx264", {"bf": "3", "g": "12"}, True),
    "ts open groups": Kind("mpegts", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "ts refreshed bit by bit": Kind("mpegts", "libx264", {"x264-params": "intra-refresh=1:keyint=12"}),
    "ts mpeg2": Kind("mpegts", "mpeg2video", {"bf": "2", "g": "12"}),
    "ts hevc": Kind("mpegts", "libx265", {"x265-params": "open-gop=1:keyint=12:bframes=3:log-level=none"}),
}


def make_video(
    kind: Kind, count: int = 40, size: tuple[int, int] = SIZE, streams: int = 1, rotation: int = 0, first: int = 0
) -> bytes:
    """Make a video of `count` frames a stream. Stream s shows the pictures from `first + 1000 * s` on."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind.format, options=kind.file_options) as container:
        made = []
        for _ in range(streams):
            stream = container.add_stream(kind.codec, rate=RATE, options=kind.options)
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, 100 if kind.variable else RATE)
            if rotation:
                stream.set_display_rotation(rotation)
            made.append(stream)
        for i in range(count):
            for number, stream in enumerate(made):
                frame = av.VideoFrame.from_ndarray(picture(first + i + 1000 * number, size), format="rgb24")
                frame.pts = 4 * i + (i * i) % 4 if kind.variable else i
                frame.time_base = stream.codec_context.time_base
                container.mux(stream.encode(frame))
        for stream in made:
            container.mux(stream.encode())
    return file.getvalue()


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """Return an MP4 with another display matrix: the pixel (x, y) is shown at (a x + c y, b x + d y)."""
    at = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    ones = (each << 16 for each in (a, b, 0, c, d, 0, 0, 0))
    return data[:at] + struct.pack(">9i", *ones, 1 << 30) + data[at + 36 :]


def trimmed(data: bytes, start: int, length: int) -> bytes:
    """Return an MP4 with another edit: `length` thousandths of a second are shown, from the time `start` on."""
    at = data.index(b"elst") + 8
    assert struct.unpack_from(">I", data, at) == (1,)
    return data[: at + 4] + struct.pack(">Ii", length, start) + data[at + 12 :]


def decoded(data: bytes, stream: int = 0) -> list[tuple[int, np.ndarray]]:
    """Return the time and the upright colours of every frame that a whole decoding gives, in its order."""
    found: list[tuple[int, np.ndarray]] = []
    try:
        opened = av.open(io.BytesIO(data))
    except av.error.FFmpegError:
        return found
    with opened as container:
        chosen = container.streams[stream]
        try:
            chosen.codec_context.thread_count = 1
            for packet in container.demux(chosen):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue
                found += [
                    (frame.pts, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)) for frame in frames
                ]
        except (av.error.FFmpegError, AttributeError):  # the file ends early, or has no decoder
            pass
    return found


def keyframes(data: bytes) -> list[int]:
    """Return the indices of the keyframes."""
    with av.open(io.BytesIO(data)) as container:
        return [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]


def packets(data: bytes, stream: int = 0) -> Sequence[tuple[int, int, int]]:
    """Return the time, the position and the size in bytes of each packet."""
    with av.open(io.BytesIO(data)) as container:
        chosen = container.streams[stream]
        return [(each.pts, each.pos, each.size) for each in container.demux(chosen) if each.size]
