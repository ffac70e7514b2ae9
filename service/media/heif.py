"""What does the header of an AVIF or HEIC tell: size, depth, how it is turned, whether it moves?

Both are ISO base media files of which one item is the picture (ISO/IEC 23008-12, HEIF). Standard library only; every
read is bounded.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from service.errors import BadInput

_MOST_META_BYTES = 16 * 1024**2  # of the box that describes the items; profile and tables of a large grid's tiles
_MOST_BOXES = 65536
_SRGB = (
    (1, 13),
    (1, 1),
    (1, 6),
    (1, 2),
    (2, 2),
    (2, 13),
)  # primaries and transfer that readers take for sRGB, or untold


@dataclass(frozen=True, slots=True)
class HeifHead:
    width: int  # as stored: before it is turned
    height: int
    bits: int
    orientation: int  # as EXIF numbers them
    is_plain: bool  # its colours are those that readers assume of a picture that tells nothing

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as it is seen."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_head(file: BinaryIO) -> HeifHead:
    """
    Raises:
        BadInput: it is damaged or cut short, or a sequence.
    """
    size = file.seek(0, 2)
    file.seek(0)
    is_sequence = False
    for kind, at, length in _boxes_of_file(file, size):
        if kind == b"ftyp":
            file.seek(at)
            brands = file.read(min(length, 1024))
            is_sequence = brands[:4] in (b"avis", b"msf1", b"hevc", b"hevx")
        elif kind == b"meta":
            if is_sequence:
                break
            if length > _MOST_META_BYTES:
                raise BadInput(f"the header has {length} bytes; at most {_MOST_META_BYTES} are accepted")
            file.seek(at)
            return _of_meta(file.read(length))
    if is_sequence:
        raise BadInput("it is an image sequence; only single images are accepted")
    raise BadInput("the header does not tell what is in the file")


def _of_meta(meta: bytes) -> HeifHead:
    boxes = {kind: meta[at : at + length] for kind, at, length in _boxes(meta, 4)}
    if not {b"pitm", b"iprp"} <= set(boxes):
        raise BadInput("the header does not tell which item is the picture")
    version, primary = boxes[b"pitm"][0], boxes[b"pitm"][4:]
    item = int.from_bytes(primary[: 2 if version == 0 else 4], "big")
    inner = list(_boxes(boxes[b"iprp"], 0))
    parts = {kind: boxes[b"iprp"][at : at + length] for kind, at, length in inner}
    if not {b"ipco", b"ipma"} <= set(parts):
        raise BadInput("the header does not tell the properties of the picture")
    properties = [(kind, parts[b"ipco"][at : at + length]) for kind, at, length in _boxes(parts[b"ipco"], 0)]
    wanted = [properties[index - 1] for index in _associated(parts[b"ipma"], item) if 0 < index <= len(properties)]
    width = height = 0
    bits, quarter_turns, mirror, is_plain = 8, 0, None, True
    for kind, body in wanted:
        if kind == b"ispe":
            width, height = struct.unpack(">4xII", body[:12])
        elif kind == b"pixi" and len(body) > 5:
            bits = max(body[5 : 5 + body[4]])
        elif kind == b"colr" and body[:4] == b"nclx" and len(body) >= 8:
            is_plain = struct.unpack(">HH", body[4:8]) in _SRGB
        elif kind == b"irot" and body:
            quarter_turns = body[0] & 3
        elif kind == b"imir" and body:
            mirror = body[0] & 1
    if not width or not height:
        raise BadInput("the header does not tell the size of the image")
    return HeifHead(width, height, bits, _orientation(quarter_turns, mirror), is_plain)


def _orientation(quarter_turns: int, mirror: int | None) -> int:
    """EXIF's number for a turn counter-clockwise, and a mirroring after it: 0 top to bottom, 1 left to right."""
    if mirror is None:
        return (1, 8, 3, 6)[quarter_turns]
    return ((4, 5, 2, 7), (2, 7, 4, 5))[mirror][quarter_turns]


def _associated(ipma: bytes, item: int) -> list[int]:
    """The numbers of an item's properties."""
    version, flags, count = ipma[0], ipma[3], int.from_bytes(ipma[4:8], "big")
    at = 8
    for _ in range(min(count, _MOST_BOXES)):
        width = 2 if version == 0 else 4
        number = int.from_bytes(ipma[at : at + width], "big")
        many = ipma[at + width]
        at += width + 1
        size = 2 if flags & 1 else 1
        found = [int.from_bytes(ipma[at + n * size : at + (n + 1) * size], "big") for n in range(many)]
        at += many * size
        if number == item:
            return [one & (0x7FFF if size == 2 else 0x7F) for one in found]
    return []


def _boxes(data: bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, offset and length of the contents of each box."""
    for _ in range(_MOST_BOXES):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        elif size == 0:
            size = len(data) - at
        if size < head or at + size > len(data):
            raise BadInput("the header is damaged: a box of it is longer than what it is in")
        yield kind, at + head, size - head
        at += size


def _boxes_of_file(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    at = 0
    for _ in range(64):
        if at + 8 > size:
            return
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if length == 1 and at + 16 <= size:
            (length,) = struct.unpack(">Q", file.read(8))
            head = 16
        elif length == 0:
            length = size - at
        if length < head or at + length > size:
            raise BadInput("the file is cut short, or a box of it is longer than the file")
        yield kind, at + head, length - head
        at += length
