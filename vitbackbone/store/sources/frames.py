"""Frames of videos as inputs: a row for each frame.

A video is listed as if it were an archive of its frames. The name of a frame tells its stream and its index in that
stream. It also tells its time (`pts`), the unit of that time in seconds, and whether it is a keyframe:

    clip.mp4/0/000012@6144x1-12800k      stream 0, frame 12, pts 6144 in units of 1/12800 s, a keyframe

A video in a `.tar` or `.zip` is read in place, and its name comes between the two: `a.tar/clip.mp4/0/000012@...`.
The content of a frame is identified by the checksum of the file, the stream and the time, so that planning decodes
nothing.
"""

import hashlib
import os
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, UInt8
from torch import Tensor

from vitbackbone.files import ServiceDown, is_installed
from vitbackbone.images import (
    VIDEO_EXTENSIONS,
    DamagedImage,
    FrameReader,
    ImageError,
    Sampling,
    Video,
    VideoStream,
    list_frames,
)
from vitbackbone.store.sources.archive_kinds import ARCHIVES, ending_of
from vitbackbone.store.sources.names import escaped, extension
from vitbackbone.store.sources.remote import is_remote, open_file, version_of
from vitbackbone.store.sources.rows import LISTED, Inputs

ENDINGS = "|".join(sorted(VIDEO_EXTENSIONS))
IS_VIDEO = rf"(?i)\.(?:{ENDINGS})$"
FRAME = r"(?P<stream>\d+)/(?P<frame>\d+)@(?P<pts>-?\d+)x(?P<units>\d+)-(?P<per>\d+)(?P<key>k?)"
IS_FRAME = rf"(?i)\.(?:{ENDINGS})/{FRAME}$"
REST = re.compile(r"\[the rest of stream (\d+)\]")  # the row of the frames that a damaged stream lacks
# A member of an archive: a video, or a frame of one.
PACKED = re.compile(rf"(?is)(?P<video>.*\.(?:{ENDINGS}))(?:/(?P<name>{FRAME}|{REST.pattern}))?")
ARCHIVES_OF_VIDEOS = (".tar", ".zip")
KEPT = 4  # videos that a process keeps open


@dataclass(frozen=True)
class VideoPlace:
    """The place of a video: a file, or a member of an archive."""

    file: str  # the video, or its archive: a path or a URL
    private: bool = False  # as for `remote.open_file`
    member: str = ""  # its name in the archive; empty for a plain file
    offset: int = -1  # see `archive.ArchiveMember`


def video_place(file: str, member: str, offset: int, private: bool) -> tuple[VideoPlace, str] | None:
    """Return the video of an input and the name of the frame in it, which is empty for the video itself.

    Returns None if the input is neither. Arguments as the fields of `Locator`.
    """
    if is_video(file):
        return VideoPlace(file, private), member
    found = PACKED.fullmatch(member) if ending_of(file) in ARCHIVES_OF_VIDEOS else None
    return found and (VideoPlace(file, private, found["video"], offset), found["name"] or "")


def is_video(path: str) -> bool:
    """Tell by its name whether a file is a video."""
    return extension(path) in VIDEO_EXTENSIONS


def with_frames(inputs: Inputs, sampling: Sampling) -> Inputs:
    """Replace each video among the inputs by its frames. A video that cannot be listed stays: it is a failed row."""
    table = inputs.table
    places = _videos(inputs)
    if not places:
        return inputs
    if not is_installed("av"):
        left = pc.invert(pa.array(np.isin(np.arange(len(table)), list(places))))
        note = f"{len(places)} videos are left out; for their frames run pip install 'vitbackbone[video]'"
        return Inputs(inputs.root, table.filter(left), inputs.class_names, (*inputs.notes, note))
    parts, start, notes = [], 0, list(inputs.notes)
    for row, place in places.items():
        parts.append(table[start:row])
        one = table[row : row + 1]
        try:
            video = _opened(place)
        except ServiceDown:
            raise
        except (ImageError, OSError, ValueError, pa.ArrowException) as error:
            notes.append(f"{escaped(os.fsdecode(one['path'][0].as_py()))}: {error}")
            parts.append(one)
        else:
            parts.append(_rows(one.to_pylist()[0], video, sampling))
        start = row + 1
    return Inputs(inputs.root, pa.concat_tables([*parts, table[start:]]), inputs.class_names, tuple(notes))


