"""What does the header of an AVIF or HEIC tell: size, depth, how it is turned, whether it moves, which items it has?

Both are ISO base media files of which one item is the picture (ISO/IEC 23008-12, HEIF). Standard library only; every
read is bounded.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import BinaryIO

from service.errors import BadInput

_MOST_META_BYTES = 16 * 1024**2  # of the box that describes the items; profile and tables of a large grid's tiles
_MOST_BOXES = 65536
_SRGB = ((1, 13), (1, 1), (1, 6), (1, 2), (2, 2), (2, 13))  # what readers take for sRGB, or is untold

Colours = tuple[int, int]  # primaries and transfer curve, as H.273 numbers them


@dataclass(frozen=True, slots=True)
class HeifHead:
    width: int  # as stored: before it is turned
    height: int
    bits: int
    orientation: int  # as EXIF numbers them
    colours: Colours | None  # where they are not those that readers assume of a picture that tells nothing
    crop: tuple[int, int, int, int]  # left, top, width and height of what of it is shown; all, of an AVIF

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


def told_colours(primaries: int, transfer: int) -> Colours | None:
    """None of those that readers assume of a picture that tells nothing, and of numbers that H.273 cannot have."""
    return None if (primaries, transfer) in _SRGB or max(primaries, transfer) > 255 else (primaries, transfer)


def with_colours(avif: bytes, colours: Colours) -> bytes | None:
    """An AVIF that says otherwise what its numbers mean. The frame in it goes on saying what its encoder thought, but
    readers go by the container. None where the container is silent.
    """
    at, length = 0, len(avif)
    for kind in (b"meta", b"iprp", b"ipco", b"colr"):
        within = avif[at : at + length]
        for found, start, size in _boxes(within, 4 if kind == b"iprp" else 0):  # behind version and flags
            if found == kind and (kind != b"colr" or within[start : start + 4] == b"nclx"):
                at, length = at + start, size
                break
        else:
            return None
    return avif[: at + 4] + struct.pack(">HH", *colours) + avif[at + 8 :]


@dataclass(slots=True)
class Item:
    """One thing in the file: a picture, a tile of one, or what is said about one."""

    kind: bytes
    content_type: bytes = b""  # of what is told by its media type
    is_hidden: bool = False
    properties: tuple[tuple[bytes, bytes], ...] = ()  # kind and contents, in their order
    essential: frozenset[bytes] = frozenset()  # kinds that one must heed to show it
    in_header: bool = False  # where its bytes are counted from
    extents: tuple[tuple[int, int], ...] = ()  # offset and length; a length of 0 reaches to the end

    def told(self, wanted: bytes) -> bytes:
        return next((body for kind, body in self.properties if kind == wanted), b"")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        told = self.told(b"ispe")
        if len(told) < 12:
            raise BadInput("the header does not tell the size of a picture")
        width, height = struct.unpack(">4xII", told[:12])
        if not width or not height:
            raise BadInput(f"a picture is {width}x{height}; it needs at least one pixel")
        return width, height


@dataclass(frozen=True, slots=True)
class Contents:
    """All items of a file."""

    data: bytes
    header: bytes  # what the header holds of the items' own bytes
    primary: int
    items: dict[int, Item]
    references: tuple[tuple[bytes, int, tuple[int, ...]], ...]  # kind, from which item, to which

    def bytes_of(self, number: int) -> bytes:
        item = self.items[number]
        source = self.header if item.in_header else self.data
        parts: list[bytes] = []
        room = len(source)  # an item that says the same bytes again and again would have no end
        for at, told in item.extents:
            length = told or len(source) - at
            room -= length
            if length < 0 or at + length > len(source) or room < 0:
                raise BadInput("the file is cut short, or an item of it is longer than the file")
            parts.append(source[at : at + length])
        if not parts:
            raise BadInput("an item of the picture has no bytes")
        return b"".join(parts)


def read_contents(data: bytes) -> Contents:
    """
    Raises:
        BadInput: it is damaged or cut short.
    """
    file = BytesIO(data)
    meta = next(
        (data[at : at + length] for kind, at, length in _boxes_of_file(file, len(data)) if kind == b"meta"), b""
    )
    try:
        contents = _contents(data, meta)
    except (struct.error, IndexError):
        raise BadInput("the header is damaged: a table of it is cut short") from None
    used = {contents.primary, *(one for _, at, others in contents.references for one in (at, *others))}
    if not used <= set(contents.items):
        raise BadInput("the header speaks of an item that it does not have")
    return contents


def _contents(data: bytes, meta: bytes) -> Contents:
    boxes = {kind: meta[at : at + length] for kind, at, length in _boxes(meta, 4)}
    if not {b"pitm", b"iprp", b"iinf", b"iloc"} <= set(boxes):
        raise BadInput("the header does not tell which items there are")
    items = dict(_named(boxes[b"iinf"]))
    parts = {kind: boxes[b"iprp"][at : at + length] for kind, at, length in _boxes(boxes[b"iprp"], 0)}
    if not {b"ipco", b"ipma"} <= set(parts):
        raise BadInput("the header does not tell the properties of the picture")
    properties = [(kind, parts[b"ipco"][at : at + length]) for kind, at, length in _boxes(parts[b"ipco"], 0)]
    for number, found, essential in _associations(parts[b"ipma"]):
        if number in items:
            told = [(one & (essential - 1), bool(one & essential)) for one in found]
            known = [(properties[index - 1], must) for index, must in told if 0 < index <= len(properties)]
            items[number].properties = tuple(one for one, _ in known)
            items[number].essential = frozenset(kind for (kind, _), must in known if must)
    for number, in_header, extents in _located(boxes[b"iloc"]):
        if number in items:
            items[number].in_header, items[number].extents = in_header, extents
    references = tuple(_references(boxes[b"iref"])) if b"iref" in boxes else ()
    return Contents(data, boxes.get(b"idat", b""), _primary(boxes[b"pitm"]), items, references)


def _named(iinf: bytes) -> Iterator[tuple[int, Item]]:
    for kind, at, length in _boxes(iinf, 6 if iinf[0] == 0 else 8):
        body = iinf[at : at + length]
        if kind != b"infe" or body[0] < 2:
            continue  # older entries are of no picture
        after = 6 if body[0] == 2 else 8
        number = int.from_bytes(body[4:after], "big")
        (guarded,) = struct.unpack_from(">H", body, after)
        named = body[after + 2 : after + 6]
        texts = body[after + 6 :].split(b"\0")  # its name, and of a `mime` the media type
        if guarded:
            raise BadInput("the picture is encrypted")
        yield number, Item(named, texts[1] if named == b"mime" and len(texts) > 1 else b"", bool(body[3] & 1))


def _located(iloc: bytes) -> Iterator[tuple[int, bool, tuple[tuple[int, int], ...]]]:
    """Each item, whether its bytes are in the header, and where."""
    file = BytesIO(iloc)

    def number(size: int) -> int:
        read = file.read(size)
        if len(read) < size:
            raise IndexError
        return int.from_bytes(read, "big")

    version = number(4) >> 24
    sizes = number(2)
    of_offset, of_length, of_base, of_index = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15, sizes & 15
    room = _MOST_BOXES
    for _ in range(number(2 if version < 2 else 4)):
        item = number(2 if version < 2 else 4)
        method = number(2) & 15 if version else 0
        elsewhere, base = number(2), number(of_base)
        extents = []
        count = number(2)
        room -= 1 + count
        if room < 0:
            raise BadInput(f"the items of the file are in more than {_MOST_BOXES} pieces")
        for _ in range(count):
            if version:
                number(of_index)
            at = base + number(of_offset)
            extents.append((at, number(of_length)))
        if not elsewhere and method in (0, 1):  # else its bytes are in another file, or in another item
            yield item, method == 1, tuple(extents)


def _references(iref: bytes) -> Iterator[tuple[bytes, int, tuple[int, ...]]]:
    size = 2 if iref[0] == 0 else 4
    for kind, at, length in _boxes(iref, 4):
        body = iref[at : at + length]
        (count,) = struct.unpack_from(">H", body, size)
        numbers = [int.from_bytes(body[n : n + size], "big") for n in range(size + 2, len(body), size)]
        yield kind, int.from_bytes(body[:size], "big"), tuple(numbers[:count])


def _of_meta(meta: bytes) -> HeifHead:
    boxes = {kind: meta[at : at + length] for kind, at, length in _boxes(meta, 4)}
    if not {b"pitm", b"iprp"} <= set(boxes):
        raise BadInput("the header does not tell which item is the picture")
    item = _primary(boxes[b"pitm"])
    inner = list(_boxes(boxes[b"iprp"], 0))
    parts = {kind: boxes[b"iprp"][at : at + length] for kind, at, length in inner}
    if not {b"ipco", b"ipma"} <= set(parts):
        raise BadInput("the header does not tell the properties of the picture")
    properties = [(kind, parts[b"ipco"][at : at + length]) for kind, at, length in _boxes(parts[b"ipco"], 0)]
    wanted = [properties[index - 1] for index in _associated(parts[b"ipma"], item) if 0 < index <= len(properties)]
    width = height = 0
    bits, quarter_turns, mirror, colours, crop = 8, 0, None, None, b""
    for kind, body in wanted:
        if kind == b"ispe":
            width, height = struct.unpack(">4xII", body[:12])
        elif kind == b"pixi" and len(body) > 5:
            bits = max(body[5 : 5 + body[4]], default=8)
        elif kind == b"colr" and body[:4] == b"nclx" and len(body) >= 8:
            colours = told_colours(*struct.unpack(">HH", body[4:8]))
        elif kind == b"irot" and body:
            quarter_turns = body[0] & 3
            if mirror is not None:  # mirrored first, it turns the other way
                quarter_turns = -quarter_turns & 3
        elif kind == b"imir" and body:
            mirror = body[0] & 1
        elif kind == b"clap":
            if crop or quarter_turns or mirror is not None:
                raise BadInput("the picture is turned or cut before it is cut, which is not read")
            crop = body
    if not width or not height:
        raise BadInput("the header does not tell the size of the image")
    shown = _shown(crop, width, height) if crop else (0, 0, width, height)
    return HeifHead(width, height, bits, _orientation(quarter_turns, mirror), colours, shown)


def _shown(clap: bytes, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a clean aperture (ISO/IEC 14496-12, 12.1.4), whole pixels of it."""
    numbers = struct.unpack(">IIIIiIiI", clap[:32])
    if not all(numbers[1::2]):
        raise BadInput("the header cuts the picture by fractions of nothing")
    across, down, right, lower = (Fraction(*numbers[at : at + 2]) for at in range(0, 8, 2))
    left, top = right + (width - across) / 2, lower + (height - down) / 2
    if across < 1 or down < 1 or left < 0 or top < 0 or left + across > width or top + down > height:
        raise BadInput(f"the header cuts {across}x{down} pixels out of {width}x{height}, beyond them")
    return int(left), int(top), int(across), int(down)


def _orientation(quarter_turns: int, mirror: int | None) -> int:
    """EXIF's number for a turn counter-clockwise, and a mirroring after it: 0 top to bottom, 1 left to right."""
    if mirror is None:
        return (1, 8, 3, 6)[quarter_turns]
    return ((4, 5, 2, 7), (2, 7, 4, 5))[mirror][quarter_turns]


def _primary(pitm: bytes) -> int:
    return int.from_bytes(pitm[4 : 6 if pitm[0] == 0 else 8], "big")


def _associated(ipma: bytes, item: int) -> list[int]:
    """The numbers of an item's properties."""
    found, essential = next(((found, mark) for number, found, mark in _associations(ipma) if number == item), ([], 1))
    return [one & (essential - 1) for one in found]


def _associations(ipma: bytes) -> Iterator[tuple[int, list[int], int]]:
    """Each item, the numbers of its properties, and the bit in them that says: who cannot read it may not show it."""
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
        yield number, found, 0x8000 if size == 2 else 0x80


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
