"""How do planes of luma and chroma become RGB, and RGB planes, so that nothing but rounding is between the two?

The library's own converter would do, but for full range: there it truncates (PyAV 18.1, 2026: a green cast of half a
code at 8 bits, luma 1.5 codes too bright at 10 bits and 7 at 12), and its chroma filters are not each other's inverse.
Here everything is a product of real matrices (ITU-T H.273, 8.3), and chroma is widened so that its mean stays: what is
narrowed again by taking the mean is the source, whatever it was.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Pixels = NDArray[Any]  # [H, W, 3], RGB, of uint8 or of uint16 over its whole range
Codes = NDArray[np.int32]  # of all planes, one after the other
_Plane = NDArray[Any]  # of float32

# Shares of red and blue in luma, by the numbers that H.273 has for matrices.
_SHARES = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601, of 625 lines
    6: (0.299, 0.114),  # BT.601, of 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
}
_YCGCO = 8
MATRICES = frozenset({*_SHARES, _YCGCO})
FULL = 2
_BAND_ROWS = 64  # worked on at a time, so that what is between source and result stays in the cache
_NOTHING: Any = 0  # the converters of the library that round are in its sums; its stub knows no numbers


@dataclass(frozen=True, slots=True)
class Layout:
    """Whole planes, one a component, of little-endian numbers."""

    name: str  # as the library calls it
    bits: int
    across: int  # pixels that share a chroma value, side by side
    down: int  # likewise, one above the other
    is_grey: bool


@lru_cache(maxsize=256)
def layout_of(name: str) -> Layout | None:
    """How planes must lie to hold what this pixel format does; None for what is no luma and chroma of whole numbers."""
    format = VideoFormat(name, 64, 64)  # noqa: A001
    parts = [part for part in format.components if not part.is_alpha]
    bits = parts[0].bits
    if format.is_rgb or format.has_palette or format.is_bit_stream or name.startswith("xyz") or not 8 <= bits <= 16:
        return None
    end = "" if bits == 8 else f"{bits}le"
    if len(parts) == 1:
        return Layout(f"gray{end}", bits, 1, 1, is_grey=True)
    across, down = 64 // format.chroma_width(), 64 // format.chroma_height()
    shared = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411", (4, 4): "410"}.get(
        (across, down)
    )
    if len(parts) != 3 or shared is None:
        return None
    return Layout(f"yuv{shared}p{end}", bits, across, down, is_grey=False)


def lies_so(format: VideoFormat, layout: Layout) -> bool:  # noqa: A002
    """Whether a frame's planes can be taken as they are; alpha may be behind them."""
    name = format.name.replace("yuvj", "yuv").replace("yuva", "yuv")
    return name == layout.name


def rgb_of(frame: VideoFrame, layout: Layout, matrix: int, told_range: int, *, by_field: bool = False) -> Pixels:
    """
    Args:
        frame: Its planes lie as `layout` says.
        matrix: One of `MATRICES`, as H.273 numbers them.
        told_range: Likewise.
        by_field: Each field has chroma of its own, as interlaced 4:2:0 does: every other line of it.

    Returns:
        uint8 of planes of 8 bits, else uint16. What lies beyond black and white is cut off.
    """
    height, width = frame.height, frame.width
    planes = _planes_in(frame, layout)
    pixels: Pixels = np.empty((height, width, 3), np.uint8 if layout.bits == 8 else np.uint16)
    for lines in _fields(layout, height, by_field=by_field):
        _fill_rgb(pixels[lines], [plane[lines] for plane in planes], layout, matrix, told_range)
    return pixels


