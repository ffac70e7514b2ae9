"""Between a request's tensors and the files that workers take: pixels are wrapped up without loss where they can be."""

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import BadInput
from service.oip import tiff
from service.oip.messages import IMAGE, RESTORED, SIGMA, Tensor

_MOST_PICTURES = 16  # of one request: each is a job
_MOST_DIMENSIONS = 4
_TYPES = {"UINT8": "<u1", "FP16": "<f2", "FP32": "<f4"}
_NUMBERS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_WHITE = 65535


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor holds pictures, and so how the answer shall."""

    datatype: str
    shape: tuple[int, ...]
    channels_first: bool = False

    @property
    def is_encoded(self) -> bool:
        return self.datatype == "BYTES"


def files_of(tensor: Tensor) -> tuple[list[bytes], Layout]:
    """A file for each picture in it: as they came, or a TIFF of 8 bits for UINT8, of 16 bits for floats.

    Raises:
        BadInput: datatype, shape or values are not such that it holds pictures.
    """
    if tensor.datatype == "BYTES":
        texts = _texts_of(tensor)
        _check_count(len(texts))
        return texts, Layout("BYTES", tensor.shape)
    if tensor.datatype not in _TYPES:
        raise BadInput(f"{tensor.name} is {tensor.datatype[:20]}; taken are {', '.join(_TYPES)}, and BYTES for files")
    layout = _layout_of(tensor)
    values = _values_of(tensor, _TYPES[tensor.datatype])
    if values.dtype.kind == "f":
        values = _in_16_bits(tensor.name, values)
    pictures = _pictures(values, layout)
    _check_count(len(pictures))
    return [tiff.wrapped(picture) for picture in pictures], layout


def tensor_of(files: Sequence[bytes], layout: Layout) -> Tensor:
    """The results as the input was: datatype, layout and shape."""
    if layout.is_encoded:
        raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
        return Tensor(name=RESTORED, datatype="BYTES", shape=layout.shape, raw=raw)
    pictures = np.stack([tiff.unwrapped(file) for file in files])  # [N, H, W, C]
    if layout.channels_first:
        pictures = pictures.transpose(0, 3, 1, 2)
    if layout.datatype != "UINT8":
        pictures = pictures.astype(np.float32) / np.float32(_WHITE)
    raw = np.ascontiguousarray(pictures, _TYPES[layout.datatype]).tobytes()
    return Tensor(name=RESTORED, datatype=layout.datatype, shape=layout.shape, raw=raw)


def levels_of(tensor: Tensor, pictures: int) -> list[float]:
    """Noise levels, one for each picture, or one for all.

    Raises:
        BadInput
    """
    if tensor.datatype not in _NUMBERS:
        raise BadInput(f"{SIGMA} is {tensor.datatype[:20]}; taken are {', '.join(_NUMBERS)}")
    levels = [float(level) for level in _values_of(tensor, _NUMBERS[tensor.datatype])]
    if len(levels) not in (1, pictures):
        raise BadInput(f"{SIGMA} has {len(levels)} values for {pictures} pictures; give one, or one for each")
    return levels * pictures if len(levels) == 1 else levels


def values_as_json(tensor: Tensor) -> list[Any]:
    """What stands in `data`: numbers row by row, files in base64. FP16 has no such form."""
    if tensor.datatype == "BYTES":
        return [base64.b64encode(text).decode() for text in _texts_of(tensor)]
    values: list[Any] = np.frombuffer(tensor.raw or b"", _TYPES[tensor.datatype]).tolist()
    return values


def _check_count(pictures: int) -> None:
    if not 1 <= pictures <= _MOST_PICTURES:
        raise BadInput(f"{IMAGE} holds {pictures} pictures; taken are 1 to {_MOST_PICTURES}")


def _layout_of(tensor: Tensor) -> Layout:
    """[H, W], or with 1 or 3 channels behind or in front, and with or without a batch before all."""
    shape = tensor.shape
    if 2 <= len(shape) <= _MOST_DIMENSIONS and min(shape) > 0:
        if len(shape) == 2 or shape[-1] in (1, 3):
            return Layout(tensor.datatype, shape)
        if shape[-3] in (1, 3):
            return Layout(tensor.datatype, shape, channels_first=True)
    raise BadInput(
        f"{tensor.name} has shape {list(shape)[:8]}; taken are [N, H, W, C] and [N, C, H, W] with 1 or 3 channels; N "
        "may be left out, and C too where there is no N"
    )


def _pictures(values: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """[N, H, W, C]"""
    shape = layout.shape if len(layout.shape) > 2 else (*layout.shape, 1)
    shape = shape if len(shape) > 3 else (1, *shape)
    pictures = values.reshape(shape)
    return pictures.transpose(0, 2, 3, 1) if layout.channels_first else pictures


def _in_16_bits(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(values).all():
        raise BadInput(f"{name} holds values that are no finite numbers")
    scaled: NDArray[Any] = np.rint(np.clip(values.astype(np.float32), 0, 1) * np.float32(_WHITE))
    return scaled.astype(np.uint16)


def _values_of(tensor: Tensor, kind: str) -> NDArray[Any]:
    """Flat, as many as the shape says."""
    wanted = math.prod(tensor.shape)
    if tensor.raw is not None:
        size = wanted * np.dtype(kind).itemsize
        if len(tensor.raw) != size:
            raise BadInput(f"{tensor.name} has {len(tensor.raw)} bytes; its shape and datatype take {size}")
        return np.frombuffer(tensor.raw, kind)
    if kind == "<f2":
        raise BadInput(f"{tensor.name} is FP16, which goes as binary data only")
    try:
        told = np.asarray(tensor.values, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{tensor.name} holds data that are not numbers, in rows of one length") from None
    if len(told) != wanted:
        raise BadInput(f"{tensor.name} has {len(told)} values; its shape takes {wanted}")
    if kind == "<u1" and not ((told >= 0) & (told <= 255) & (told == np.rint(told))).all():
        raise BadInput(f"{tensor.name} is UINT8, and holds values that are not whole numbers from 0 to 255")
    return np.asarray(told, kind)


def _texts_of(tensor: Tensor) -> list[bytes]:
    """The elements of a BYTES tensor: each has its length before it where it is raw."""
    wanted = math.prod(tensor.shape)
    texts: list[bytes] = []
    if tensor.raw is None:
        texts = [_text_of(tensor.name, value) for value in tensor.values or ()]
    else:
        at = 0
        while at + 4 <= len(tensor.raw):
            (length,) = struct.unpack_from("<I", tensor.raw, at)
            texts.append(tensor.raw[at + 4 : at + 4 + length])
            at += 4 + length
        if at != len(tensor.raw):
            raise BadInput(f"{tensor.name} has {len(tensor.raw)} bytes; the lengths before its elements say otherwise")
    if len(texts) != wanted:
        raise BadInput(f"{tensor.name} has {len(texts)} elements; its shape takes {wanted}")
    return texts


def _text_of(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise BadInput(f"{name} is BYTES: as JSON its elements are files in base64, in a flat list") from None
