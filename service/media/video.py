"""Frames out of a video, and a video out of frames, with everything beside the pixels carried over."""

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder otherwise writes a banner to standard error for every file

import av
from av.container import OutputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData, SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from service.errors import BadInput
from service.job import InputFacts
from service.media.colour import Pixels, coding_of, depth_of, from_rgb, nearest_pixel_format, tags_for, to_rgb
from service.media.formats import CODECS, VIDEOS, codec_for, container_for
from service.media.opening import OpenVideo
from service.media.tracks import Tracks, foreign_tags
from service.settings import Settings

_MUXERS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}
_MILLISECOND_MUXERS = ("mkv", "webm")
_TELLS_ASPECT = ("h264", "hevc")  # codecs that carry the shape of pixels in their own headers
_MAX_RATE = 240  # what AV1's encoder accepts; a rate is only a hint where every frame has its time


@dataclass(frozen=True, slots=True)
class _Encoder:
    name: str
    options: dict[str, str]
    whole_chroma: bool = False  # its sizes must be multiples of the chroma subsampling
    smallest: tuple[int, int] = (1, 1)  # width and height


# The denoiser needs the machine more than the encoder does, so presets are fast throughout. Measured on 960x540 camera
# video (ms of CPU a frame, relative size): x264 veryfast 7 and 1.0, faster 12 and 1.2, medium 19 and 1.2; VP9 realtime
# 12 and 1.1, good 43 and 0.9; x265 veryfast 25 and 0.6; SVT-AV1 9 10 and 0.8.
# x265 writes beyond its buffers where frames are up to 48 pixels wide, and SVT-AV1 fails where they are up to 18, and
# neither says so (PyAV 18.1, seen with glibc's malloc checks): both are given whole blocks.
_ENCODERS = {
    "h264": _Encoder("libx264", {"preset": "veryfast"}, whole_chroma=True),
    "hevc": _Encoder(
        "libx265", {"preset": "veryfast", "x265-params": "log-level=none"}, whole_chroma=True, smallest=(64, 64)
    ),
    "av1": _Encoder("libsvtav1", {"preset": "9"}, smallest=(64, 64)),
    "vp9": _Encoder("libvpx-vp9", {"deadline": "realtime", "cpu-used": "5", "row-mt": "1"}),
    "ffv1": _Encoder("ffv1", {"level": "3", "slicecrc": "1"}),
}

