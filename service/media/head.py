"""What must be known of a video to write another like it? Plain data: it can be told to another process."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from av.sidedata.sidedata import SideData, SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.job import InputFacts

_MEANINGFUL = {  # data beside a frame that a viewer would miss, and that new frames do not have
    SideDataType.MASTERING_DISPLAY_METADATA: "HDR mastering display",
    SideDataType.CONTENT_LIGHT_LEVEL: "HDR content light level",
    SideDataType.DYNAMIC_HDR_PLUS: "HDR10+ metadata",
    SideDataType.DOVI_METADATA: "Dolby Vision metadata",
    SideDataType.A53_CC: "closed captions",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoHead:
    """How a video looks, by its header and its first frame; the colours as H.273 numbers them."""

    facts: InputFacts
    width: int
    height: int
    pixel_format: str  # as the library calls it
    colorspace: int
    color_range: int
    color_primaries: int
    color_trc: int
    time_base: Fraction
    rate: Fraction | None  # frames a second, where it is told or can be guessed
    rotation: int  # degrees, counter-clockwise, by which players turn the frames
    display_matrix: tuple[int, ...] | None  # nine numbers that say the same, and mirroring, as containers do
    aspect: Fraction | None  # of a pixel
    disposition: int
    tags: dict[str, str]  # of the picture track
    beside: tuple[str, ...]  # what the frames carry, and new ones do not, in words

    @property
    def format(self) -> VideoFormat:
        return VideoFormat(self.pixel_format, self.width, self.height)


def head_of(
    stream: VideoStream, first: VideoFrame, facts: InputFacts, time_base: Fraction, rate: Fraction | None
) -> VideoHead:
    """The head of an opened video."""
    return VideoHead(
        facts=facts,
        width=first.width,
        height=first.height,
        pixel_format=first.format.name,
        colorspace=int(first.colorspace),
        color_range=int(first.color_range),
        color_primaries=int(first.color_primaries),
        color_trc=int(first.color_trc),
        time_base=time_base,
        rate=rate,
        rotation=int(first.rotation),
        display_matrix=_display_matrix(first),
        aspect=stream.sample_aspect_ratio,
        disposition=int(stream.disposition),
        tags=dict(stream.metadata),
        beside=tuple(_lost_beside(stream, first)),
    )


def _lost_beside(stream: VideoStream, first: VideoFrame) -> list[str]:
    lost = [_MEANINGFUL[side.type] for side in _beside(first) if side.type in _MEANINGFUL]
    has_alpha = any(component.is_alpha for component in first.format.components)
    if has_alpha or stream.metadata.get("alpha_mode") == "1":
        lost.append("transparency")
    if first.interlaced_frame:
        lost.append("interlacing flags")
    return lost


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    """How the picture is to be turned and mirrored for display, as containers say it."""
    for side in _beside(frame):
        if side.type == SideDataType.DISPLAYMATRIX:
            return struct.unpack("=9i", bytes(side))
    return None


def _beside(frame: VideoFrame) -> Iterator[SideData]:
    try:
        return iter(cast("SideDataContainer", frame.side_data))  # its stub says a dictionary
    except ValueError:
        # Of a kind that the library came to know after PyAV did (Exif in a camera's pictures, say), and then PyAV 18.1
        # shows none of the others either.
        return iter(())
