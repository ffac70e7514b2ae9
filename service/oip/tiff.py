"""Puts pixels into a TIFF that a worker reads as they are, and takes them out of the TIFF that it writes.

The API process has no decoder; these two kinds of file, plain and deflated, are simple enough without one.
"""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.media import tiff

Pixels = NDArray[Any]  # [H, W, 1 or 3] of uint8 or uint16, RGB

_COMPRESSION, _OFFSETS, _ROWS, _COUNTS, _PLANAR, _PREDICTOR = 259, 273, 278, 279, 284, 317
_PLAIN, _DEFLATED = 1, (8, 32946)
_GREY, _RGB = 1, 2
_WANTED = {tiff.WIDTH, tiff.HEIGHT, tiff.BITS, tiff.SAMPLES, _COMPRESSION, _OFFSETS, _ROWS, _COUNTS, _PREDICTOR}


class UnreadableResult(Exception):
    """A worker wrote what we do not know: our fault, not the caller's."""


def wrapped(pixels: Pixels) -> bytes:
    """An uncompressed TIFF of them: nothing is lost, and next to nothing is spent."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.itemsize
    bits_at = 8 + 2 + 10 * 12 + 4
    data_at = bits_at + 8
    shorts = {
        tiff.BITS: bits,
        _COMPRESSION: _PLAIN,
        tiff.PHOTOMETRIC: _RGB if channels == 3 else _GREY,
        tiff.SAMPLES: channels,
        _PLANAR: 1,
    }
    longs = {
        tiff.WIDTH: width,
        tiff.HEIGHT: height,
        _OFFSETS: data_at,
        _ROWS: height,
        _COUNTS: pixels.nbytes,
    }
    file = bytearray(b"II*\0" + struct.pack("<IH", 8, len(shorts) + len(longs)))
    for tag in sorted(shorts | longs):
        if tag == tiff.BITS and channels == 3:  # three values do not fit where the others stand
            file += struct.pack("<HHII", tag, 3, 3, bits_at)
        elif tag in shorts:
            file += struct.pack("<HHIHH", tag, 3, 1, shorts[tag], 0)
        else:
            file += struct.pack("<HHII", tag, 4, 1, longs[tag])
    file += bytes(4) + struct.pack("<4H", bits, bits, bits, 0)
    return bytes(file) + np.ascontiguousarray(pixels, f"<u{pixels.itemsize}").tobytes()


def unwrapped(file: bytes) -> Pixels:
    """
    Raises:
        UnreadableResult: it is not as workers write TIFFs: small-endian, by strips, plain or deflated.
    """
    page = tiff.first_directory(BytesIO(file), _WANTED)
    numbers = {tag: page.number(tag) or 0 for tag in _WANTED if tag in page.tags}
    width, height = numbers[tiff.WIDTH], numbers[tiff.HEIGHT]
    bits, channels = numbers.get(tiff.BITS, 1), numbers.get(tiff.SAMPLES, 1)
    how = numbers.get(_COMPRESSION, _PLAIN)
    if page.big_endian or bits not in (8, 16) or how not in (_PLAIN, *_DEFLATED):
        raise UnreadableResult(f"the result is a TIFF of {bits} bits, compression {how}")
    strips = [file[at : at + count] for at, count in zip(_all_of(page, _OFFSETS), _all_of(page, _COUNTS), strict=True)]
    data = b"".join(strips if how == _PLAIN else map(zlib.decompress, strips))
    pixels = np.frombuffer(data, f"<u{bits // 8}").reshape(height, width, channels)
    if numbers.get(_PREDICTOR, 1) == 2:  # each value is told as what it differs by from its neighbour on the left
        return np.cumsum(pixels, axis=1, dtype=pixels.dtype)
    return pixels


def _all_of(page: tiff.Directory, tag: int) -> list[int]:
    told = page.tags[tag]
    return [int(number) for number in np.frombuffer(told.raw, {3: "<u2", 4: "<u4", 16: "<u8"}[told.type])]
