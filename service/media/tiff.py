"""What stands in the first directory of a TIFF, and how are tags added to one?

EXIF is a TIFF too, so its orientation is read here. Standard library only; every read is bounded.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from service.errors import BadInput

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
DESCRIPTION, OFFSETS, ORIENTATION, SAMPLES, ROWS, COUNTS, PLANAR = 270, 273, 274, 277, 278, 279, 284
SUB_PAGES, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 330, 317, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, XMP, EXIF, ICC, DNG_VERSION = 338, 339, 700, 34665, 34675, 50706
# What a program or a person wrote about the picture, and its scale: it still holds when the noise is gone.
# Description, make, model, resolution (3), software, date, artist, copyright.
ABOUT = (DESCRIPTION, 271, 272, 282, 283, 296, 305, 306, 315, 33432)

_ELEMENT = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 1, 7: 1, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}  # bytes
_ELEMENTS = {5: 2, 10: 2}  # per value: a rational is two numbers
MAX_PAGES = 1000
_MAX_ENTRIES = 4096
_MAX_TAG_BYTES = 16 * 1024**2  # together, for values may overlap: a small file can claim many of them
_SWAPPED_AS = {2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True)
class Tag:
    type: int
    count: int
    raw: bytes  # little-endian
    offset: int  # of the value in the file

    @property
    def number(self) -> int | None:
        """The first value, where it is a whole number."""
        if self.type not in (1, 3, 4, 16) or not self.raw:
            return None
        return int.from_bytes(self.raw[: _ELEMENT[self.type]], "little")


@dataclass(frozen=True, slots=True)
class Directory:
    tags: dict[int, Tag]
    next_offset: int  # of the next page's; 0 after the last one
    big_endian: bool

    def number(self, tag: int) -> int | None:
        return self.tags[tag].number if tag in self.tags else None

    def numbers(self, tag: int) -> list[int]:
        """All values of a tag, where they are whole numbers; none where it is not there."""
        told = self.tags.get(tag)
        kind = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(told.type) if told else None
        if told is None or kind is None:
            return []
        return list(struct.unpack(f"<{len(told.raw) // _ELEMENT[told.type]}{kind}", told.raw))


@dataclass(frozen=True, slots=True)
class Page:
    offset: int
    width: int | None
    height: int | None
    kind: int  # its subfile type: 1 a smaller copy of another page, 4 a mask

    @property
    def is_picture(self) -> bool:
        return not self.kind & 5


def first_directory(
    file: BinaryIO, wanted: set[int] | None = None, *, numbers_only: bool = False, at: int | None = None
) -> Directory:
    """Read the first directory; tags not wanted are skipped, as are those of unknown type or beyond 16 MiB together.

    Args:
        numbers_only: of each tag only its first value is read: a few bytes, whatever the tag claims.
        at: read the directory at this offset instead.

    Raises:
        BadInput: The header is cut short or points outside the file.
    """
    size = file.seek(0, 2)
    order, big = _kind_of(_read(file, 0, 8, size))
    word = 8 if big else 4
    at = _first_offset(file) if at is None else at
    if big:
        (entries,) = struct.unpack(order + "Q", _read(file, at, 8, size))
        offset, width, head = at + 8, 20, "HHQ"
    else:
        (entries,) = struct.unpack(order + "H", _read(file, at, 2, size))
        offset, width, head = at + 2, 12, "HHI"
    if entries > _MAX_ENTRIES:
        raise BadInput(f"the TIFF directory has {entries} entries; at most {_MAX_ENTRIES} are accepted")
    table = _read(file, offset, entries * width, size)
    tags: dict[int, Tag] = {}
    room = _MAX_TAG_BYTES
    for place in range(0, len(table), width):
        tag, kind, count = struct.unpack_from(order + head, table, place)
        length = count * _ELEMENT.get(kind, 0) * _ELEMENTS.get(kind, 1)
        if tag in tags or not 0 < length <= room or (wanted is not None and tag not in wanted):
            continue
        where = offset + place + width - word
        if length > word:
            (where,) = struct.unpack_from(order + ("Q" if big else "I"), table, place + width - word)
            if not numbers_only:
                room -= length
        raw = _read(file, where, _ELEMENT[kind] if numbers_only else length, size)
        tags[tag] = Tag(kind, count, _little(raw, _ELEMENT[kind]) if order == ">" else raw, where)
    after = offset + len(table)
    following = _read(file, after, word, size) if after + word <= size else b""
    return Directory(tags, int.from_bytes(following, "big" if order == ">" else "little"), order == ">")


def pages_of(file: BinaryIO) -> list[Page]:
    """All pages, by their directories, of which a few bytes each are read.

    Raises:
        BadInput: As for the first directory; or there are more than 1000, or they go round in a ring.
    """
    wanted = {SUBFILE_TYPE, WIDTH, HEIGHT}
    pages: list[Page] = []
    seen: set[int] = set()
    at = _first_offset(file)
    while at:
        if at in seen:
            raise BadInput(f"the TIFF is damaged: the page after page {len(pages)} is an earlier one")
        if len(pages) == MAX_PAGES:
            raise BadInput(f"the TIFF has more than {MAX_PAGES} pages; at most that many are accepted")
        seen.add(at)
        page = first_directory(file, wanted, numbers_only=True, at=at)
        pages.append(Page(at, page.number(WIDTH), page.number(HEIGHT), page.number(SUBFILE_TYPE) or 0))
        at = page.next_offset
    return pages


def begin_at(data: bytearray, offset: int) -> None:
    """Make this directory the first one."""
    order, big = _kind_of(data[:8])
    if big:
        data[8:16] = struct.pack(order + "Q", offset)
    else:
        data[4:8] = struct.pack(order + "I", offset)


def joined(files: Sequence[bytes]) -> bytes:
    """One TIFF of the pages of several small-endian classic ones of a page each, in strips.

    Raises:
        BadInput: It would be larger than a TIFF can be.
    """
    made = bytearray()
    link = 4
    for file in files:
        made += b"\0" * (len(made) % 2)
        base = len(made)
        made += file
        if len(made) > 0xFFFFFFFF:
            raise BadInput(f"the result has more than {0xFFFFFFFF} bytes; a TIFF holds no more")
        (at,) = struct.unpack_from("<I", file, 4)
        (entries,) = struct.unpack_from("<H", file, at)
        for place in range(base + at + 2, base + at + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from("<HHI", made, place)
            where, length = place + 8, count * _ELEMENT[kind] * _ELEMENTS.get(kind, 1)
            if length > 4:
                where = base + struct.unpack_from("<I", made, where)[0]
                struct.pack_into("<I", made, place + 8, where)
            if tag == OFFSETS:
                strips = struct.unpack_from(f"<{count}I", made, where)
                struct.pack_into(f"<{count}I", made, where, *(strip + base for strip in strips))
        struct.pack_into("<I", made, link, base + at)
        link = base + at + 2 + 12 * entries
        struct.pack_into("<I", made, link, 0)
    return bytes(made)


def _first_offset(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    start = _read(file, 0, 8, size)
    order, big = _kind_of(start)
    found = struct.unpack(order + "Q", _read(file, 8, 8, size)) if big else struct.unpack(order + "I", start[4:8])
    return int(found[0])


def _kind_of(start: "bytes | bytearray") -> tuple[str, bool]:
    """Order of bytes, and whether it is a BigTIFF."""
    if start[:2] not in (b"II", b"MM") or start[2:4] not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        raise BadInput("the TIFF header is damaged")
    return ">" if start[:2] == b"MM" else "<", b"+" in start[2:4]


def orientation_of(exif: bytes | None) -> int:
    """The orientation an EXIF block tells, 1 (upright) to 8; 1 also where it tells none or nonsense."""
    if not exif:
        return 1
    try:
        told = first_directory(BytesIO(exif), {ORIENTATION}, numbers_only=True).number(ORIENTATION)
    except BadInput:
        return 1
    return told if told is not None and 1 <= told <= 8 else 1


def with_orientation(exif: bytes | None, orientation: int) -> bytes:
    """An EXIF block that tells this orientation; one that told none, or nonsense, is not kept beside it."""
    if exif:
        try:
            page = first_directory(BytesIO(exif), {ORIENTATION}, numbers_only=True)
        except BadInput:
            page = None
        if page and (found := page.tags.get(ORIENTATION)) and found.type == 3:
            value = struct.pack(">H" if page.big_endian else "<H", orientation)
            return exif[: found.offset] + value + exif[found.offset + 2 :]
    return directed(bytes(8), {ORIENTATION: Tag(3, 1, struct.pack("<H", orientation), 0)})


def with_tags(data: bytes, extra: dict[int, Tag]) -> bytes:
    """A copy of a small-endian classic TIFF of one page, with tags added to its directory or replaced there.

    The old directory stays behind as dead bytes: nothing in the file has to move.
    """
    return directed(data, {**first_directory(BytesIO(data)).tags, **extra})


def directed(data: "bytes | bytearray", tags: dict[int, Tag]) -> bytes:
    """A copy of a TIFF of any make, as a small-endian classic one whose only directory has these tags."""
    at = len(data) + len(data) % 2  # a directory begins on a word
    values_at = at + 2 + 12 * len(tags) + 4
    table, values = bytearray(), bytearray()
    for tag in sorted(tags):
        raw = tags[tag].raw
        table += struct.pack("<HHI", tag, tags[tag].type, tags[tag].count)
        if len(raw) <= 4:
            table += raw.ljust(4, b"\0")
        else:
            table += struct.pack("<I", values_at + len(values))
            values += raw + b"\0" * (len(raw) % 2)
    if values_at + len(values) > 0xFFFFFFFF:
        raise BadInput(f"the result has {values_at} bytes; a TIFF holds at most 4294967295")
    directory = struct.pack("<H", len(tags)) + bytes(table) + bytes(4) + bytes(values)
    return b"".join([b"II*\0", struct.pack("<I", at), memoryview(data)[8:], b"\0" * (at - len(data)), directory])


def _read(file: BinaryIO, offset: int, length: int, size: int) -> bytes:
    if offset + length > size:
        raise BadInput(f"the TIFF header is cut short: it needs byte {offset + length} of a file of {size}")
    file.seek(offset)
    return file.read(length)


def _little(raw: bytes, element: int) -> bytes:
    if element == 1:
        return raw
    values = array(_SWAPPED_AS[element], raw)
    values.byteswap()
    return values.tobytes()
