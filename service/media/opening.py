"""How is a stranger's video opened so that it can reach nothing but its own bytes?

Containers can name other files and hosts, and a demuxer left to guess will follow. Four walls, each of which held by
itself when tried with PyAV 18.1 and playlists of file and http addresses: the demuxer is chosen from magic bytes and
not by guessing, only that one is allowed, no protocol is, and the bytes come from an object without a name beside an
`io_open` that refuses.
"""

import importlib
import pkgutil
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from types import TracebackType
from typing import BinaryIO, NoReturn, Self

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.errors import BadInput, FrameTooLarge, Indivisible
from service.job import InputFacts
from service.media.head import depth_of, head_of
from service.media.sniff import HEAD_BYTES, check_pixels, content_type_of, unknown_format
from service.settings import Settings

DEMUXERS: dict[str, str] = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/3gpp": "mov",
    "video/x-matroska": "matroska",
    "video/webm": "matroska",
    "video/x-msvideo": "avi",
    "video/mp2t": "mpegts",
    "video/mpeg": "mpeg",
    "video/x-flv": "flv",
    "video/x-ms-asf": "asf",
    "video/ogg": "ogg",
    "video/x-yuv4mpeg": "yuv4mpegpipe",
    "video/mxf": "mxf",
    "video/dv": "dv",
    "video/x-ivf": "ivf",
    "video/mpv": "mpegvideo",
    "video/h264": "h264",
    "video/h265": "hevc",
}
AVI = "video/x-msvideo"
BARE = ("video/mpv", "video/h264", "video/h265")  # frames one after the other, and no word of when
_READ_BYTES = 256 * 1024  # each read crosses from C to Python: few and large
_MOST_STREAMS = 1024  # of a file that was opened with a lower bound before


def load_all() -> None:
    """Load what the library would load when first met: to be called before one can open files no longer."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


class _Nameless:
    """A file's bytes without its name: a demuxer that knows the name may take hints from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:  # noqa: ARG001 - PyAV calls it so
    raise PermissionError("a video may not open other files")


