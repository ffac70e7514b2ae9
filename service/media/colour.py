"""How do a decoder's planes become RGB, and RGB an encoder's planes, so that nothing is lost between the two?"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from av.codec.codec import Codec, find_best_pix_fmt_of_list
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

Pixels = NDArray[Any]  # [H, W, 3], RGB, of uint8 or of uint16 over its whole range

# Chroma is brought to full size and back by the same filter. These flags were tried on every YUV layout of 8 to 16
# bits, both ranges and all matrices (PyAV 18.1, 2025): smooth pictures come back with the same integers from 8 bits
# of limited range, within 0.4 % elsewhere. Bilinear, the default, goes badly wrong from 10 bits 4:2:0 to 16 bit RGB.
_FILTER = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)

# Values of ITU-T H.273, as files and decoders carry them.
_RGB, _BT709, _UNSPECIFIED, _FCC, _BT601_625, _BT601, _SMPTE240, _BT2020 = 0, 1, 2, 4, 5, 6, 7, 9
_BT2020_CONSTANT = 10
_LIMITED, _FULL = 1, 2
# The library numbers the matrices it can apply almost the same; it knows BT.601 by one of its two numbers.
_APPLIED = {_BT709: 1, _FCC: 4, _BT601_625: 5, _BT601: 5, _SMPTE240: 7, _BT2020: 9, _BT2020_CONSTANT: 9}
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


@dataclass(frozen=True, slots=True)
class Coding:
    """How YUV numbers are to be read: the matrix and the range, as H.273 numbers them."""

    matrix: int
    range: int


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
    matrix = frame.colorspace if frame.colorspace in _APPLIED else guess
    if matrix == _BT2020_CONSTANT:
        matrix = _BT2020
    full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
    return Coding(matrix, _FULL if full else _LIMITED)


def tags_for(first: Look, pixel_format: str) -> tuple[ColourTags, Coding]:
    """What a stream made from this one is to say of its colours, and how its planes are to be made."""
    made = VideoFormat(pixel_format)
    beside = (first.color_primaries, first.color_trc)
    if made.is_rgb:
        return ColourTags(_RGB, _FULL, *beside), Coding(_RGB, _FULL)
    if first.format.is_rgb:
        matrix = _BT709 if first.height >= _HD_HEIGHT else _BT601
        return ColourTags(matrix, _LIMITED, *beside), Coding(matrix, _LIMITED)
    # A source that says nothing is written saying nothing: a player then guesses for both alike.
    matrix = first.colorspace if first.colorspace != _RGB else _UNSPECIFIED
    full = first.format.name.startswith("yuvj")
    return ColourTags(matrix, _FULL if full else first.color_range, *beside), coding_of(first)


def depth_of(format: VideoFormat) -> int:  # noqa: A002
    """Bits of its deepest component."""
    return max(component.bits for component in format.components)


def to_rgb(frame: VideoFrame, coding: Coding, depth: int, reformatter: VideoReformatter) -> Pixels:
    """A decoded frame as RGB: of 8 bits, or 16 where `depth` is more than 8."""
    wanted = "rgb48le" if depth > 8 else "rgb24"
    told = frame.colorspace, frame.color_range
    if not frame.format.is_rgb:
        frame.colorspace, frame.color_range = coding.matrix, coding.range
    pixels: Pixels = reformatter.reformat(frame, format=wanted, interpolation=_FILTER).to_ndarray()
    frame.colorspace, frame.color_range = told
    return pixels


def from_rgb(pixels: Pixels, pixel_format: str, coding: Coding, reformatter: VideoReformatter) -> VideoFrame:
    """The planes an encoder wants."""
    if pixel_format.startswith("gray"):
        return _grey_frame(pixels, pixel_format)
    have = "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
    return reformatter.reformat(
        VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=have),
        format=pixel_format,
        interpolation=_FILTER,
        dst_colorspace=_APPLIED.get(coding.matrix),
        dst_color_range=coding.range,
    )


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


def _grey_frame(pixels: Pixels, name: str) -> VideoFrame:
    """The mean of three planes; the library would weigh them, and come out a little beside equal ones."""
    mean = ((pixels.sum(axis=2, dtype=np.uint32) + 1) // 3).astype(np.uint32)
    bits = VideoFormat(name).components[0].bits
    have = 8 * pixels.dtype.itemsize
    if bits < have:
        drop = have - bits
        mean = np.minimum((mean + (1 << drop - 1)) >> drop, (1 << bits) - 1)
    elif bits > have:
        mean = mean * ((1 << bits) - 1) // ((1 << have) - 1)
    return VideoFrame.from_ndarray(mean.astype(np.uint8 if bits == 8 else np.uint16), format=name)
