"""Read frames of a video by their time. They equal the frames of a decoder that reads the whole file.

A frame needs the frames before it, back to a keyframe. The reader goes to that keyframe, checks that it got there, and
decodes until the frame with the asked time comes out. Frames that are asked in the order of their times are decoded
once. After an error, frames up to the next keyframe are wrong in ways that no decoder notices, so they are refused.

Axes: `H W` pixels of the upright frame, `P` packets of a stream.
"""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from io import BufferedIOBase
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vitbackbone.images.decode import limit_of
from vitbackbone.images.errors import DamagedImage, TooManyPixels
from vitbackbone.images.video import Video, VideoStream, list_frames
from vitbackbone.images.video_files import opened_video, reason

# Report every fault that the decoder finds, instead of drawing something in place of what is lost.
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
BACK = (0.0, 2.0, 20.0)  # seconds before a keyframe where the file is entered, one after the other, to meet it
NEAR = 16  # packets that are decoded rather than jumped over

Placed = tuple[int, Any]  # a packet, and its place among the packets of its stream


class FrameReader:
    """Reads frames of one video file. It keeps its decoder between two frames, so close it, or use it in `with`.

    `file`: a seekable binary file, which stays open. `video`: its frames, if they are listed already.
    `max_pixels`: the most pixels of a frame; `PIL.Image.MAX_IMAGE_PIXELS` by default.
    Raises `ImageError` as `list_frames` does.
    """

    def __init__(self, file: BufferedIOBase, video: Video | None = None, max_pixels: int | None = None) -> None:
        self.video = list_frames(file) if video is None else video
        self._max_pixels = limit_of(max_pixels)
        self._file = file
        self._decoders: dict[int, _Decoder] = {}

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the decoders. The file stays open."""
        for decoder in self._decoders.values():
            decoder.close()

    def read(self, stream: int, pts: int) -> UInt8[Tensor, "3 H W"]:
        """Return the frame of a stream with this time, upright.

        Raises `ImageError` if there is none, if it is too large, or if it or a frame that it needs is damaged.
        """
        for index, other in self._decoders.items():
            if index != stream:  # all read one file
                other.close()
        if stream not in self._decoders:
            self._decoders[stream] = _Decoder(self._file, self.video.stream(stream), self._max_pixels)
        return self._decoders[stream].read(pts)


class _Decoder:
    """The decoder of one stream, and where it stands."""

    def __init__(self, file: BufferedIOBase, stream: VideoStream, max_pixels: int | None) -> None:
        self._file, self._stream, self._max_pixels = file, stream, max_pixels
        self._place_of = dict(zip(stream.pts.tolist(), stream.place.tolist(), strict=True))
        self._keys = np.flatnonzero(stream.packet_key)
        once = Counter(stream.packet_pts.tolist())
        self._known = {pts: place for place, pts in enumerate(stream.packet_pts.tolist()) if once[pts] == 1}
        self._faults: dict[int, str] = {}  # places of damaged packets, and why
        self._begin: dict[int, int] = {}  # from each keyframe with faults after it to the keyframe before it
        self._unclean: set[int] = set()  # packets that the file calls keyframes and the decoder does not
        self._refreshed = False  # the stream is refreshed bit by bit: no keyframe but the first is whole
        self._opened = ExitStack()
        # PyAV's own converter lives as long as the thread, with helper threads that a forked process would wait for
        # for ever. This one is given up with the decoder and has none.
        self._colours = _converter()
        self._reset(-1)

    def _reset(self, start: int, trusted: int = 0) -> None:
        self._trusted = trusted  # place of the first packet whose faults count
        self._start = start  # place of the first packet that was decoded; -1 while nothing is open
        self._fed = start - 1  # place of the last packet that was decoded
        self._packets: Iterator[Placed] = iter(())
        self._ended = start < 0  # no more packets will be decoded
        self._out: deque[Any] = deque()  # decoded frames that were not requested yet
        self._passed: int | None = None  # time of the last frame that was dropped or returned

    def close(self) -> None:
        self._opened.close()
        self._reset(-1)

    def read(self, pts: int) -> UInt8[Tensor, "3 H W"]:
        place = self._place_of.get(pts)
        if place is None:
            raise DamagedImage(f"the video has no frame with the time {pts}")
        start = self._keyframe(place, pts)
        if start is None:
            raise DamagedImage("the video has no keyframe before this frame: its beginning was cut off")
        if start in self._begin:
            self._check(start, place)
        frame = self._decoded(self._begin.get(start, start), start, place, pts)
        if (frame is None or self._damage(start, place)) and start not in self._begin:
            frame = self._from_earlier(start, place, pts)
        if start in self._unclean and not self._refreshed:
            self._refreshed = True
            return self.read(pts)
        self._check(start, place)
        if frame is None:
            raise DamagedImage("the decoder gave no frame with this time")
        return self._upright(frame)

    def _upright(self, frame: Any) -> UInt8[Tensor, "3 H W"]:
        """Return the colours of a frame, turned as its file says."""
        rgb = self._colours.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return torch.from_numpy(_turned(rgb, frame)).permute(2, 0, 1)

    def _from_earlier(self, start: int, place: int, pts: int) -> Any | None:
        """Decode a frame from the keyframe before `start`, which tells a damaged file from an unusual keyframe."""
        earlier = self._keys[self._keys < start]
        self._begin[start] = int(earlier[-1]) if len(earlier) else start
        for fault in [fault for fault in self._faults if fault >= start]:
            del self._faults[fault]
        self.close()
        return self._decoded(self._begin[start], start, place, pts)

    def _keyframe(self, place: int, pts: int) -> int | None:
        """Return the place of the last keyframe from which a frame can be decoded.

        A keyframe that is shown later than the frame does not suffice: the frame also needs frames before it. A stream
        that is refreshed bit by bit is decoded from its first keyframe, because no other one is whole.
        """
        keys = self._keys[: np.searchsorted(self._keys, place, side="right")]
        for key in (keys[:1] if self._refreshed else keys[::-1]).tolist():
            if self._stream.packet_pts[key] <= pts:
                return int(key)
        return None

    def _damage(self, start: int, place: int) -> str | None:
        """Return the text of a fault among the packets from `start` to `place`."""
        return next((text for fault, text in self._faults.items() if start <= fault <= place), None)

    def _check(self, start: int, place: int) -> None:
        text = self._damage(start, place)
        if text is not None:
            needed = "this frame" if place in self._faults else "a frame that this one needs"
            raise DamagedImage(f"{needed} is damaged: {text}")

    def _decoded(self, begin: int, start: int, place: int, pts: int) -> Any | None:
        """Return the frame, decoded from the packet `begin` on or from an earlier one, or None if the decoder does not
        return it.

        `start`: the first packet whose faults count. It waits for frames that are decoded before this one and shown
        after it, because only a decoded frame tells whether it is damaged.
        """
        follows = self._start in range(begin + 1) and (self._passed is None or self._passed < pts)
        useful = any(frame.pts == pts for frame in self._out) or (not self._ended and self._fed + NEAR >= begin)
        if not follows or not useful:
            self._go_to(begin, start)
        last = int(self._stream.packet_pts[start : place + 1].max())
        while not self._ended and not any(frame.pts >= last for frame in self._out):
            self._feed()
        while self._out and self._out[0].pts <= pts:
            frame = self._out.popleft()
            self._passed = frame.pts
            if frame.pts == pts:
                return frame
        return None

    def _feed(self) -> None:
        """Decode the next packet. After a fault nothing more is decoded: the next frame begins with a new decoder."""
        import av

        place, packet = next(self._packets, (self._fed + 1, None))
        self._fed = place
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError as error:
            frames = []
            if self._counts(place):
                self._faults[place] = reason(error)
                frames = self._rest()
        if packet is not None and packet.is_corrupt and self._counts(place):
            self._faults[place] = "parts of it are missing in the file"
        self._ended = packet is None or place in self._faults
        for frame in frames:
            if frame.pts in self._place_of:
                self._take(frame)

    def _counts(self, place: int) -> bool:
        """Tell whether a fault in a packet counts.

        A fault before the requested packet does not count. Nor does one in a frame that is shown before the keyframe
        with which the decoder began, because it needs frames that the decoder has not seen.
        """
        pts = self._stream.packet_pts
        return place >= max(self._trusted, self._start) and bool(place >= len(pts) or pts[place] >= pts[self._start])

    def _rest(self) -> list[Any]:
        """Return the frames that the decoder holds, which were decoded before the error."""
        import av

        try:
            return self._context.decode(None)
        except av.error.FFmpegError:
            return []

    def _take(self, frame: Any) -> None:
        """Keep a frame that came out, and what it says about its packet."""
        self._check_size(frame)  # again, because a stream may change its size
        place = self._place_of[frame.pts]
        if frame.is_corrupt and self._counts(place):
            self._faults[place] = "the decoder could not restore all of it"
        if self._stream.packet_key[place] and not frame.key_frame:
            self._unclean.add(place)
        self._out.append(frame)

    def _check_size(self, sized: Any) -> None:
        if self._max_pixels is not None and sized.width * sized.height > self._max_pixels:
            raise TooManyPixels(f"{sized.width} x {sized.height} pixels are more than the limit of {self._max_pixels}")

    def _go_to(self, begin: int, start: int) -> None:
        """Begin a new decoder with the packet `begin`. Faults count from the packet `start` on."""
        for back in (*BACK, None):
            self.close()
            packets = self._enter(begin, back)
            first = next(packets, None)
            if first is not None and first[0] == begin:
                self._reset(begin, start)
                self._packets = _chain(first, packets)
                return
        raise DamagedImage("the decoder cannot seek to the keyframe before this frame; has the file changed?")

    def _enter(self, start: int, back: float | None) -> Iterator[Placed]:
        """Yield the packets from `start` on. Yield others, or none, if the file was entered after it.

        `back`: how many seconds before the packet the file is entered; None for its beginning.
        """
        container = self._opened.enter_context(opened_video(self._file))
        stream = container.streams[self._stream.index]
        self._context = stream.codec_context
        self._check_size(self._context)
        self._context.options = STRICT | ({} if self._max_pixels is None else {"max_pixels": str(2 * self._max_pixels)})
        self._context.thread_count = 1
        place = -1
        pts = int(self._stream.packet_pts[start])
        if back is not None and pts in self._known and start > 0:
            container.seek(pts - round(back / self._stream.time_base), stream=stream, backward=True)
            place = -2  # unknown until a packet tells it
        for packet in container.demux(stream):
            if not packet.size:
                continue
            place = self._known.get(packet.pts, -2) if place == -2 else place + 1
            if place >= start:
                yield place, packet


def _turned(rgb: UInt8[np.ndarray, "H W 3"], frame: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Turn and mirror a frame by its display matrix, which maps the pixel (x, y) to (a x + c y, b x + d y)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return rgb.copy()
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32).tolist()[:5]
    sideways = abs(b) + abs(c) > abs(a) + abs(d)
    right, down = (c, b) if sideways else (a, d)
    upright = rgb.swapaxes(0, 1) if sideways else rgb
    return upright[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1].copy()


def _chain(first: Placed, others: Iterator[Placed]) -> Iterator[Placed]:
    yield first
    yield from others


def _converter() -> Any:
    """Return a converter of the colours of frames."""
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()