def open_container(file: BinaryIO, max_streams: int = _MOST_STREAMS) -> tuple[InputContainer, str]:
    """Open a video, and say its media type.

    Args:
        file: Seekable, open for as long as the container is.

    Raises:
        UnknownFormat: The bytes are in no video format that is read here.
        BadInput: The container is damaged.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise BadInput("file is empty")
    content_type = content_type_of(head)
    if content_type not in DEMUXERS:
        raise unknown_format(head, "video")
    demuxer = DEMUXERS[content_type]
    file.seek(0)
    # A demuxer has several names, and the list must hold one of them as the library spells it.
    walls = {
        "format_whitelist": f"{av.format.ContainerFormat(demuxer, 'r').name},{demuxer}",
        "protocol_whitelist": "none",
        "max_streams": str(max_streams + 1),  # some demuxers leave out what is too much, and tell nobody
    }
    try:
        container = av.open(
            _Nameless(file),
            "r",
            format=demuxer,
            container_options=walls,
            metadata_errors="replace",
            buffer_size=_READ_BYTES,
            io_open=_refuse,
        )
    except (av.FFmpegError, OSError, ValueError) as err:
        raise BadInput(f"the {content_type} container is damaged{_because(err)}") from None
    if len(container.streams) > max_streams:
        container.close()
        raise BadInput(f"video has more than {max_streams} tracks")
    return container, content_type


class OpenVideo:
    """A video that is known to give at least one frame. Close it when done."""

    def __init__(self, file: BinaryIO, settings: Settings, *, threads: int = 0) -> None:
        """Open and decode up to the first frame.

        Args:
            file: Seekable, open for as long as this is.
            threads: Of the decoder; 0 takes what the machine has.

        Raises:
            UnknownFormat: The bytes are in no video format that is read here.
            FrameTooLarge: More pixels a frame, or frames, than the settings allow.
            BadInput: It is damaged, has no video track, or its first frame cannot be decoded.
        """
        self._settings = settings
        self._most_frames = settings.max_video_frames
        size = file.seek(0, 2)  # before the demuxer counts on the position
        self.container, content_type = open_container(file, settings.max_streams)
        try:
            self.stream = video_track(self.container)
            context = self.stream.codec_context
            check_pixels("video frame", context.width, context.height, settings.max_frame_pixels)
            check_count(self.stream.frames, self._most_frames)
            check_length(_told_seconds(self.container, self.stream), 0, settings)
            _check_rate(self.stream, settings)
            # Headers lie; this bound is enforced by the decoder itself, for every frame.
            context.options = {"max_pixels": str(settings.max_frame_pixels)}
            context.thread_count = threads
            context.thread_type = "AUTO"
            self._begun: set[int | None] = set()  # times of the packets that the first frame took
            self._frames = self._decode(self._from_the_first())
            self.first = next(self._frames)
            check_pixels("video frame", self.first.width, self.first.height, settings.max_frame_pixels)
        except BaseException:
            self.container.close()
            raise
        self.time_base: Fraction = self.stream.time_base or Fraction(1, 90000)
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate: Fraction | None = Fraction(rate) if rate else None
        self.facts = InputFacts(
            content_type=content_type,
            bytes=size,
            width=self.first.width,
            height=self.first.height,
            frames=self.stream.frames or None,
            frame_rate=f"{self.rate.numerator}/{self.rate.denominator}" if self.rate else None,
            has_audio=bool(self.container.streams.audio),
            codec=self.stream.codec_context.codec.canonical_name,
            bit_depth=depth_of(self.first.format),
        )
        self.head = head_of(self.stream, self.first, self.facts, self.time_base, self.rate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._frames.close()
        self.container.close()

    def frames(self) -> Iterator[VideoFrame]:
        """All frames in presentation order, once.

        Raises:
            BadInput: A frame cannot be decoded, or changes size; its index is in the message.
        """
        yield self.first
        for index, frame in enumerate(self._frames, start=1):
            self._check_size(frame, f"frame {index}")
            check_count(index + 1, self._most_frames)
            if frame.pts is not None and self.first.pts is not None:
                check_length(float((frame.pts - self.first.pts) * self.time_base), index, self._settings)
            yield frame

    def frames_from(self, key: int, seek: int | None) -> Iterator[VideoFrame]:
        """Frames as they come where decoding begins at a key frame, instead of `frames`.

        It may begin earlier. Frames that are shown before the key frame may come too, and may be wrong.

        Args:
            key: Presentation time of the key frame, in the track's time base.
            seek: The moment to seek to, so that the key frame is not far ahead; None goes through all packets.

        Raises:
            Indivisible: There is no such key frame from there on.
            BadInput: A frame cannot be decoded, or changes size.
        """
        if key in self._begun:
            yield from self.frames()
            return
        self._frames.close()
        try:
            if seek is None:
                self.stream.codec_context.flush_buffers()
            else:
                self.container.seek(seek, stream=self.stream)
            packets = self.container.demux(self.stream)
            entry = next((packet for packet in packets if packet.pts == key and packet.is_keyframe), None)
        except av.FFmpegError as err:
            raise Indivisible(f"the container cannot be read from the middle{_because(err)}") from None
        if entry is None:
            raise Indivisible(f"the key frame at {key} is not found again")
        self._frames = self._decode(chain([entry], packets), after=key)
        for frame in self._frames:
            self._check_size(frame, f"the frame at {frame.pts}")
            yield frame

    def frames_near(self, share: float) -> Iterator[VideoFrame]:
        """Frames from about that share of the length on, as they come: to look at, for the first may be wrong.

        Raises:
            av.FFmpegError: The container cannot be read there, or a frame not be decoded.
            BadInput: A frame changes size.
        """
        self._frames.close()
        length = int(_told_seconds(self.container, self.stream) / self.time_base)
        if not length:
            return
        self.container.seek((self.stream.start_time or 0) + int(length * share), stream=self.stream)
        for packet in self.container.demux(self.stream):
            for frame in packet.decode():
                self._check_size(frame, f"the frame at {frame.pts}")
                yield frame

    def _from_the_first(self) -> "Iterator[Packet[VideoStream]]":
        for packet in self.container.demux(self.stream):
            if not hasattr(self, "first"):
                self._begun.add(packet.pts)
            yield packet

    def _decode(self, packets: "Iterable[Packet[VideoStream]]", after: int | None = None) -> Generator[VideoFrame]:
        """Frames of packets; `after` is the time of the key frame that they begin with, if not with the first."""
        good = 0
        trouble: Exception | None = None
        try:
            for packet in packets:
                try:
                    frames = packet.decode()
                except (av.FFmpegError, ValueError) as err:
                    trouble = err
                    if good or after is not None:
                        break
                    # A recording cut anywhere may begin with packets whose key frame is missing: they are no loss.
                    continue
                for frame in frames:
                    good, trouble = good + 1, None
                    yield frame
        except av.FFmpegError as err:
            trouble = err
        if not good and after is None:
            raise BadInput(f"not one frame can be decoded{_because(trouble)}")
        if trouble is None:
            return
        # Frames that wait in the decoder for their turn were good: they come out before the bad one is named.
        try:
            rest = self.stream.decode(None)
        except (av.FFmpegError, ValueError):
            rest = []
        for frame in rest:
            good += 1
            yield frame
        begin = "" if after is None else f", counted from {float(after * self.time_base):.3f} s,"
        raise BadInput(f"frame {good}{begin} cannot be decoded{_because(trouble)}")

    def _check_size(self, frame: VideoFrame, name: str) -> None:
        size, first = f"{frame.width}x{frame.height}", f"{self.first.width}x{self.first.height}"
        if size != first:
            raise BadInput(f"{name} is {size}; the first is {first}")


def check_count(frames: int, most: int) -> None:
    if frames > most:
        raise FrameTooLarge(f"video has at least {frames} frames; at most {most} are accepted")


def check_length(seconds: float, frames: int, settings: Settings) -> None:
    """Refuse what lasts too long, or has more frames in its time than any camera takes: it would never be done."""
    if seconds > settings.max_video_seconds:
        raise FrameTooLarge(f"video lasts {seconds:.0f} s; at most {settings.max_video_seconds:g} s are accepted")
    # Counted from a second on, for single frames may be as near to each other as they like.
    if frames > settings.max_frame_rate * max(1.0, seconds):
        raise FrameTooLarge(
            f"video has {frames} frames in {seconds:.3f} s; at most {settings.max_frame_rate:g} a second are accepted"
        )


def _check_rate(stream: VideoStream, settings: Settings) -> None:
    """What the header says, unless of a single frame, whose rate means nothing.

    Both rates have to be beyond the bound: where a header says little the demuxer guesses them from the first packets,
    and one of the two may be anything. What is let through is counted as it comes.
    """
    rate = min(stream.average_rate or 0, stream.base_rate or 0)
    if rate > settings.max_frame_rate and stream.frames != 1:
        raise FrameTooLarge(f"video has {rate} frames a second; at most {settings.max_frame_rate:g} are accepted")


def _told_seconds(container: InputContainer, stream: VideoStream) -> float:
    """What the header says, where it says anything."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def video_track(container: InputContainer) -> VideoStream:
    """The first video track that is no cover picture."""
    pictures = Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & pictures:
            if stream.codec_context is None:
                raise BadInput("the video track's codec cannot be decoded here")
            return stream
    tracks = ", ".join(stream.type for stream in container.streams) or "none"
    raise BadInput(f"file has no video track; its tracks: {tracks}")


def _because(err: Exception | None) -> str:
    """What the decoder says, without the file name that its errors end in."""
    text = getattr(err, "strerror", None) or (str(err) if err else "")
    return f": {text}" if text else ""
