"""The format of a video file, by its first bytes, and how FFmpeg may open it.

FFmpeg knows formats that name other files and addresses, such as playlists. So a file is opened only as one of these
formats, from a file object, with decoders of a closed list.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any

from vitbackbone.images.errors import DamagedImage, ImageError, MissingDecoder, UnknownFormat

VIDEO_HEAD = 1024  # bytes at the start of a file that decide its format
VIDEO_EXTENSIONS = frozenset(["mp4", "m4v", "mov", "mkv", "webm", "ts", "mts", "m2ts"])

# FFmpeg's name of each format
MP4, MATROSKA, MPEG_TS = "mov", "matroska", "mpegts"
PACKET_SIZES = (188, 192)  # bytes of a packet of MPEG-TS; Blu-ray puts a time of 4 bytes before each
SYNC = 0x47
SEGMENT = b"\x18\x53\x80\x67"  # ID of the Matroska element that holds all the others
MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}  # the last five begin old QuickTime files
STILL_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"mif1", b"jxl ", b"jp2 "}  # pictures in the same container

# The decoders that may run. A packet of each is one frame.
CODECS = (
    "h264",
    "hevc",
    "vp8",
    "vp9",
    "av1",
    "libdav1d",
    "libvpx",
    "libvpx-vp9",
    "mpeg4",
    "mpeg2video",
    "mpeg1video",
    "mjpeg",
    "prores",
    "dnxhd",
    "ffv1",
)


def video_format(head: bytes) -> str | None:
    """Return FFmpeg's name of a file's format by its first `VIDEO_HEAD` bytes; None if it is not a known video."""
    if head[4:8] in MP4_BOXES:
        return None if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS else MP4
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return MATROSKA
    for size in PACKET_SIZES:
        starts = range(size - 188, len(head), size)
        if len(starts) >= 2 and all(head[start] == SYNC for start in starts):
            return MPEG_TS
    return None


def segment_end(head: bytes) -> int | None:
    """Return where a Matroska file ends by its own header; None if it does not say, as a live recording does not.

    `head`: its first `VIDEO_HEAD` bytes.
    """
    at = 4  # behind the ID of the header
    size, at = _matroska_size(head, at)
    at += size or 0
    if size is None or head[at : at + 4] != SEGMENT:
        return None
    size, at = _matroska_size(head, at + 4)
    return None if size is None else at + size


def _matroska_size(data: bytes, at: int) -> tuple[int | None, int]:
    """Return the size of an element, None if it is unknown, and where its content begins."""
    width = 9 - data[at].bit_length() if at < len(data) else 9
    if width > 8:
        return None, at
    most = (1 << 7 * width) - 1  # stands for an unknown size
    size = int.from_bytes(data[at : at + width], "big") & most
    return None if size == most else size, at + width


@contextmanager
def opened_video(file: BufferedIOBase) -> Iterator[Any]:
    """Open a video, from its start, as a container of PyAV.

    Raises `ImageError` if it is not a known video, if it is damaged, or if PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDecoder("videos need av, which is not installed; run pip install 'vitbackbone[video]'") from error
    file.seek(0)
    name = video_format(file.read(VIDEO_HEAD))
    if name is None:
        raise UnknownFormat("not a video of a known format (MP4, MOV, MKV, WebM, MPEG-TS): cannot identify its bytes")
    file.seek(0)
    try:
        container = av.open(file, format=name, options={"codec_whitelist": ",".join(CODECS)})
    except (av.error.FFmpegError, ValueError) as error:
        raise DamagedImage(f"the video cannot be opened: {reason(error)}") from error
    try:
        yield container
    finally:
        container.close()


def reason(error: BaseException) -> str:
    """Return FFmpeg's error message without the file name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def check_codec(stream: Any) -> None:
    """Raise `ImageError` if the decoder of a stream is not one that may run."""
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        name = "unknown" if context is None else context.name
        raise ImageError(f"the video is coded as {name}; want one of {', '.join(CODECS)}")
