"""Feeds a live stream from a file, a camera or a pipe, writes what comes back, and tells how long each frame took."""

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Protocol

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from service.client import Client
from service.errors import BadInput
from service.folders import FORMATS, Bar
from service.media.planes import frame_of, layout_of
from service.media.video import Frame, VideoWriter
from service.pipeline.denoiser import Pixels
from service.rpc.calling import PixelFormat
from service.sandbox.videos import VideoReader
from service.settings import Settings

PIPE = "-"
CAMERA = "camera:"
_DEVICE = "/dev/video"
_MILLISECONDS = Fraction(1, 1000)
_DTYPES: dict[PixelFormat, np.dtype[Any]] = {"rgb8": np.dtype(np.uint8), "rgb16": np.dtype("<u2")}
_BT709 = 1  # as H.273 numbers it, for matrix, primaries and curve alike
_ENCODERS = {"mp4": "libx264", "mkv": "libx264", "mov": "libx264", "webm": "libvpx-vp9"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """What came of a stream."""

    source: str
    target: str
    model: str
    backend: str
    frames: int
    dropped: int  # that a camera took while there was no room for them
    seconds: float
    latency_frames: int  # what the model's window reaches ahead
    latency_p50_ms: float | None  # from the frame's taking to its restored one's coming; None without frames
    latency_p95_ms: float | None

    def line(self) -> str:
        rate = f"{self.frames} frames, {self.frames / self.seconds:.1f} frames/s" if self.frames else "no frames"
        dropped = f", {self.dropped} dropped" if self.dropped else ""
        latency = (
            f", latency p50 {self.latency_p50_ms:.0f} ms, p95 {self.latency_p95_ms:.0f} ms "
            f"({self.latency_frames} frames of it the model's)"
            if self.latency_p50_ms is not None
            else ""
        )
        return f"{self.source} -> {self.target}: {self.model} on {self.backend}, {rate}{dropped}{latency}"

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Source(Protocol):
    """Where frames come from."""

    width: int
    height: int
    pixel_format: PixelFormat
    dropped: int

    def __iter__(self) -> Iterator[Frame]: ...
    def stop(self) -> None:
        """Give no more frames; may be called from a signal handler."""

    def close(self) -> None: ...


class Sink(Protocol):
    """Where restored frames go."""

    def write(self, frame: Frame) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None:
        """Where not one frame came: leave nothing."""


def feed_live(
    server: str,
    source: str,
    target: str,
    *,
    settings: Settings,
    bar: Bar,
    size: tuple[int, int] | None = None,
    pixel_format: PixelFormat = "rgb8",
    rate: Fraction = Fraction(25),
    real_time: bool = False,
    in_flight: int | None = None,
    codec: str | None = None,
    crf: int | None = None,
    **fields: Any,
) -> Fed:
    """Have frames restored by a running service as they come. Ctrl-C ends the source, and what was taken is finished.

    Args:
        server: its base URL.
        source: a video file, `camera:N` or a device, or `-` for raw frames on standard input.
        target: a video file, or `-` for raw frames on standard output.
        settings: bounds of what is read from a file.
        bar: moved with each frame.
        size: width and height, of raw frames.
        pixel_format: of raw frames.
        rate: frames a second that raw frames are written into a file at.
        real_time: whether a file's frames are taken at their own pace, as a camera's come.
        in_flight: frames without an answer, at most.
        codec: of a file that is made from a file.
        crf: likewise.
        fields: model, sigma, strength.

    Raises:
        BadInput: there is no such source, or the target cannot be written.
        ServerProblem, ServerAway: the service does not do it, or not to the end.
    """
    with ExitStack() as kept:
        frames = _source(source, settings, size, pixel_format, rate, real_time)
        kept.callback(frames.close)
        taken: deque[Frame] = deque()  # those on their way, for what is known of each beside its pixels
        client = kept.enter_context(Client(server))
        live = kept.enter_context(
            client.stream(
                _pixels_of(frames, taken),
                width=frames.width,
                height=frames.height,
                pixel_format=frames.pixel_format,
                in_flight=in_flight,
                **fields,
            )
        )
        kept.enter_context(_ended_by_ctrl_c(frames.stop))
        sink = _sink(target, frames, source, codec, crf)
        latencies: list[float] = []
        shape, dtype = (frames.height, frames.width, 3), _DTYPES[frames.pixel_format]
        bar.start(source)
        started = time.monotonic()
        try:
            for restored in live:
                latencies.append(1000 * restored.latency_s)
                pixels = np.frombuffer(restored.pixels, dtype).reshape(shape)
                sink.write(replace(taken.popleft(), pixels=pixels))
                bar.move(len(latencies), None)
        finally:
            bar.finish()
            # Of a stream that breaks, what came is kept: nobody can film it again.
            (sink.close if latencies else sink.abort)()
        return Fed(
            source=source,
            target=target,
            model=live.start.model,
            backend=f"{live.start.backend} {live.start.precision}",
            frames=len(latencies),
            dropped=frames.dropped,
            seconds=time.monotonic() - started,
            latency_frames=live.start.latency_frames,
            latency_p50_ms=float(np.percentile(latencies, 50)) if latencies else None,
            latency_p95_ms=float(np.percentile(latencies, 95)) if latencies else None,
        )


def _pixels_of(frames: Source, taken: deque[Frame]) -> Iterator[bytes]:
    for frame in frames:
        taken.append(replace(frame, pixels=np.empty((0, 0, 3), np.uint8)))
        yield frame.pixels.tobytes()


def _source(
    source: str,
    settings: Settings,
    size: tuple[int, int] | None,
    pixel_format: PixelFormat,
    rate: Fraction,
    real_time: bool,
) -> Source:
    if source == PIPE:
        if size is None:
            raise BadInput("raw frames tell no size of their own; say --size WIDTHxHEIGHT")
        return PipeSource(sys.stdin.buffer, size, pixel_format, rate)
    if source.startswith((CAMERA, _DEVICE)):
        device = source.removeprefix(CAMERA)
        return CameraSource(int(device) if device.isdigit() else device)
    return FileSource(Path(source), settings, real_time=real_time)


def _sink(target: str, frames: Source, source: str, codec: str | None, crf: int | None) -> Sink:
    if target == PIPE:
        return PipeSink(sys.stdout.buffer)
    path = Path(target)
    form = FORMATS.get(path.suffix.lower(), "")
    if form not in _ENCODERS:
        raise BadInput(
            f"the target's suffix is {path.suffix!r}; a stream is written as .mp4, .mkv, .mov, .webm, or to -"
        )
    if isinstance(frames, FileSource):
        if path.resolve() == Path(source).resolve():
            raise BadInput(f"{target} is the input itself; the result would replace it")
        return VideoWriter(path, frames.reader, format=form, codec=codec, crf=crf)
    if codec is not None or crf is not None:
        raise BadInput("codec and crf are for videos made from a file; pipe raw frames into an encoder of your own")
    return PlainSink(path, form, frames)


class FileSource:
    """The frames of a video file, one after the other, or at their own pace."""

    dropped = 0

    def __init__(self, path: Path, settings: Settings, *, real_time: bool) -> None:
        """
        Raises:
            BadInput: it cannot be read.
        """
        if not path.exists():
            raise BadInput(f"{path} does not exist")
        self.reader = VideoReader(path, settings)
        self.width, self.height = self.reader.head.width, self.reader.head.height
        self.pixel_format: PixelFormat = "rgb16" if self.reader.depth > 8 else "rgb8"
        self._real_time = real_time
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        began: float | None = None
        for frame in self.reader:
            if self._stopped.is_set():
                return
            if self._real_time and frame.pts is not None:
                moment = float(frame.pts * frame.time_base)
                began = time.monotonic() - moment if began is None else began
                self._stopped.wait(max(0.0, began + moment - time.monotonic()))
            yield frame

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self.reader.close()


class PipeSource:
    """Raw frames, one behind the other."""

    dropped = 0

    def __init__(self, pipe: BinaryIO, size: tuple[int, int], pixel_format: PixelFormat, rate: Fraction) -> None:
        self.width, self.height = size
        self.pixel_format = pixel_format
        self._pipe, self._rate = pipe, rate
        self._stopped = False

    def __iter__(self) -> Iterator[Frame]:
        """
        Raises:
            BadInput: the pipe ends in the middle of a frame.
        """
        dtype, shape = _DTYPES[self.pixel_format], (self.height, self.width, 3)
        frame_bytes = self.width * self.height * 3 * dtype.itemsize
        count = 0
        while not self._stopped and (data := self._pipe.read(frame_bytes)):
            if len(data) < frame_bytes:
                raise BadInput(f"frame {count} on standard input has {len(data)} bytes; {frame_bytes} are a frame")
            yield Frame(np.frombuffer(data, dtype).reshape(shape), count, 1 / self._rate, 1)
            count += 1

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """The pipe is the process's own."""


class CameraSource:
    """What a camera sees when it is asked: frames that nobody took in time are dropped, so that none is old."""

    pixel_format: PixelFormat = "rgb8"

    def __init__(self, device: int | str) -> None:
        """
        Raises:
            BadInput: there is no such camera, or it gives no picture.
        """
        self._capture = cv2.VideoCapture(device)
        has_first, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not has_first or first is None:
            self._capture.release()
            raise BadInput(f"camera {device} gives no picture")
        self.height, self.width = first.shape[:2]
        self.dropped = 0
        self._began = time.monotonic()
        self._newest: Frame | None = self._frame_of(first)
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._watch, name="camera", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._stopped)
                frame, self._newest = self._newest, None
            if frame is None:
                return
            yield frame

    def stop(self) -> None:
        self._stopped = True  # the thread tells the others: a signal handler must not wait for a lock

    def close(self) -> None:
        self._stopped = True
        self._thread.join()
        self._capture.release()

    def _watch(self) -> None:
        while not self._stopped:
            has_frame, seen = self._capture.read()
            if not has_frame:
                break
            frame = self._frame_of(seen)
            with self._changed:
                self.dropped += self._newest is not None
                self._newest = frame
                self._changed.notify_all()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _frame_of(self, seen: Any) -> Frame:
        pixels: Pixels = np.asarray(cv2.cvtColor(seen, cv2.COLOR_BGR2RGB), np.uint8)
        return Frame(pixels, round((time.monotonic() - self._began) / _MILLISECONDS), _MILLISECONDS)


