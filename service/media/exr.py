"""What does the header of an OpenEXR file tell: its windows, its channels, and what else is said of the picture?

Source: "OpenEXR File Layout" (openexr.com), version 2. Standard library only, for the API process sizes up pictures by
it; every read is bounded.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from service.errors import BadInput

MAGIC = b"v/1\x01"
HALF, FLOAT = 1, 2  # kinds of numbers in a channel
MOST_LAYER = 200  # characters of a layer's name, with those it is nested in
_WHOLE = 0
_KINDS = {_WHOLE: "whole numbers", HALF: "half", FLOAT: "float"}
_VERSION = 2
_HAS_DEEP, _HAS_PARTS = 0x800, 0x1000
_MOST_ATTRIBUTES = 1024
_MOST_HEADER_BYTES = 8 * 1024**2
_MOST_CHANNELS = 1024
_MOST_NAME_BYTES = 255
FARTHEST_PX = 1 << 30  # of a window from the origin; beyond, programs fail to compute its size
# What the encoder says by itself, for it depends on how the pixels are stored; all else is taken from the source.
_OF_THE_ENCODER = {
    *(b"channels", b"compression", b"dataWindow", b"lineOrder", b"tiles", b"type", b"version", b"chunkCount", b"name"),
    *(b"preview", b"dwaCompressionLevel", b"maxSamplesPerPixel", b"deepImageState", b"multiView", b"view"),
}
_BT709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)  # of colours that are not told


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something that is said of the picture, not understood here."""

    name: bytes
    kind: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Channel:
    name: str
    kind: int
    is_whole: bool  # has a number for each pixel


@dataclass(frozen=True, slots=True)
class Head:
    window: tuple[int, int, int, int]  # first and last column and row that have pixels: left, top, right, bottom
    channels: tuple[Channel, ...]
    compression: int
    attributes: tuple[Attribute, ...]  # that another encoder's file can have too

    @property
    def width(self) -> int:
        return self.window[2] - self.window[0] + 1

    @property
    def height(self) -> int:
        return self.window[3] - self.window[1] + 1

    @property
    def is_plain(self) -> bool:
        """Its colours are those of a picture that tells nothing."""
        told = next((one.raw for one in self.attributes if one.name == b"chromaticities"), None)
        if told is None or len(told) != 32:
            return told is None
        return all(abs(one - other) < 1e-3 for one, other in zip(struct.unpack("<8f", told), _BT709, strict=True))


@dataclass(frozen=True, slots=True)
class Colours:
    """Which channels are the picture: three of red, green, blue, or one of luminance; and alpha."""

    names: tuple[str, ...]
    alpha: str | None
    kind: int  # of the finest of them
    others: int  # channels that are no part of the picture


def read_head(file: BinaryIO) -> Head:
    """
    Raises:
        BadInput: it is damaged or cut short, or has several parts or deep pixels.
    """
    file.seek(0)
    start = file.read(8)
    if len(start) < 8 or not start.startswith(MAGIC):
        raise BadInput("the OpenEXR header is cut short")
    flags = int.from_bytes(start[4:], "little")
    if flags & 0xFF != _VERSION:
        raise BadInput(f"the OpenEXR file is of version {flags & 0xFF}; {_VERSION} is read")
    if flags & _HAS_DEEP:
        raise BadInput("the OpenEXR file has deep pixels, several values each; flatten it first")
    if flags & _HAS_PARTS:
        raise BadInput("the OpenEXR file has several parts; a file of one is needed")
    found = list(_attributes(file))
    told = {one.name: one.raw for one in found}
    try:
        window = struct.unpack("<4i", told[b"dataWindow"])
        compression = told[b"compression"][0]
        channels = tuple(_channels(told[b"channels"]))
    except (KeyError, IndexError, struct.error):
        raise BadInput("the OpenEXR header is broken: it does not tell window, compression and channels") from None
    if max(map(abs, window)) > FARTHEST_PX:
        raise BadInput(f"the OpenEXR data window is {window}; at most {FARTHEST_PX} pixels from 0 are accepted")
    kept = tuple(one for one in found if one.name not in _OF_THE_ENCODER)
    return Head((window[0], window[1], window[2], window[3]), channels, compression, kept)


