"""The samples of a TIFF as they stand in it, whatever their size: 8 and 16 bit, floating point, planes apart.

The decoder that reads the rest knows few layouts, and takes some for others. These take arithmetic alone; but for one
compression it is not asked.
"""

import struct
import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from service.errors import BadInput
from service.media import tiff

Samples = NDArray[Any]  # [H, W, samples]

_PLAIN, _LZW, _PACKED, _DEFLATED = 1, 5, 32773, (8, 32946)
_BY_OURSELVES = (_PLAIN, *_DEFLATED)
_UNSIGNED, _SIGNED, _FLOAT, _UNKNOWN = 1, 2, 3, 4
_DIFFERENCES, _FLOAT_DIFFERENCES = 2, 3
_GREY_OR_RGB = (0, 1, 2)
_MOST_SAMPLES = 8
_MOST_SEGMENT_BYTES = 2**31
WANTED = {
    *(tiff.WIDTH, tiff.HEIGHT, tiff.BITS, tiff.PHOTOMETRIC, tiff.SAMPLES),
    *(tiff.COMPRESSION, tiff.OFFSETS, tiff.ROWS, tiff.COUNTS, tiff.PLANAR, tiff.PREDICTOR, tiff.FILL_ORDER),
    *(tiff.TILE_WIDTH, tiff.TILE_HEIGHT, tiff.TILE_OFFSETS, tiff.TILE_COUNTS, tiff.SAMPLE_FORMAT),
}


def can_read(page: tiff.Directory) -> bool:
    """Whether `read_samples` knows the layout; BadInput may still be its answer."""
    bits = page.numbers(tiff.BITS)
    return (
        bool(bits)
        and all(one == bits[0] for one in bits)
        and bits[0] in (8, 16, 32, 64)
        and (page.number(tiff.PHOTOMETRIC) in _GREY_OR_RGB)
        and (page.number(tiff.COMPRESSION) or _PLAIN) in (*_BY_OURSELVES, _LZW, _PACKED)
        and (page.number(tiff.FILL_ORDER) or 1) == 1
    )