def _fill_rgb(pixels: Pixels, planes: "list[NDArray[Any]]", layout: Layout, matrix: int, told_range: int) -> None:
    luma, *chroma = planes
    height, width = luma.shape
    most = int(np.iinfo(pixels.dtype).max)
    black, light, middle, colour = _scales(layout.bits, told_range)
    if layout.is_grey:
        grey = (luma.astype(np.float32) - np.float32(black)) * np.float32(most / light)
        pixels[...] = _rounded(grey, layout)[..., None]
        return
    to_rgb = np.linalg.inv(_rows(matrix)) @ np.diag([1 / light, 1 / colour, 1 / colour]) * most
    mixing = np.hstack([to_rgb, to_rgb @ [[-black], [-middle], [-middle]]]).astype(np.float32)
    tall = [_widened(plane.astype(np.float32), 0, layout.down, height) for plane in chroma]
    for top in range(0, height, _BAND_ROWS):
        band = slice(top, top + _BAND_ROWS)
        wide = [_widened(plane[band], 1, layout.across, width) for plane in tall]
        together: _Plane = cv2.merge([luma[band].astype(np.float32), *wide])
        pixels[band] = _rounded(cv2.transform(together, mixing), layout)


def frame_of(pixels: Pixels, layout: Layout, matrix: int, told_range: int, *, by_field: bool = False) -> VideoFrame:
    """The inverse: a frame of planes that lie as `layout` says, made of RGB."""
    height, width = pixels.shape[:2]
    frame = VideoFrame(width, height, layout.name)
    planes = _planes_in(frame, layout)
    for lines in _fields(layout, height, by_field=by_field):
        _fill_planes([plane[lines] for plane in planes], pixels[lines], layout, matrix, told_range)
    return frame


def _fill_planes(planes: "list[NDArray[Any]]", pixels: Pixels, layout: Layout, matrix: int, told_range: int) -> None:
    luma, *chroma = planes
    height = len(luma)
    most = int(np.iinfo(pixels.dtype).max)
    black, light, middle, colour = _scales(layout.bits, told_range)
    if layout.is_grey:
        # The mean: a matrix would weigh the planes, which are to be equal.
        share = light / (3 * most)
        averaging = np.array([[share, share, share, black]], np.float32)
        for top in range(0, height, _BAND_ROWS):
            mean = cv2.transform(pixels[top : top + _BAND_ROWS].astype(np.float32), averaging)
            luma[top : top + _BAND_ROWS] = _whole(mean, layout)
        return
    from_rgb = np.diag([light, colour, colour]) @ _rows(matrix) / most
    mixing = np.hstack([from_rgb, [[black], [middle], [middle]]]).astype(np.float32)
    for top in range(0, height, _BAND_ROWS):
        mixed = cv2.split(cv2.transform(pixels[top : top + _BAND_ROWS].astype(np.float32), mixing))
        luma[top : top + _BAND_ROWS] = _whole(mixed[0], layout)
        above = top // layout.down
        for plane, wide in zip(chroma, mixed[1:], strict=True):
            small = _narrowed(_narrowed(wide, 1, layout.across), 0, layout.down)
            plane[above : above + len(small)] = _whole(small, layout)


def beyond_of(
    frame: VideoFrame, pixels: Pixels, layout: Layout, matrix: int, told_range: int, *, by_field: bool = False
) -> Codes:
    """What of a frame's codes its RGB, `pixels`, does not hold: what is blacker than black, say, or no colour of RGB.

    Returns:
        The frame's codes less those of the RGB: to be added to them, whole or in part.
    """
    held = _planes_in(frame_of(pixels, layout, matrix, told_range, by_field=by_field), layout)
    pairs = zip(_planes_in(frame, layout), held, strict=True)
    return np.concatenate([np.subtract(whole, part, dtype=np.int32).ravel() for whole, part in pairs])


def add_beyond(frame: VideoFrame, beyond: Codes, layout: Layout) -> None:
    """Give codes back to a frame of this layout; those that are no codes any more become the nearest."""
    first = 0
    for plane in _planes_in(frame, layout):
        codes = plane + beyond[first : first + plane.size].reshape(plane.shape)
        plane[...] = codes.clip(0, (1 << layout.bits) - 1)
        first += plane.size


