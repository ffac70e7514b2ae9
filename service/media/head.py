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
from service.media.hdr import Light, Mastering, light_in, mastering_in

TOP_FIRST, BOTTOM_FIRST = 2, 3
# What comes first on the screen, by the library's numbers of what comes first in the file and then on the screen.
_FIELD_ORDERS = {2: TOP_FIRST, 5: TOP_FIRST, 3: BOTTOM_FIRST, 4: BOTTOM_FIRST}
_MEANINGFUL = {  # data beside a frame that a viewer would miss, and that new frames do not have
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
    is_interlaced: bool
    field_order: int | None  # of an interlaced one, where it is told
    by_field: bool  # its frames are coded as two fields, so that each has chroma of its own
    mastering: Mastering | None
    light: Light | None
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
    field_order = _field_order(stream)
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
        is_interlaced=first.interlaced_frame or field_order is not None,  # some tell it in the container alone
        field_order=field_order,
        by_field=bool(first.interlaced_frame),
        mastering=next(map(mastering_in, _data(first, SideDataType.MASTERING_DISPLAY_METADATA)), None),
        light=next(map(light_in, _data(first, SideDataType.CONTENT_LIGHT_LEVEL)), None),
        disposition=int(stream.disposition),
        tags=dict(stream.metadata),
        beside=tuple(_lost_beside(stream, first)),
    )


def depth_of(format: VideoFormat) -> int:  # noqa: A002
    """Bits of its deepest component."""
    return max(component.bits for component in format.components)


def _lost_beside(stream: VideoStream, first: VideoFrame) -> list[str]:
    lost = [_MEANINGFUL[side.type] for side in _beside(first) if side.type in _MEANINGFUL]
    has_alpha = any(component.is_alpha for component in first.format.components)
    if has_alpha or stream.metadata.get("alpha_mode") == "1":
        lost.append("transparency")
    return lost


def _field_order(stream: VideoStream) -> int | None:
    if stream.codec_context.codec.canonical_name == "dvvideo":
        return BOTTOM_FIRST  # always (SMPTE 314M), so nothing in the file says it
    return _FIELD_ORDERS.get(stream.codec_context.field_order)


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    """How the picture is to be turned and mirrored for display, as containers say it."""
    return next((struct.unpack("=9i", data) for data in _data(frame, SideDataType.DISPLAYMATRIX)), None)


def _data(frame: VideoFrame, kind: SideDataType) -> list[bytes]:
    return [bytes(side) for side in _beside(frame) if side.type == kind]


def _beside(frame: VideoFrame) -> Iterator[SideData]:
    try:
        return iter(cast("SideDataContainer", frame.side_data))  # its stub says a dictionary
    except ValueError:
        # Of a kind that the library came to know after PyAV did (Exif in a camera's pictures, say), and then PyAV 18.1
        # shows none of the others either.
        return iter(())
