"""Which colours do a video's numbers stand for, and how are they told to an encoder?"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from av.codec.codec import Codec, find_best_pix_fmt_of_list
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from models.film import FAITHFUL
from service.media.planes import (
    FULL,
    MATRICES,
    Codes,
    Pixels,
    add_beyond,
    beyond_of,
    codes_in,
    frame_of,
    layout_of,
    lies_so,
    rgb_of,
)

# On several threads the library writes past the end of a row whose width is no multiple of what it takes at once, into
# one that another thread has done: now and then the first pixels of a row are wrong (PyAV 18.1). One is as fast.
_THREADS = 1

# Values of ITU-T H.273, as files and decoders carry them.
_RGB, _BT709, _UNSPECIFIED, _BT601, _BT2020 = 0, 1, 2, 6, 9
_BT2020_CONSTANT = 10  # not linear; taken for the other one, which is near
_LIMITED = 1
_HD_HEIGHT = 720  # from here on, what says nothing is taken for BT.709, as players do


class Look(Protocol):
    """What is asked here of a frame, or of one who knows as much of it."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def format(self) -> VideoFormat: ...
    @property
    def colorspace(self) -> int: ...
    @property
    def color_range(self) -> int: ...
    @property
    def color_primaries(self) -> int: ...
    @property
    def color_trc(self) -> int: ...
    @property
    def by_field(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Coding:
    """How YUV numbers are to be read: the matrix and the range, as H.273 numbers them."""

    matrix: int
    range: int
    by_field: bool = False  # each field has chroma of its own


@dataclass(frozen=True, slots=True)
class ColourTags:
    """What a stream says about its colours; 2 (range: 0) says nothing."""

    matrix: int
    range: int
    primaries: int
    transfer: int

    def put_on(self, what: Any) -> None:
        """Tag a frame, or an encoder's context."""
        what.colorspace, what.color_range = self.matrix, self.range
        what.color_primaries, what.color_trc = self.primaries, self.transfer


def coding_of(frame: Look) -> Coding:
    """Matrix and range to decode with, guessed where the frame tells none or one that cannot be applied."""
    guess = _BT709 if frame.height >= _HD_HEIGHT else _BT601
    matrix = _BT2020 if frame.colorspace == _BT2020_CONSTANT else frame.colorspace
    if matrix not in MATRICES:
        matrix = guess
    return Coding(matrix, FULL if _is_full(frame) else _LIMITED, frame.by_field)


def tags_for(first: Look, pixel_format: str) -> tuple[ColourTags, Coding]:
    """What a stream made from this one is to say of its colours, and how its planes are to be made."""
    made = VideoFormat(pixel_format)
    beside = (first.color_primaries, first.color_trc)
    if made.is_rgb:
        return ColourTags(_RGB, FULL, *beside), Coding(_RGB, FULL)
    if first.format.is_rgb:
        matrix = _BT709 if first.height >= _HD_HEIGHT else _BT601
        return ColourTags(matrix, _LIMITED, *beside), Coding(matrix, _LIMITED, first.by_field)
    # A source that says nothing is written saying nothing: a player then guesses for both alike.
    matrix = first.colorspace if first.colorspace != _RGB else _UNSPECIFIED
    # Of luma alone that says nothing, players disagree; so it is told what it was taken for.
    told = FULL if _is_full(first) else first.color_range
    return ColourTags(matrix, told, *beside), coding_of(first)


def _is_full(frame: Look) -> bool:
    """Whether black is 0. Luma alone is taken so unless it says otherwise: pictures are its usual source."""
    name = frame.format.name
    if name.startswith("yuvj") or frame.color_range == FULL:
        return True
    layout = layout_of(name)
    return frame.color_range != _LIMITED and layout is not None and layout.is_grey


def to_rgb(frame: VideoFrame, coding: Coding, depth: int, reformatter: VideoReformatter) -> Pixels:
    """A decoded frame as RGB: of 8 bits, or 16 where `depth` is more than 8."""
    return to_rgb_and_beyond(frame, coding, depth, reformatter, with_beyond=False)[0]


def to_rgb_and_beyond(
    frame: VideoFrame, coding: Coding, depth: int, reformatter: VideoReformatter, *, with_beyond: bool = True
) -> tuple[Pixels, Codes | None]:
    """Likewise, with what of the frame's codes RGB does not hold; None where it holds whatever such a frame can."""
    layout = layout_of(frame.format.name)
    if layout is None:
        wanted = "rgb48le" if depth > 8 else "rgb24"
        picture = reformatter.reformat(frame, format=wanted, interpolation=FAITHFUL, threads=_THREADS)
        return picture.to_ndarray(), None
    if not lies_so(frame.format, layout):
        # Only the order of the same numbers changes. The range is told as one, or the library would convert it.
        frame.color_range = coding.range
        frame = reformatter.reformat(frame, format=layout.name, dst_color_range=coding.range, threads=_THREADS)
    how = (layout, coding.matrix, coding.range)
    pixels = rgb_of(frame, *how, by_field=coding.by_field)
    return pixels, beyond_of(frame, pixels, *how, by_field=coding.by_field) if with_beyond else None


def codes_beyond(look: Look) -> int:
    """How many codes `to_rgb_and_beyond` gives beside the RGB of such a frame."""
    layout = layout_of(look.format.name)
    return codes_in(layout, look.width, look.height) if layout else 0


def takes_beyond(pixel_format: str, coding: Coding, source: Look) -> bool:
    """Whether what the source's RGB does not hold can be given back to frames of this format and coding."""
    layout = layout_of(pixel_format)
    return (
        layout is not None
        and layout.name == pixel_format
        and layout == layout_of(source.format.name)
        and coding == coding_of(source)
    )


def from_rgb(
    pixels: Pixels,
    pixel_format: str,
    coding: Coding,
    reformatter: VideoReformatter,
    beyond: Codes | None = None,
) -> VideoFrame:
    """The planes an encoder wants.

    Args:
        beyond: Codes that are added; only where `takes_beyond`.
    """
    layout = layout_of(pixel_format)
    if layout is not None and layout.name == pixel_format:
        frame = frame_of(pixels, layout, coding.matrix, coding.range, by_field=coding.by_field)
        if beyond is not None:
            add_beyond(frame, beyond, layout)
        return frame
    have = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
    made = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=have)
    return reformatter.reformat(made, format=pixel_format, interpolation=FAITHFUL, threads=_THREADS)


def nearest_pixel_format(encoder: str, first: Look, *, whole_chroma: bool) -> str:
    """The source's pixel format where the encoder takes it, else the nearest that loses least.

    Args:
        encoder: As the library calls it.
        whole_chroma: It wants sizes that are multiples of the chroma subsampling.
    """
    source = first.format.name.replace("yuvj", "yuv")  # the j says full range, which has a tag of its own
    offered = [
        offer.name
        for offer in Codec(encoder, "w").video_formats or ()
        if not offer.name.startswith(("yuvj", "nv"))
        and not any(mark in offer.name for mark in ("f16", "f32"))
        and not any(component.is_alpha for component in offer.components)
        and (not offer.is_rgb or first.format.is_rgb)  # few players know a codec's RGB
        and (not whole_chroma or _divides(offer.name, first.width, first.height))
    ]
    if source in offered:
        return source
    best, _ = find_best_pix_fmt_of_list(offered, source)
    assert best is not None, f"{encoder} offers {offered}"
    return best.name


def _divides(name: str, width: int, height: int) -> bool:
    chroma = VideoFormat(name, 64, 64)
    return width % (64 // chroma.chroma_width()) == 0 and height % (64 // chroma.chroma_height()) == 0