def _videos(inputs: Inputs) -> dict[int, VideoPlace]:
    """Return the place of each input that is a video, by its row."""
    found: dict[int, VideoPlace] = {}
    rows = np.flatnonzero(pc.match_substring_regex(inputs.table["path"], IS_VIDEO).to_numpy())
    some = inputs.table.take(pa.array(rows))
    columns = (some[name].to_pylist() for name in ("path", "archive", "offset"))
    for row, path, archive, offset in zip(rows.tolist(), *columns, strict=True):
        file, member = (path[:archive], path[archive + 1 :]) if archive else (path, b"")
        place = video_place(inputs.root.locate(os.fsdecode(file)), os.fsdecode(member), offset, inputs.root.private)
        if place is not None:
            found[row] = place[0]
    return found


def _rows(row: dict[str, Any], video: "_Opened", sampling: Sampling) -> pa.Table:
    """Return the rows of the frames of a video, given the row of the video."""
    path, packed = row["path"], row["archive"] > 0
    names: list[str] = []
    times: list[int] = []
    for stream in video.listed.streams:
        chosen = sampling.choose(stream.pts, stream.time_base, stream.keyframe)
        names += [frame_name(stream, row) for row in chosen.tolist()]
        times += stream.pts[chosen].tolist()
        if stream.problem is not None:
            names.append(f"[the rest of stream {stream.index}]")
            times.append(-1)
    count = len(names)
    columns = {
        "path": [path + b"/" + name.encode() for name in names],
        "archive": [row["archive"] or len(path)] * count,
        "offset": [row["offset"]] * count if packed else times,
        "bytes": [row["bytes"]] * count,
        "version": [video.version] * count,
        "sha256": pa.nulls(count, pa.binary(32)),
        "label": [row["label"]] * count,
    }
    return pa.table(columns, LISTED)


def frame_name(stream: VideoStream, row: int) -> str:
    """Return the name of a frame of a stream."""
    base = stream.time_base
    key = "k" if stream.keyframe[row] else ""
    return f"{stream.index}/{row:06}@{stream.pts[row]}x{base.numerator}-{base.denominator}{key}"


def frame_columns(paths: pa.Array | pa.ChunkedArray) -> dict[str, Any]:
    """Return what the paths of rows say of frames: stream, frame, pts, time_base and keyframe, null for photos."""
    found = pc.extract_regex(paths.cast(pa.binary()), IS_FRAME)
    cells = {name: pc.struct_field(found, name).cast(pa.string()) for name in ("stream", "frame", "pts", "key")}
    base = [pc.struct_field(found, name).cast(pa.string()) for name in ("units", "per")]
    return {
        "stream": cells["stream"].cast(pa.int32()),
        "frame": cells["frame"].cast(pa.int64()),
        "pts": cells["pts"].cast(pa.int64()),
        "time_base": pc.binary_join_element_wise(*base, "/"),
        "keyframe": pc.equal(cells["key"], "k"),
    }


def may_begin(paths: pa.ChunkedArray) -> Bool[np.ndarray, " n"]:
    """Tell of each row whether a shard may well begin with it: photos and keyframes need no row before them."""
    return pc.or_(pc.invert(is_frame_path(paths)), pc.match_substring_regex(paths, "k$")).to_numpy()


