"""Which of the blocks beside the pixels may go into another file?

They come from a stranger, and encoders look into some of them. A block whose outline is not what it should be is left
out; it says nothing that a reader could use.
"""

import struct
from io import BytesIO

from service.errors import BadInput
from service.media import tiff

MOST_BYTES = 8 * 1024**2  # of a block; libpng holds no larger one, and a profile of a printer has 3
_MOST_ICC_TAGS = 256
_ICC_HEAD = 128

Segments = tuple[tuple[int, bytes], ...]  # marker, and all of the segment

_JFIF = b"JFIF\0"
# Of JPEG's: comments, and what picture desks write (IPTC). They go from JPEG to JPEG; the words name what others lose.
JPEG_KEPT = {0xFE: "text", 0xED: "IPTC"}
_LOST_SEGMENTS = (
    (0xE2, b"MPF\0", "further pictures"),
    (0xE1, b"http://ns.adobe.com/xmp/extension/\0", "extended XMP"),
)
_MOST_SEGMENT_BYTES = 1024**2  # kept, together
_MOST_SEGMENTS = 4096
_INCH_CM = 2.54


def is_sound_exif(block: bytes) -> bool:
    """Whether a block is a TIFF, as far as its first directory goes."""
    if len(block) > MOST_BYTES:
        return False
    try:
        tiff.first_directory(BytesIO(block), {tiff.ORIENTATION}, numbers_only=True)
    except (BadInput, struct.error):
        return False
    return True


def is_sound_xmp(block: bytes) -> bool:
    """Whether a block is text."""
    try:
        return len(block) <= MOST_BYTES and "\0" not in block.decode()
    except UnicodeDecodeError:
        return False


def is_sound_profile(block: bytes) -> bool:
    """Whether a profile has the size it says, the mark that each has, and all of its tags inside (ICC.1:2022, 7)."""
    if not _ICC_HEAD + 4 <= len(block) <= MOST_BYTES:
        return False
    size, mark, count = struct.unpack(">I32x4s88xI", block[: _ICC_HEAD + 4])
    table = block[_ICC_HEAD + 4 : _ICC_HEAD + 4 + 12 * count] if count <= _MOST_ICC_TAGS else b""
    if size != len(block) or mark != b"acsp" or len(table) != 12 * count:
        return False
    return all(at + length <= size for _, at, length in struct.iter_unpack(">4sII", table))


def jpeg_segments(data: bytes | bytearray) -> tuple[Segments, tuple[float, float] | None, list[str]]:
    """What a JPEG has beside pixels, EXIF, XMP and profile.

    Returns:
        What goes into another JPEG, dots per inch, and what goes into none, in words.
    """
    kept: list[tuple[int, bytes]] = []
    lost: dict[str, None] = {}
    dpi: tuple[float, float] | None = None
    room, at = _MOST_SEGMENT_BYTES, 2
    for _ in range(_MOST_SEGMENTS):
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] in (0xD9, 0xDA):
            break
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = bytes(data[at + 4 : at + 2 + size])
        if marker == 0xE0 and body.startswith(_JFIF) and len(body) >= 12:
            dpi = _dots_per_inch(*struct.unpack(">BHH", body[7:12]))
        elif marker in JPEG_KEPT and size >= 2 and len(body) == size - 2:
            room -= size
            if room >= 0:
                kept.append((marker, bytes(data[at : at + 2 + size])))
            else:
                lost[JPEG_KEPT[marker]] = None
        for other, begin, words in _LOST_SEGMENTS:
            if marker == other and body.startswith(begin):
                lost[words] = None
        at += 2 + max(size, 2)
    return tuple(kept), dpi, list(lost)


def with_segments(data: bytes, segments: Segments, dpi: tuple[float, float] | None) -> bytes:
    """Put segments and dots per inch into a JPEG that begins with a JFIF header, as encoders write it."""
    size = int.from_bytes(data[4:6], "big")
    if data[2:4] != b"\xff\xe0" or data[6:11] != _JFIF or size < 16:
        return data
    head = bytearray(data[: 4 + size - 2 + 2])
    if dpi and max(dpi) < 65535.5:
        head[13:18] = struct.pack(">BHH", 1, *(max(1, round(one)) for one in dpi))
    return bytes(head) + b"".join(raw for _, raw in segments) + data[len(head) :]


def _dots_per_inch(unit: int, across: int, down: int) -> tuple[float, float] | None:
    if unit not in (1, 2) or not across or not down:
        return None
    scale = 1.0 if unit == 1 else _INCH_CM
    return across * scale, down * scale