def colours_of(head: Head) -> Colours:
    """
    Raises:
        BadInput: it cannot be told which channels are the picture, or they are not of floating point.
    """
    named = {one.name: one for one in head.channels}
    layers = {name.removesuffix("R") for name in named if name.endswith("R") and (name == "R" or name[-2:-1] == ".")}
    layers = {layer for layer in layers if {f"{layer}G", f"{layer}B"} <= named.keys()}
    if "" in layers or len(layers) == 1:
        layer = "" if "" in layers else layers.pop()
        names = tuple(layer + colour for colour in "RGB")
    elif "Y" in named and not layers and not {"RY", "BY"} & named.keys():
        layer, names = "", ("Y",)
    else:
        listed = ", ".join(sorted(named)[:20])
        raise BadInput(f"the OpenEXR file has no channels R, G, B or Y, or several such layers; it has {listed}")
    if len(layer) > MOST_LAYER:
        raise BadInput(f"the OpenEXR layer's name has {len(layer)} characters; at most {MOST_LAYER} are accepted")
    alpha = layer + "A" if layer + "A" in named else None
    used = [named[name] for name in (*names, *([alpha] if alpha else []))]
    if not all(one.is_whole for one in used):
        raise BadInput("the OpenEXR file has channels with fewer numbers than pixels")
    if wrong := next((one for one in used if one.kind not in (HALF, FLOAT)), None):
        kind = _KINDS.get(wrong.kind, str(wrong.kind))
        raise BadInput(f"the OpenEXR channel {wrong.name} is of {kind}; accepted are half and float")
    return Colours(names, alpha, max(one.kind for one in used), len(named) - len(used))


def with_attributes(encoded: bytes, attributes: Sequence[Attribute]) -> bytes:
    """A file with these attributes; those that it has of the same name are replaced."""
    names = {one.name for one in attributes}
    at = 8
    kept = []
    while encoded[at : at + 1] != b"\0":
        name, kind, begins, ends = _attribute_at(encoded, at)
        if name not in names:
            kept.append(Attribute(name, kind, encoded[begins:ends]))
        at = ends
    table = at + 1
    (first,) = struct.unpack_from("<Q", encoded, table)
    chunks = (first - table) // 8
    header = b"".join(
        one.name + b"\0" + one.kind + b"\0" + struct.pack("<I", len(one.raw)) + one.raw
        for one in sorted([*kept, *attributes], key=lambda one: one.name)
    )
    moved = 8 + len(header) - at
    offsets = [offset + moved for offset in struct.unpack_from(f"<{chunks}Q", encoded, table)]
    return b"".join((encoded[:8], header, b"\0", struct.pack(f"<{chunks}Q", *offsets), encoded[table + 8 * chunks :]))


def is_sound(attribute: Attribute) -> bool:
    """Whether it can stand in a header: for what a decoder hands over, which a file may have taken over."""
    return (
        all(0 < len(name) <= _MOST_NAME_BYTES and b"\0" not in name for name in (attribute.name, attribute.kind))
        and attribute.name not in _OF_THE_ENCODER
        and len(attribute.raw) <= _MOST_HEADER_BYTES
    )


def _attributes(file: BinaryIO) -> Iterator[Attribute]:
    header = file.read(_MOST_HEADER_BYTES)
    at = 0
    for _ in range(_MOST_ATTRIBUTES):
        if header[at : at + 1] == b"\0":
            return
        try:
            name, kind, begins, ends = _attribute_at(header, at)
        except (ValueError, struct.error):
            raise BadInput("the OpenEXR header is cut short or broken") from None
        if ends > len(header):
            raise BadInput(f"the OpenEXR header is cut short, or has more than {_MOST_HEADER_BYTES} bytes")
        yield Attribute(name, kind, header[begins:ends])
        at = ends
    raise BadInput(f"the OpenEXR header has more than {_MOST_ATTRIBUTES} attributes")


def _attribute_at(header: bytes, at: int) -> tuple[bytes, bytes, int, int]:
    """Name and type of the attribute that begins there, and where its value begins and ends."""
    ends_name = header.index(b"\0", at, at + _MOST_NAME_BYTES + 1)
    ends_kind = header.index(b"\0", ends_name + 1, ends_name + _MOST_NAME_BYTES + 2)
    (size,) = struct.unpack_from("<I", header, ends_kind + 1)
    begins = ends_kind + 5
    return header[at:ends_name], header[ends_name + 1 : ends_kind], begins, begins + size


def _channels(raw: bytes) -> Iterator[Channel]:
    at = 0
    for _ in range(_MOST_CHANNELS):
        if raw[at : at + 1] == b"\0":
            return
        ends = raw.find(b"\0", at)
        if ends < 0:
            break
        kind, _, across, down = struct.unpack_from("<iIii", raw, ends + 1)
        yield Channel(raw[at:ends].decode("utf-8", "replace"), kind, across == down == 1)
        at = ends + 17
    raise BadInput("the OpenEXR list of channels is cut short, or too long")
