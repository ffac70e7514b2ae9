"""Makes the videos that tests of video are about: any planes, any container, odd in one way each."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

CLOCK = Fraction(1, 25)


def filled(pixel_format: str, size: tuple[int, int], value: Callable[[int, tuple[int, int]], Any]) -> VideoFrame:
    """A frame whose planes, numbered from 0, hold what is asked for; size is width and height."""
    frame = VideoFrame(*size, pixel_format)
    for number, (plane, part) in enumerate(zip(frame.planes, frame.format.components, strict=False)):
        kind = np.dtype(np.uint16 if part.bits > 8 else np.uint8)
        lines = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        shape = (plane.height, plane.width)
        lines[: plane.height, : plane.width] = np.clip(np.round(value(number, shape)), 0, (1 << part.bits) - 1)
    return frame


def planes_in(frame: VideoFrame) -> list[NDArray[Any]]:
    planes = []
    for plane, part in zip(frame.planes, frame.format.components, strict=False):
        kind = np.dtype(np.uint16 if part.bits > 8 else np.uint8)
        lines = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        planes.append(lines[: plane.height, : plane.width].astype(int))
    return planes


def soft_noise(pixel_format: str, size: tuple[int, int], seed: int = 0) -> VideoFrame:
    """Noise, chroma value by chroma value, around middle grey: no RGB that it stands for is beyond black or white."""
    random = np.random.default_rng(seed)
    step = 1 << VideoFormat(pixel_format).components[0].bits - 8
    return filled(
        pixel_format, size, lambda number, shape: random.normal((128 if number else 126) * step, 8 * step, shape)
    )


def wild_noise(pixel_format: str, size: tuple[int, int], seed: int = 0) -> VideoFrame:
    """Every code as often as any other: most stand for what is beyond black or white, or for no colour of RGB."""
    random = np.random.default_rng(seed)
    depth = VideoFormat(pixel_format).components[0].bits
    return filled(pixel_format, size, lambda number, shape: random.integers(0, 1 << depth, shape))


def tones(*values: int) -> Callable[[str, tuple[int, int], int], VideoFrame]:
    """Frames of one tone each: luma as given on 8 bits, colourless."""

    def make(pixel_format: str, size: tuple[int, int], number: int) -> VideoFrame:
        step = 1 << VideoFormat(pixel_format).components[0].bits - 8
        luma = values[number % len(values)]
        return filled(pixel_format, size, lambda plane, shape: np.full(shape, (128 if plane else luma) * step))

    return make


def write_video(
    path: Path,
    *,
    muxer: str = "matroska",
    encoder: str = "ffv1",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    count: int = 3,
    times: Sequence[int] | None = None,
    clock: Fraction = CLOCK,
    frame: Callable[[str, tuple[int, int], int], VideoFrame] = soft_noise,
    options: dict[str, str] | None = None,
    tags: dict[str, Any] | None = None,
    interlaced: bool = False,
    beside: Callable[[Any], None] | None = None,
) -> Path:
    """Encode planes as they are, without a conversion of colours on the way.

    Args:
        frame: Makes one, of a pixel format, a size and a number.
        tags: Attributes of the encoder's context.
        beside: Adds to the open file what it has beside its picture.
    """
    moments = times if times is not None else range(count)
    with av.open(str(path), "w", format=muxer) as out:
        stream = out.add_stream(encoder, rate=25, options=options or {})
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = *size, pixel_format
        context.time_base = stream.time_base = clock
        for name, value in (tags or {}).items():
            setattr(context, name, value)
        if interlaced:
            context.flags |= Flags.interlaced_dct
        if beside:
            beside(out)
        for number, moment in enumerate(moments):
            picture = frame(pixel_format, size, number)
            for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                if tags and name in tags:
                    setattr(picture, name, tags[name])
            picture.pts, picture.time_base = moment, clock
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


def decoded(path: Path) -> list[VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))