def read_samples(data: bytes | bytearray, page: tiff.Directory) -> Samples:
    """
    Args:
        data: the file.
        page: the directory to follow, with all of `WANTED`.

    Raises:
        BadInput: it is cut short, its layout contradicts itself, or its samples are of a kind that is not read.
    """
    width, height = page.number(tiff.WIDTH) or 0, page.number(tiff.HEIGHT) or 0
    samples = page.number(tiff.SAMPLES) or 1
    dtype = _dtype(page)
    if samples > _MOST_SAMPLES:
        raise BadInput(f"the TIFF has {samples} samples in a pixel; at most {_MOST_SAMPLES} are accepted")
    apart = (page.number(tiff.PLANAR) or 1) == 2 and samples > 1
    layers, together = (samples, 1) if apart else (1, samples)
    across, down = page.number(tiff.TILE_WIDTH), page.number(tiff.TILE_HEIGHT)
    is_tiled = across is not None and down is not None
    across = across if is_tiled and across else width
    down = down if is_tiled and down else min(page.number(tiff.ROWS) or height, height)
    per_layer = -(-width // across) * -(-height // down)
    offsets = page.numbers(tiff.TILE_OFFSETS if is_tiled else tiff.OFFSETS)
    counts = page.numbers(tiff.TILE_COUNTS if is_tiled else tiff.COUNTS)
    if not counts and len(offsets) == 1:
        counts = [max(0, len(data) - offsets[0])]  # some writers of plain strips leave it out
    if min(len(offsets), len(counts)) < layers * per_layer:
        raise BadInput("the TIFF is cut short: it does not tell where all of its pixels are")
    row_bytes = across * together * dtype.itemsize
    if down * row_bytes > _MOST_SEGMENT_BYTES or max(offsets) > len(data):
        raise BadInput("the TIFF is damaged: what it tells of its strips cannot be")
    made = np.empty((height, width, samples), dtype)
    predictor = page.number(tiff.PREDICTOR) or 1
    compression = page.number(tiff.COMPRESSION) or _PLAIN
    for layer in range(layers):
        part = slice(layer * per_layer, (layer + 1) * per_layer)
        segments = zip(offsets[part], counts[part], strict=True)
        whole = None
        if compression not in _BY_OURSELVES:
            # In 16 bits it tells of damage; 8 bits, of which an odd number may be in a row, it reads by another way.
            word = min(dtype.itemsize, 2)
            whole = _unpacked_by_decoder(data, page, offsets[part], counts[part], row_bytes, word)
        for number, (at, size) in enumerate(segments):
            top, left = number // -(-width // across) * down, number % -(-width // across) * across
            rows, columns = min(down, height - top), min(across, width - left)
            if whole is not None:
                raw = whole[top : top + rows, left * together * dtype.itemsize :][:, :row_bytes]
            else:
                raw = _unpacked(data, at, size, compression, rows * row_bytes).reshape(rows, row_bytes)
            values = _values(raw, together, dtype, predictor, big_endian=page.big_endian)
            target = made[top : top + rows, left : left + columns]
            target[..., layer : layer + together] = values[:, :columns]
    return made


def _dtype(page: tiff.Directory) -> "np.dtype[Any]":
    size = page.numbers(tiff.BITS)[0] // 8
    kind = page.number(tiff.SAMPLE_FORMAT) or _UNSIGNED
    known = {_UNSIGNED: "u", _UNKNOWN: "u", _SIGNED: "i", _FLOAT: "f"}.get(kind, "")
    if f"{known}{size}" not in ("u1", "u2", "f2", "f4", "f8"):
        words = {"u": "unsigned integers", "i": "signed integers", "f": "floating point"}.get(known, f"of kind {kind}")
        raise BadInput(
            f"samples are {8 * size} bit {words}; accepted are 8 and 16 bit unsigned integers and floating point"
        )
    return np.dtype(f"{known}{size}")


def _unpacked(data: bytes | bytearray, at: int, size: int, compression: int, wanted: int) -> Samples:
    """The bytes of one strip or tile, as many as there have to be."""
    piece = memoryview(data)[at : at + size]
    if compression in _DEFLATED:
        try:
            piece = memoryview(zlib.decompressobj().decompress(piece, wanted))
        except zlib.error as err:
            raise BadInput(f"the TIFF is damaged: a strip of it does not inflate ({err})") from None
    if len(piece) < wanted:
        raise BadInput(f"the TIFF is cut short: a strip of it has {len(piece)} bytes of {wanted}")
    return np.frombuffer(piece[:wanted], np.uint8)


def _unpacked_by_decoder(
    data: bytes | bytearray, page: tiff.Directory, offsets: list[int], counts: list[int], row_bytes: int, word: int
) -> Samples:
    """The bytes of all rows, [H, bytes]: the decoder is told that they are a grey picture of such words."""
    if any(at + size > len(data) for at, size in zip(offsets, counts, strict=True)):
        raise BadInput("the TIFF is cut short: a strip of it is beyond its end")
    height = page.number(tiff.HEIGHT) or 0
    is_tiled = tiff.TILE_OFFSETS in page.tags
    across = -(-(page.number(tiff.WIDTH) or 0) // (page.number(tiff.TILE_WIDTH) or 1)) if is_tiled else 1
    tags = {
        tiff.WIDTH: [across * row_bytes // word],
        tiff.HEIGHT: [height],
        tiff.BITS: [8 * word],
        tiff.COMPRESSION: [page.number(tiff.COMPRESSION) or _PLAIN],
        tiff.PHOTOMETRIC: [1],
        tiff.SAMPLES: [1],
        tiff.PLANAR: [1],
    }
    if is_tiled:
        tags |= {tiff.TILE_WIDTH: [row_bytes // word], tiff.TILE_HEIGHT: [page.number(tiff.TILE_HEIGHT) or 0]}
        tags |= {tiff.TILE_OFFSETS: offsets, tiff.TILE_COUNTS: counts}
    else:
        tags |= {tiff.ROWS: [page.number(tiff.ROWS) or height], tiff.OFFSETS: offsets, tiff.COUNTS: counts}
    longs = {tag: tiff.Tag(4, len(many), struct.pack(f"<{len(many)}I", *many), 0) for tag, many in tags.items()}
    file = tiff.directed(data, longs)
    try:
        decoded = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        decoded = None
    expected = (height, across * row_bytes // word)
    if decoded is None or decoded.dtype.itemsize != word or decoded.shape[:2] != expected:
        raise BadInput("the image/tiff data is damaged, cut short, or of a kind that cannot be decoded here")
    return np.ascontiguousarray(decoded.reshape(height, -1)).view(np.uint8)


def _values(raw: Samples, together: int, dtype: "np.dtype[Any]", predictor: int, *, big_endian: bool) -> Samples:
    """[rows, bytes] to [rows, columns, samples]."""
    rows, size = len(raw), dtype.itemsize
    if predictor == _FLOAT_DIFFERENCES and dtype.kind == "f":
        # All first bytes of a row's values, then all second ones; told as differences (Adobe, TIFF technical note 3).
        summed = np.add.accumulate(raw.reshape(rows, -1, together), axis=1, dtype=np.uint8)
        ordered = np.ascontiguousarray(summed.reshape(rows, size, -1).transpose(0, 2, 1))
        return ordered.view(dtype.newbyteorder(">")).reshape(rows, -1, together)
    values = np.ascontiguousarray(raw).view(dtype.newbyteorder(">" if big_endian else "<")).reshape(rows, -1, together)
    if predictor == _DIFFERENCES:
        whole = values.view(values.dtype.str.replace("f", "u")).astype(f"u{size}")
        return np.add.accumulate(whole, axis=1, dtype=whole.dtype).view(dtype)
    return values