def is_frame_path(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Tell of each path whether it is one of a frame."""
    return pc.match_substring_regex(paths, IS_FRAME)


def read_frame(place: VideoPlace, name: str, max_pixels: int | None) -> tuple[UInt8[Tensor, "3 H W"], bytes]:
    """Return a frame of a video, upright, and its identity. Raises `ImageError`, `OSError`, or `ValueError`."""
    with _lock:
        video = _opened(place)
        stream, pts = _parsed(video.listed, name)
        identity = _identity(video, stream, pts)  # first: the checksum of the file closes its decoders
        return video.reader(max_pixels).read(stream, pts), identity


def frame_identity(place: VideoPlace, name: str) -> bytes:
    """Return the identity of a frame without decoding it. Raises as `read_frame`."""
    with _lock:
        video = _opened(place)
        return _identity(video, *_parsed(video.listed, name))


def check_video(place: VideoPlace) -> None:
    """Raise the error that keeps a video from being listed, if it still occurs."""
    with _lock:
        _opened(place)


def _identity(video: "_Opened", stream: int, pts: int) -> bytes:
    return hashlib.sha256(video.digest + f"{stream}:{pts}".encode()).digest()


def _parsed(video: Video, name: str) -> tuple[int, int]:
    """Return the stream and the time of a frame. Raises `ImageError` if the row stands for frames that are lost."""
    found = re.fullmatch(FRAME, name)
    if found is not None:
        return int(found["stream"]), int(found["pts"])
    rest = REST.fullmatch(name)
    problem = video.stream(int(rest[1])).problem if rest is not None else None
    raise DamagedImage(problem or f"the video has no frame {name!r}")


# ---- open videos --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Opened:
    """A video that this process has open."""

    file: BufferedIOBase
    version: str
    listed: Video
    readers: dict[int | None, FrameReader]

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of the file."""
        for reader in self.readers.values():
            reader.close()
        self.file.seek(0)
        digest = hashlib.sha256()
        while data := self.file.read(1 << 20):
            digest.update(data)
        return digest.digest()

    def reader(self, max_pixels: int | None) -> FrameReader:
        if max_pixels not in self.readers:
            self.close_readers()
            self.readers[max_pixels] = FrameReader(self.file, self.listed, max_pixels)
        return self.readers[max_pixels]

    def close_readers(self) -> None:
        for reader in self.readers.values():
            reader.close()
        self.readers.clear()

    def close(self) -> None:
        self.close_readers()
        self.file.close()


_lock = threading.RLock()
_open: OrderedDict[VideoPlace, _Opened] = OrderedDict()  # the one that was used last comes last


def _forget() -> None:
    """Forget what the parent process has open: both would move one position in the file."""
    global _lock
    _lock = threading.RLock()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _opened(place: VideoPlace) -> _Opened:
    """Return a video, opened again if it has changed. Raises `ImageError`, `OSError`, or `ValueError` of an archive."""
    with _lock:
        known = _open.pop(place, None)
        if known is not None and known.version == _version(place):
            _open[place] = known
            return known
        if known is not None:
            known.close()
        if not is_remote(place.file) and not Path(place.file).is_file():  # a pipe would wait for a writer
            Path(place.file).stat()
            raise DamagedImage("not a regular file")
        version = _version(place, anew=True)
        file = _file(place)
        try:
            video = _Opened(file, version, list_frames(file), {})
        except BaseException:
            file.close()
            raise
        _open[place] = video
        while len(_open) > KEPT:
            _open.popitem(last=False)[1].close()
        return video


def _file(place: VideoPlace) -> BufferedIOBase:
    if not place.member:
        return open_file(place.file, place.private)
    return ARCHIVES[ending_of(place.file)](place.file, place.private).open(place.member, place.offset)


def _version(place: VideoPlace, anew: bool = False) -> str:
    if not is_remote(place.file):
        return str(Path(place.file).stat().st_mtime_ns)
    with open_file(place.file, place.private, anew) as file:
        return version_of(file)
