"""The frames of a video file, listed without decoding them.

A frame is known by its stream and its time (`pts`). Its index counts the frames of its stream in the order in which
they are shown.

Axes: `N` frames of a stream, `P` packets of it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedIOBase
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from vitbackbone.images.errors import DamagedImage, ImageError
from vitbackbone.images.video_files import (
    MATROSKA,
    VIDEO_HEAD,
    check_codec,
    opened_video,
    reason,
    segment_end,
    video_format,
)

NO_TIME = -(2**63)  # stands for an unknown time
VP8_SHOWN = 0x10  # bit of a VP8 frame's first byte; a frame without it is only a reference for others


@dataclass(frozen=True, eq=False)
class VideoStream:
    """The frames of one stream of a video, in the order in which they are shown, and the packets that code them."""

    index: int  # index of the stream in the file
    time_base: Fraction  # seconds of a unit of `pts`
    pts: Int[np.ndarray, " N"]  # ascending
    keyframe: Bool[np.ndarray, " N"]
    place: Int[np.ndarray, " N"]  # position of each frame among the packets
    packet_pts: Int[np.ndarray, " P"]  # in the order of decoding; `NO_TIME` where unknown
    packet_key: Bool[np.ndarray, " P"]
    problem: str | None = None  # why some frames are not listed


@dataclass(frozen=True, eq=False)
class Video:
    """The streams of a video file that have frames."""

    streams: tuple[VideoStream, ...]

    def stream(self, index: int) -> VideoStream:
        """Return the stream of this index in the file. Raises `ImageError` if there is none."""
        for stream in self.streams:
            if stream.index == index:
                return stream
        raise DamagedImage(f"the video has no stream {index}")


@dataclass
class _Packets:
    """The packets of one stream, in the order of decoding, as they are read."""

    pts: list[int]
    keyframe: list[bool]
    shown: list[bool]


def list_frames(file: BufferedIOBase) -> Video:
    """List the frames of a video by its packets. Nothing is decoded.

    `file`: a seekable binary file. Streams with cover art are left out. A file that ends early, or is damaged after
    some frames, gives these frames, and the stream's `problem` says so. Raises `ImageError` if the file is not a video,
    has no frames, or cannot be opened (an MP4 without its index).
    """
    with opened_video(file) as container:
        streams = _video_streams(container)
        found = {stream.index: _Packets([], [], []) for stream in streams}
        fault = _read_packets(container, streams, found) or _cut(file)
        listed = tuple(_in_order(stream, found[stream.index], fault) for stream in streams)
    if not any(len(stream.pts) for stream in listed):
        said = "; ".join(stream.problem for stream in listed if stream.problem)
        raise DamagedImage(f"the video has no frame that can be read{': ' + said if said else ''}")
    return Video(listed)


def _video_streams(container: Any) -> list[Any]:
    from av.stream import Disposition

    streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    if not streams:
        raise ImageError("the file has no video stream")
    for stream in streams:
        check_codec(stream)
    return streams


def _read_packets(container: Any, streams: list[Any], found: dict[int, _Packets]) -> str | None:
    """Read all packets. Return the text of the error that ended the file early, if any."""
    import av

    try:
        for packet in container.demux(streams):
            if packet.size:  # an empty one asks the decoder for its last frames
                stream = found[packet.stream.index]
                stream.pts.append(NO_TIME if packet.pts is None else packet.pts)
                stream.keyframe.append(packet.is_keyframe)
                stream.shown.append(packet.pts is not None and not packet.is_discard and is_shown(packet))
    except av.error.FFmpegError as error:
        return reason(error)
    return None


def _cut(file: BufferedIOBase) -> str | None:
    """Tell by the header of a Matroska file whether its end was cut off, which its reader takes for an end."""
    file.seek(0)
    head = file.read(VIDEO_HEAD)
    end = segment_end(head) if video_format(head) == MATROSKA else None
    length = file.seek(0, os.SEEK_END)
    return None if end is None or end <= length else f"it has {length} bytes; its header promises {end}"


def is_shown(packet: Any) -> bool:
    """Tell whether a packet gives a frame to show. VP8 also codes frames that only serve others."""
    return packet.stream.codec_context.name not in ("vp8", "libvpx") or bool(bytes(packet)[0] & VP8_SHOWN)


def _in_order(stream: Any, packets: _Packets, fault: str | None) -> VideoStream:
    """Return the frames of a stream in the order in which they are shown."""
    pts, keyframe = np.array(packets.pts, dtype=np.int64), np.array(packets.keyframe, dtype=bool)
    shown = np.flatnonzero(np.array(packets.shown, dtype=bool))
    order = shown[np.argsort(pts[shown], kind="stable")]
    first = np.diff(pts[order], prepend=NO_TIME) != 0  # True at the first frame of each time
    kept = order[first]
    promised = len(stream.index_entries) if stream.frames else 0  # the index of an MP4, less what its edits cut off
    problems = _problems(len(kept), packets, fault, promised, len(order) - len(kept))
    text = "; ".join(problems) or None
    return VideoStream(stream.index, Fraction(stream.time_base), pts[kept], keyframe[kept], kept, pts, keyframe, text)


def _problems(count: int, packets: _Packets, fault: str | None, promised: int, twice: int) -> Iterator[str]:
    if fault is not None:
        yield f"the file is damaged behind {count} frames: {fault}"
    elif promised > len(packets.pts):
        yield f"the file ends behind {count} frames; its header promises {promised}"
    if twice:
        yield f"{twice} frames have the time of another frame"
    if packets.pts and not count:
        yield "its frames have no times"