class PipeSink:
    """Raw frames, one behind the other."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def write(self, frame: Frame) -> None:
        self._pipe.write(frame.pixels.tobytes())
        self._pipe.flush()  # somebody watches

    def close(self) -> None:
        """The pipe is the process's own."""

    abort = close


class PlainSink:
    """A video of frames that came from no file."""

    def __init__(self, path: Path, form: str, frames: Source) -> None:
        self._path, self._out = path, av.open(str(path), "w")
        deep = frames.pixel_format == "rgb16" and form != "webm"
        stream = self._out.add_stream(_ENCODERS[form], options={"crf": "18", "preset": "veryfast"})
        assert isinstance(stream, VideoStream)
        name = "yuv444p" if frames.width % 2 or frames.height % 2 else "yuv420p"
        name += "10le" if deep else ""
        layout = layout_of(name)
        assert layout
        self._layout, self._stream, self._last = layout, stream, -1
        stream.width, stream.height, stream.pix_fmt = frames.width, frames.height, name
        context = stream.codec_context
        context.time_base = stream.time_base = _MILLISECONDS
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG

    def write(self, frame: Frame) -> None:
        # Not the library's converter: at widths beyond a multiple of 16 its 10 bits were wrong in places (PyAV 18.1).
        picture = frame_of(frame.pixels, self._layout, Colorspace.ITU709, ColorRange.MPEG)
        # Milliseconds, whatever the frames are counted in: containers take no finer time from all encoders.
        moment = round((frame.pts or 0) * frame.time_base / _MILLISECONDS)
        self._last = max(moment, self._last + 1)
        picture.pts, picture.time_base = self._last, _MILLISECONDS
        self._out.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._out.mux(self._stream.encode(None))
        self._out.close()

    def abort(self) -> None:
        self._out.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def _ended_by_ctrl_c(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C ends the source; the second is as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
