"""How is an encoder set up so that its video is like the one that the frames came from?"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder otherwise writes a banner to standard error for every file

import av
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from service.errors import BadInput
from service.media.colour import from_rgb, nearest_pixel_format, tags_for, takes_beyond
from service.media.formats import CODECS
from service.media.hdr import encoder_options
from service.media.head import TOP_FIRST, VideoHead, depth_of
from service.media.planes import Codes, Pixels, layout_of
from service.media.tracks import Sink, foreign_tags
from service.processes import processor

log = logging.getLogger(__name__)

MUXERS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}
MILLISECOND_MUXERS = ("mkv", "webm")
_TELLS_ASPECT = ("h264", "hevc")  # codecs that carry the shape of pixels in their own headers
_TASKS = Path("/proc/self/task")  # the threads of this process, on Linux
_MAX_RATE = 240  # what AV1's encoder accepts; a rate is only a hint where every frame has its time
# The disk's fault and not the input's: another try may go better.
_STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ENOENT,
    errno.EACCES,
)

# x264's AVX-512 code made up to four films of the same frames (PyAV 18.1.0, macroblock tree on), that for AVX2 one in
# 40 runs, no slower: 12.8 ms of CPU a frame of 854x480 against 13.5. Asked here, for confined processes open no file.
_HAS_AVX512 = "avx512f" in processor()[1]


@dataclass(frozen=True, slots=True)
class _Spec:
    name: str
    options: dict[str, str]
    whole_chroma: bool = False  # its sizes must be multiples of the chroma subsampling
    quality: str = "crf"  # the option that takes it, on the codec's own scale


# The denoiser needs the machine more than the encoder does, so presets are fast throughout. Measured on 960x540 camera
# video (ms of CPU a frame, relative size): x264 veryfast 7 and 1.0, faster 12 and 1.2, medium 19 and 1.2; VP9 realtime
# 12 and 1.1, good 43 and 0.9; x265 veryfast 25 and 0.6; SVT-AV1 9 10 and 0.8.
# x265 notes its options and the processor beside the parameter sets (info); segments from several machines could then
# not be joined, for these must be equal.
_SPECS = {
    "h264": _Spec("libx264", {"preset": "veryfast"}, whole_chroma=True),
    "hevc": _Spec("libx265", {"preset": "veryfast", "x265-params": "log-level=none:info=0"}, whole_chroma=True),
    "av1": _Spec("libsvtav1", {"preset": "9"}),
    "vp9": _Spec("libvpx-vp9", {"deadline": "realtime", "cpu-used": "5", "row-mt": "1"}),
    "ffv1": _Spec("ffv1", {"level": "3", "slicecrc": "1"}),
}

# NVIDIA's encoders, by FFmpeg's documentation of them; never run. They take a quality (cq; 0 is automatic) where the
# rate may vary and none is wished for.
_NVENC = {"preset": "p4", "rc": "vbr", "b": "0"}
_NVIDIA = {codec: _Spec(f"{codec}_nvenc", _NVENC, whole_chroma=True, quality="cq") for codec in ("h264", "hevc", "av1")}

ON_GPU = frozenset(spec.name for spec in _NVIDIA.values())

VideoEncoder = Literal["software", "nvidia"]


class Encoder:
    """The picture track of a file that is being written, and the encoder that fills it."""

    def __init__(
        self,
        out: OutputContainer,
        like: VideoHead,
        *,
        container: str,
        codec: str,
        crf: int | None,
        by: VideoEncoder = "software",
    ) -> None:
        """Add the track to a file. `open` comes after all other tracks are added.

        Args:
            like: Gives size, colour, rotation, shape of pixels and tags.
            container: The key into `VIDEOS` of the file that the packets end in.
            codec: One that the container holds, for frames of this size.
            by: `nvidia` where `suits_nvidia` says so.
        """
        spec = (_SPECS if by == "software" else _NVIDIA)[codec]
        self.name = spec.name  # as the library calls it
        self.codec = codec
        self.lost: list[str] = []
        self._out = out
        self._container = container
        self._shape = (like.height, like.width, 3)
        self._time_base = like.time_base
        self._step = max(1, round(1 / (like.rate * like.time_base))) if like.rate else 1
        self._last_pts: int | None = None
        self._reformatter = VideoReformatter()
        options = dict(spec.options)
        quality = CODECS[codec].crf if crf is None else crf
        if quality is not None:
            # x264 takes a crf of 0 for lossless with 8 bits only.
            options["qp" if codec == "h264" and not quality else spec.quality] = str(quality)
        rate = min(like.rate or Fraction(25), Fraction(_MAX_RATE))
        self.pixel_format = nearest_pixel_format(spec.name, like, whole_chroma=spec.whole_chroma)
        self._tell_light(like, options)
        field_order = self._field_order(like)
        if field_order is not None and codec == "h264":
            _add(options, "x264-params", "tff=1" if field_order == TOP_FIRST else "bff=1")
        if spec.name == "libx264" and _HAS_AVX512:
            _add(options, "x264-params", "asm=AVX2")
        stream = out.add_stream(spec.name, rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        self.stream = stream
        context = stream.codec_context
        context.width, context.height = like.width, like.height
        context.pix_fmt = self.pixel_format
        self._tags, self._coding = tags_for(like, self.pixel_format)
        self._takes_beyond = takes_beyond(self.pixel_format, self._coding, like)
        self._tags.put_on(context)
        context.time_base = stream.time_base = like.time_base
        if field_order is not None:
            context.field_order = field_order
        context.thread_count = 0
        context.thread_type = "AUTO"
        aspect = like.aspect
        if aspect:
            context.sample_aspect_ratio = aspect
            if aspect != 1 and container in MILLISECOND_MUXERS and codec not in _TELLS_ASPECT:
                self.lost.append(f"pixel aspect ratio {aspect}")  # PyAV cannot set it on the track itself
        if codec == "hevc" and container in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # the only one of its two names that Apple's players know
        if like.display_matrix:
            stream.set_display_matrix(like.display_matrix)
        elif like.rotation:
            stream.set_display_rotation(like.rotation)
        stream.metadata.update(foreign_tags(like.tags))
        stream.disposition = Disposition(like.disposition) & ~Disposition.attached_pic
        self.lost += _lost_of(like.format, VideoFormat(self.pixel_format, like.width, like.height))

    @property
    def wrote(self) -> bool:
        """Whether a frame was put in."""
        return self._last_pts is not None

    @property
    def extradata(self) -> bytes:
        """Parameter sets, as the encoder tells them for the file's header; known from `open` on."""
        return self.stream.codec_context.extradata or b""

    @property
    def reorder_frames(self) -> int:
        """By how many frames packets may come out of order, as far as the encoder says; known from `open` on."""
        return self.stream.codec_context.reorder_depth

    def open(self, extradata: bytes | None = None) -> None:
        """Open the encoder and write the file's header.

        Args:
            extradata: Parameter sets of the encoder that will make the packets, where that is another than this one.

        Raises:
            BadInput: The encoder or the container does not take such a picture.
        """
        try:
            with _no_real_time():
                if extradata is not None:
                    self.stream.codec_context.open()
                    self.stream.codec_context.extradata = extradata or None
                self._out.start_encoding()
        except (av.FFmpegError, ValueError) as err:
            height, width, _ = self._shape
            what = f"{self.codec} in {self._container} cannot hold frames of {width}x{height}"
            if self.name in ON_GPU:
                what = f"{self.name} cannot be opened for frames of {width}x{height}"
            raise (failure(what, err) if isinstance(err, av.FFmpegError) else BadInput(what)) from None

    def encode(
        self, pixels: Pixels, pts: int | None, time_base: Fraction, duration: int, beyond: Codes | None = None
    ) -> "list[Packet[Any]]":
        """Encode the next frame in presentation order; its time is kept exactly.

        Args:
            beyond: Codes of the source that RGB does not hold; put in where the track's numbers mean what its did.

        Returns:
            What is ready, which may be packets of earlier frames, in decoding order and in the encoder's time base.

        Raises:
            BadInput: The encoder refuses it.
        """
        if pixels.shape != self._shape:
            raise ValueError(f"frame is {pixels.shape}; the video is {self._shape}")
        given_back = beyond if self._takes_beyond else None
        picture = from_rgb(pixels, self.pixel_format, self._coding, self._reformatter, given_back)
        self._tags.put_on(picture)
        picture.pts, picture.time_base = self._moment(pts, duration), time_base
        picture.duration = duration
        return self._encoded(picture, f"{self.codec} cannot encode a frame")

    def finish(self) -> "list[Packet[Any]]":
        """The packets that are left."""
        if not self.wrote:
            raise BadInput("no frame was written")
        return self._encoded(None, f"{self.codec} cannot encode the last frames")

    def _encoded(self, picture: VideoFrame | None, failing: str) -> "list[Packet[Any]]":
        try:
            return list(self.stream.encode(picture))
        except av.FFmpegError as err:
            if self.name in ON_GPU:  # it took the first frames: the device's fault, and not the input's
                raise OSError(err.errno, f"{failing}: {err.strerror}") from None
            raise failure(failing, err) from None

    def _tell_light(self, like: VideoHead, options: dict[str, str]) -> None:
        """Have the encoder say what displays are told of HDR."""
        if not like.mastering and not like.light:
            return
        told = encoder_options(self.codec, like.mastering, like.light)
        if told is not None:
            for name, value in told.items():
                _add(options, name, value)
            return
        if like.mastering:
            self.lost.append("HDR mastering display")
        if like.light:
            self.lost.append("HDR content light level")

    def _field_order(self, like: VideoHead) -> int | None:
        """The order to tell; None of a video of whole frames, and where it cannot be told."""
        if not like.is_interlaced:
            return None
        lines = like.height % (128 // VideoFormat(self.pixel_format, 64, 64).chroma_height())
        # H.264 codes both fields with chroma of their own; FFV1 leaves it to the container to say which is first.
        if like.field_order and ((self.codec == "h264" and not lines) or self.codec == "ffv1"):
            return like.field_order
        self.lost.append("interlacing flags")
        return None

    def _moment(self, pts: int | None, duration: int) -> int:
        """The frame's own time; where it has none, or goes back, the next that an encoder accepts."""
        if pts is None:
            pts = 0 if self._last_pts is None else self._last_pts + (duration or self._step)
        if self._last_pts is not None and pts <= self._last_pts:
            pts = self._last_pts + 1
            if "timestamps that do not increase" not in self.lost:
                self.lost.append("timestamps that do not increase")
        self._last_pts = pts
        return pts


def suits_nvidia(codec: str, like: VideoHead, crf: int | None) -> bool:
    """Whether an NVIDIA GPU's encoder may be asked: 8 bits in 4:2:0, whole frames, some loss, no word of HDR.

    What else some of its generations take is left to the encoders that were tried.
    """
    if codec not in _NVIDIA or crf == 0 or like.is_interlaced or like.mastering or like.light:
        return False
    return nearest_pixel_format(_SPECS[codec].name, like, whole_chroma=True) == "yuv420p"


def open_encoder(
    like: VideoHead,
    *,
    container: str,
    codec: str,
    crf: int | None,
    by: VideoEncoder = "software",
    extradata: bytes | None = None,
) -> tuple[OutputContainer, Encoder]:
    """An open encoder whose packets go into a file that something else writes.

    Args:
        by: What to ask first. Where that cannot be opened, or does not suit, it is the one in software.
        extradata: Parameter sets of packets that were made before; nothing is to be encoded then.

    Returns:
        A file that keeps nothing, which is to be closed, and the encoder. The file's kind decides how it is opened.

    Raises:
        BadInput: The encoder or the container does not take such a picture.
    """
    if by == "nvidia" and extradata is None and suits_nvidia(codec, like, crf):
        try:
            return _opened(like, container, codec, crf, by)
        # No such GPU, too many videos at a time, a size that it does not take; a library without it is a ValueError.
        except (BadInput, OSError, ValueError) as err:
            log.warning("%s is encoded without the GPU: %s", codec, err)
    return _opened(like, container, codec, crf, "software", extradata)


def _opened(
    like: VideoHead, container: str, codec: str, crf: int | None, by: VideoEncoder, extradata: bytes | None = None
) -> tuple[OutputContainer, Encoder]:
    out = av.open(Sink(), "w", format=MUXERS[container])
    try:
        encoder = Encoder(out, like, container=container, codec=codec, crf=crf, by=by)
        encoder.open(extradata)
    except BaseException:
        with contextlib.suppress(av.FFmpegError, ValueError):
            out.close()
        raise
    return out, encoder


def _lost_of(source: VideoFormat, made: VideoFormat) -> list[str]:
    """What of a pixel format another cannot hold."""
    lost = []
    depth = depth_of(source)
    if depth_of(made) < min(depth, 16):
        lost.append(f"{depth} bit depth")
    if source.is_rgb and not made.is_rgb:
        lost.append(f"RGB (now {made.name})")
    before, after = layout_of(source.name), layout_of(made.name)
    if before and after and not before.is_grey and (after.across > before.across or after.down > before.down):
        lost.append(f"chroma of {before.name} (now {after.name})")
    return lost


def _add(options: dict[str, str], name: str, value: str) -> None:
    """To an encoder's own options, which are one string."""
    options[name] = f"{options[name]}:{value}" if name in options else value


def failure(what: str, err: av.FFmpegError) -> Exception:
    """The input's fault, unless the disk is full or broken: then another try may go better."""
    if err.errno in _STORAGE_ERRORS:
        return OSError(err.errno, err.strerror)
    return BadInput(f"{what}: {err.strerror}")


@contextlib.contextmanager
def _no_real_time() -> Iterator[None]:
    """Take back the real-time priority that SVT-AV1, where it may, gives its threads and the one that opens it.

    Seen as root with PyAV 18.1 (SCHED_FIFO, 99): heartbeats and all other work then wait until a video is encoded.
    """
    if not hasattr(os, "sched_setscheduler") or not os.path.exists(_TASKS):
        yield
        return
    usual, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for task in _TASKS.iterdir():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                thread = int(task.name)
                if usual != os.SCHED_FIFO and os.sched_getscheduler(thread) == os.SCHED_FIFO:
                    os.sched_setscheduler(thread, usual, param)
