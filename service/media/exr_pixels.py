"""Pixels out of an OpenEXR file, and into one, through the Academy Software Foundation's library."""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import Imath
import numpy as np
import OpenEXR
from numpy.typing import NDArray

from service.errors import BadInput
from service.media import exr

Values = NDArray[Any]  # of float32

_ZIP = 3
_LOSSLESS = {0, 1, 2, 3, 4}  # none, run lengths, two kinds of Deflate, PIZ
_COMPRESSIONS = {
    0: OpenEXR.NO_COMPRESSION,
    1: OpenEXR.RLE_COMPRESSION,
    2: OpenEXR.ZIPS_COMPRESSION,
    3: OpenEXR.ZIP_COMPRESSION,
    4: OpenEXR.PIZ_COMPRESSION,
}
_EVERYWHERE = {
    *(b"displayWindow", b"pixelAspectRatio", b"screenWindowCenter", b"screenWindowWidth", b"chromaticities"),
}
_HALF_MOST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What another OpenEXR file takes from the one that was read, beside its pixels."""

    window: tuple[int, int, int, int]
    is_half: bool
    compression: int = _ZIP
    attributes: tuple[exr.Attribute, ...] = ()
    layer: str = ""  # in front of its channels' names, with the dot
    is_plain: bool = True  # its colours are those of a picture that tells nothing

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        left, top, right, bottom = self.window
        return right - left + 1, bottom - top + 1

    @property
    def says_more(self) -> bool:
        """Than any file does."""
        told = {one.name: one.raw for one in self.attributes}
        whole = struct.pack("<4i", *self.window)
        return bool(told.keys() - _EVERYWHERE) or told.get(b"displayWindow", whole) != whole


def read_pixels(data: bytes, head: exr.Head, colours: exr.Colours) -> tuple[Values, Values | None]:
    """
    Returns:
        [H, W, 3], of a single channel three equal planes, and alpha [H, W], both float32.

    Raises:
        BadInput: it is damaged or cut short.
    """
    names = [*colours.names, *([colours.alpha] if colours.alpha else [])]
    try:
        file = OpenEXR.InputFile(BytesIO(data))
        planes = file.channels(names, Imath.PixelType(Imath.PixelType.FLOAT))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as err:
        raise BadInput("the OpenEXR data is damaged or cut short") from err
    shape = head.height, head.width
    if any(len(plane) != 4 * head.width * head.height for plane in planes):
        raise BadInput("the OpenEXR file has other windows than its header says")
    values = [np.frombuffer(plane, np.float32).reshape(shape) for plane in planes]
    count = len(colours.names)
    pixels = np.dstack(values[:count] if count == 3 else 3 * values[:1])
    return pixels, values[count].copy() if colours.alpha else None


def write_pixels(planes: Values, alpha: Values | None, kept: Kept) -> bytes:
    """
    Args:
        planes: [H, W] of luminance or [H, W, 3] of RGB, float32; in a file of half what is too large becomes the
            largest number there is.
        alpha: [H, W], that the colours are multiplied by.
        kept: what the file tells beside them.
    """
    named = {"Y": planes} if planes.ndim == 2 else {colour: planes[..., at] for at, colour in enumerate("RGB")}
    if alpha is not None:
        named["A"] = alpha
    left, top, right, bottom = kept.window
    header = {
        "type": OpenEXR.scanlineimage,
        "compression": _COMPRESSIONS[kept.compression if kept.compression in _LOSSLESS else _ZIP],
        "dataWindow": (_point(left, top), _point(right, bottom)),
    }
    channels = {kept.layer + name: _numbers(plane, is_half=kept.is_half) for name, plane in named.items()}
    file = BytesIO()
    OpenEXR.File(header, channels, num_threads=0).write(file)
    return exr.with_attributes(file.getvalue(), kept.attributes)


def plain(height: int, width: int, *, is_half: bool) -> Kept:
    """Of a picture that was no OpenEXR file."""
    return Kept(window=(0, 0, width - 1, height - 1), is_half=is_half)


def _point(across: int, down: int) -> NDArray[np.int32]:
    return np.array([across, down], np.int32)


def _numbers(plane: Values, *, is_half: bool) -> Values:
    if not is_half:
        return np.ascontiguousarray(plane, np.float32)
    finite = np.isfinite(plane)
    return np.ascontiguousarray(np.where(finite, plane.clip(-_HALF_MOST, _HALF_MOST), plane), np.float16)