_MEANINGFUL = {  # data beside a frame that a viewer would miss, and that new frames do not have
    SideDataType.MASTERING_DISPLAY_METADATA: "HDR mastering display",
    SideDataType.CONTENT_LIGHT_LEVEL: "HDR content light level",
    SideDataType.DYNAMIC_HDR_PLUS: "HDR10+ metadata",
    SideDataType.DOVI_METADATA: "Dolby Vision metadata",
    SideDataType.A53_CC: "closed captions",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame and its moment."""

    pixels: Pixels  # [H, W, 3], RGB: uint8, or uint16 over its whole range where the video has more than 8 bits
    pts: int | None  # in units of `time_base`; None where the container tells no time
    time_base: Fraction
    duration: int = 0  # in the same units; 0 where it is not told


class VideoReader:
    """Reads a video's frames once, in presentation order. Holds the decoder's frames and one more."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Open, and decode the first frame.

        Raises:
            UnknownFormat: The bytes are in no video format that is read here.
            FrameTooLarge: More pixels a frame, or frames, than the settings allow.
            BadInput: It is damaged, has no video track, or not one frame can be decoded.
        """
        self.path = path
        self._file: BinaryIO = path.open("rb")
        try:
            self.opened = OpenVideo(self._file, settings)
        except BaseException:
            self._file.close()
            raise
        self.facts: InputFacts = self.opened.facts
        self.time_base: Fraction = self.opened.stream.time_base or Fraction(1, 90000)
        self.rate: Fraction | None = self.opened.rate
        self.depth = depth_of(self.opened.first.format)
        self._coding = coding_of(self.opened.first)
        self._reformatter = VideoReformatter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.opened.close()
        self._file.close()

    def __iter__(self) -> Iterator[Frame]:
        """All frames.

        Raises:
            BadInput: A frame cannot be decoded, or changes size; its index is in the message.
            FrameTooLarge: There are more than the settings allow.
        """
        for frame in self.opened.frames():
            # AVI stores no presentation times; what stands in their place is made up, and wrong beside B-frames.
            stored = frame.pts if self.facts.content_type != "video/x-msvideo" else None
            yield Frame(
                to_rgb(frame, self._coding, self.depth, self._reformatter),
                stored if stored is not None else frame.dts,
                frame.time_base or self.time_base,
                frame.duration or 0,
            )


class VideoWriter:
    """Writes frames as a video like the one they came from, with its other tracks.

    The file appears at its path when it is finished: before that, and after any failure, there is none.
    Audio and subtitles are copied as they are, interleaved by time. What the container cannot hold is named in `lost`.
    """

    def __init__(
        self,
        path: Path,
        like: VideoReader,
        *,
        format: str,  # noqa: A002 - the name it has in the public contract
        codec: str | None = None,
        crf: int | None = None,
    ) -> None:
        """Open the file and the encoder.

        Args:
            path: Where the finished file goes, whatever its suffix.
            like: The noisy video: gives size, colour, rotation, metadata and the tracks to copy.
            format: `same` keeps mp4, mkv, mov and webm; of others it makes mp4 where that holds the codec, else mkv.
            codec: None takes vp9 for webm and h264 elsewhere.
            crf: None takes the codec's default, 18 for h264.

        Raises:
            BadInput: Container and codec do not go together, or the codec cannot hold frames of this size.
        """
        container = container_for(format, like.facts.content_type, codec)
        self.codec = codec_for(container, codec)
        self.content_type = VIDEOS[container].content_type
        self.suffix = VIDEOS[container].suffix
        self.lost: list[str] = []
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._in_milliseconds = container in _MILLISECOND_MUXERS
        self._last_pts: int | None = None
        self._time_base = like.time_base
        self._step = max(1, round(1 / (like.rate * like.time_base))) if like.rate else 1
        self._shape = (like.facts.height, like.facts.width, 3)
        self._reformatter = VideoReformatter()
        self._done = False
        self._tracks = Tracks(like.path, like.opened.stream.index, _MUXERS[container])
        try:
            self._out = self._open(container, like)
            self._stream = self._video_stream(like, container, crf)
            self._tracks.add_to(self._out)
            self.lost += self._tracks.lost + _lost_beside(like)
            if self._in_milliseconds and self._tracks.begin_s < 0:
                # Audio may begin before the picture, to warm up its decoder; Matroska then moves all by as much.
                self.lost.append(f"zero of time (all is {round(-self._tracks.begin_s * 1000)} ms later)")
            try:
                self._out.start_encoding()
            except (av.FFmpegError, ValueError):
                raise BadInput(
                    f"{self.codec} in {container} cannot hold frames of {like.facts.width}x{like.facts.height}"
                ) from None
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frame: Frame) -> None:
        """Encode the next frame in presentation order; its time is kept exactly.

        Raises:
            BadInput: The encoder refuses it.
        """
        if frame.pixels.shape != self._shape:
            raise ValueError(f"frame is {frame.pixels.shape}; the video is {self._shape}")
        picture = from_rgb(frame.pixels, self._pixel_format, self._coding, self._reformatter)
        self._tags.put_on(picture)
        picture.pts, picture.time_base = self._pts_of(frame), frame.time_base
        picture.duration = frame.duration
        try:
            self._mux(self._stream.encode(picture))
        except av.FFmpegError as err:
            raise _failure(f"{self.codec} cannot encode a frame", err) from None

    def close(self) -> None:
        """Finish the file and put it in its place. A second call does nothing."""
        if self._done:
            return
        try:
            if self._last_pts is None:
                raise BadInput("no frame was written")
            try:
                self._mux(self._stream.encode(None))
                self._tracks.copy_until(None, self._out)
                self._out.close()
            except av.FFmpegError as err:
                raise _failure(f"the {self.suffix} file cannot be finished", err) from None
            self._part.replace(self._path)
        except BaseException:
            self.abort()
            raise
        self._done = True
        self._tracks.close()

    def abort(self) -> None:
        """Leave no file. After `close` it does nothing."""
        if self._done:
            return
        self._done = True
        self._tracks.close()
        out: OutputContainer | None = getattr(self, "_out", None)
        if out is not None:
            with contextlib.suppress(av.FFmpegError, ValueError):
                out.close()
        self._part.unlink(missing_ok=True)

    def _open(self, container: str, like: VideoReader) -> OutputContainer:
        source = like.opened.container
        options: dict[str, str] = {}
        if container in ("mp4", "mov"):
            # The index goes to the front, for players that stream. Apple's own tags need their own table.
            apple = any(key.startswith("com.") for key in source.metadata)
            options["movflags"] = "+faststart+use_metadata_tags" if apple else "+faststart"
            options["movie_timescale"] = str(_common_clock([stream.time_base for stream in source.streams]))
        out = av.open(str(self._part), "w", format=_MUXERS[container], container_options=options)
        out.metadata.update(foreign_tags(source.metadata))
        chapters = source.chapters()
        if chapters:
            out.set_chapters(chapters)
        return out

    def _video_stream(self, like: VideoReader, container: str, crf: int | None) -> VideoStream:
        source, first = like.opened.stream, like.opened.first
        encoder = _ENCODERS[self.codec]
        if first.width < encoder.smallest[0] or first.height < encoder.smallest[1]:
            width, height = encoder.smallest
            raise BadInput(f"frames are {first.width}x{first.height}; {self.codec} needs at least {width}x{height}")
        options = dict(encoder.options)
        quality = CODECS[self.codec].crf if crf is None else crf
        if quality is not None:
            options["crf"] = str(quality)
        rate = min(like.rate or Fraction(25), Fraction(_MAX_RATE))
        stream = self._out.add_stream(encoder.name, rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.width, context.height = first.width, first.height
        self._pixel_format = nearest_pixel_format(encoder.name, first, whole_chroma=encoder.whole_chroma)
        context.pix_fmt = self._pixel_format
        self._tags, self._coding = tags_for(first, self._pixel_format)
        self._tags.put_on(context)
        context.time_base = stream.time_base = like.time_base
        context.thread_count = 0
        context.thread_type = "AUTO"
        aspect = source.sample_aspect_ratio
        if aspect:
            context.sample_aspect_ratio = aspect
            if aspect != 1 and self._in_milliseconds and self.codec not in _TELLS_ASPECT:
                self.lost.append(f"pixel aspect ratio {aspect}")  # PyAV cannot set it on the track itself
        if self.codec == "hevc" and container in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # the only one of its two names that Apple's players know
        matrix = _display_matrix(first)
        if matrix:
            stream.set_display_matrix(matrix)
        stream.metadata.update(foreign_tags(source.metadata))
        stream.disposition = source.disposition & ~Disposition.attached_pic
        if depth_of(VideoFormat(self._pixel_format)) < min(like.depth, 16):
            self.lost.append(f"{like.depth} bit depth")
        return stream

    def _pts_of(self, frame: Frame) -> int:
        """The frame's own time; where it has none, or goes back, the next that an encoder accepts."""
        pts = frame.pts
        if pts is None:
            pts = 0 if self._last_pts is None else self._last_pts + (frame.duration or self._step)
        if self._last_pts is not None and pts <= self._last_pts:
            pts = self._last_pts + 1
            self._lose("timestamps that do not increase")
        if self._in_milliseconds and (pts * frame.time_base * 1000).denominator != 1:
            self._lose("timestamps finer than a millisecond")
        self._last_pts = pts
        return pts

    def _mux(self, packets: list["Packet[Any]"]) -> None:
        for packet in packets:
            if packet.dts is not None:
                self._tracks.copy_until(packet.dts * (packet.time_base or self._time_base), self._out)
            self._out.mux(packet)

    def _lose(self, what: str) -> None:
        if what not in self.lost:
            self.lost.append(what)


def _failure(what: str, err: av.FFmpegError) -> Exception:
    """The input's fault, unless the disk is full or broken: then another try may go better."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return OSError(err.errno, err.strerror)
    return BadInput(f"{what}: {err.strerror}")


def _common_clock(time_bases: list[Fraction | None]) -> int:
    """Ticks a second in which every track's start can be told exactly, as far as 31 bits allow.

    MP4 tells late starts in the movie's own clock; its default, a millisecond, would shift tracks against each other.
    """
    clock = 1000
    for time_base in time_bases:
        finer = lcm(clock, time_base.denominator) if time_base else clock
        clock = finer if finer < 2**31 else clock
    return clock


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    """How the picture is to be turned and mirrored for display, as containers say it."""
    for side in _beside(frame):
        if side.type == SideDataType.DISPLAYMATRIX:
            return struct.unpack("=9i", bytes(side))
    return None


def _beside(frame: VideoFrame) -> Iterator[SideData]:
    return iter(cast("SideDataContainer", frame.side_data))  # its stub says a dictionary


def _lost_beside(like: VideoReader) -> list[str]:
    """What the source's frames carry, and new ones do not."""
    first, stream = like.opened.first, like.opened.stream
    lost = [_MEANINGFUL[side.type] for side in _beside(first) if side.type in _MEANINGFUL]
    if any(component.is_alpha for component in first.format.components) or stream.metadata.get("alpha_mode") == "1":
        lost.append("transparency")
    if first.interlaced_frame:
        lost.append("interlacing flags")
    return lost