def codes_in(layout: Layout, width: int, height: int) -> int:
    """How many codes a frame has."""
    shared = 0 if layout.is_grey else 2 * (-(-width // layout.across)) * (-(-height // layout.down))
    return width * height + shared


def _fields(layout: Layout, height: int, *, by_field: bool) -> list[slice]:
    """Lines whose chroma belongs together; they are the same lines of every plane."""
    # A height that halves into lines without chroma of their own was made in some other way, which nothing tells.
    if by_field and layout.down > 1 and height % (2 * layout.down) == 0:
        return [slice(0, None, 2), slice(1, None, 2)]
    return [slice(None)]


def _rows(matrix: int) -> NDArray[np.float64]:
    """Luma, and blue and red less luma, of RGB from 0 to 1."""
    if matrix == _YCGCO:
        return np.array([[0.25, 0.5, 0.25], [-0.25, 0.5, -0.25], [0.5, 0.0, -0.5]])
    red, blue = _SHARES[matrix]
    luma = np.array([red, 1 - red - blue, blue])
    return np.array([luma, ([0, 0, 1] - luma) / (2 * (1 - blue)), ([1, 0, 0] - luma) / (2 * (1 - red))])


def _scales(bits: int, told_range: int) -> tuple[float, float, float, float]:
    """The code of black, the codes from there to white, the code of no colour, and the codes that colours span."""
    step = float(1 << bits - 8)
    if told_range == FULL:
        most = float((1 << bits) - 1)
        return 0.0, most, 128 * step, most
    return 16 * step, 219 * step, 128 * step, 224 * step


def _planes_in(frame: VideoFrame, layout: Layout) -> list[NDArray[Any]]:
    """A frame's own memory, plane by plane, without the padding of its lines."""
    kind: np.dtype[Any] = np.dtype(np.uint8 if layout.bits == 8 else np.uint16)
    planes = []
    for plane in frame.planes[: 1 if layout.is_grey else 3]:
        lines = np.frombuffer(cast("memoryview", plane), kind).reshape(-1, abs(plane.line_size) // kind.itemsize)
        if plane.line_size < 0:
            lines = lines[::-1]  # stored from the bottom up
        planes.append(lines[: plane.height, : plane.width])
    return planes


def _rounded(values: Any, layout: Layout) -> NDArray[Any]:
    """Whole numbers of 8 bits, or of 16 for all that is deeper; what lies beyond is cut off."""
    done: NDArray[Any] = cv2.add(values, _NOTHING, dtype=cv2.CV_8U if layout.bits == 8 else cv2.CV_16U)
    return done


def _whole(values: Any, layout: Layout) -> NDArray[Any]:
    """Codes of so many bits."""
    codes = _rounded(values, layout)
    np.minimum(codes, codes.dtype.type((1 << layout.bits) - 1), out=codes)
    return codes


def _widened(plane: _Plane, axis: int, factor: int, count: int) -> _Plane:
    """As many values as there are pixels; where several share a value, its neighbours say how it runs through them."""
    while factor > 1:
        factor //= 2
        plane = _doubled(plane, axis, -(-count // factor))
    return plane


def _doubled(plane: _Plane, axis: int, count: int) -> _Plane:
    """Two values of each, whose mean it is."""
    lines = plane if axis else plane.T
    shape = (len(lines), count) if axis else (count, len(lines))
    made = np.empty(shape, np.float32)
    doubled = made if axis else made.T
    slope = np.zeros_like(lines)
    rise = (lines[:, 1:] - lines[:, :-1]) * np.float32(0.125)
    slope[:, 1:] += rise
    slope[:, :-1] += rise
    if count % 2:
        slope[:, -1] = 0  # it stands for a single pixel, and must be that
    np.subtract(lines, slope, out=doubled[:, 0::2])
    np.add(lines[:, : count // 2], slope[:, : count // 2], out=doubled[:, 1::2])
    return made


def _narrowed(plane: _Plane, axis: int, factor: int) -> _Plane:
    """Means of as many values; at an odd end, of those that there are."""
    while factor > 1:
        factor //= 2
        plane = _halved(plane, axis)
    return plane


def _halved(plane: _Plane, axis: int) -> _Plane:
    first, second = (plane[0::2], plane[1::2]) if axis == 0 else (plane[:, 0::2], plane[:, 1::2])
    made = first.copy()
    pairs = made[: second.shape[0], : second.shape[1]]
    pairs += second
    pairs *= np.float32(0.5)
    return made
