"""How do the items of a HEIC, each a frame of HEVC, become one picture?

Its container is read here and its frames are decoded by PyAV, as those of a video are, so nothing more is needed than
videos need. Photographs of telephones are grids of tiles; alpha is a picture of its own.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from typing import Any

import av
import numpy as np
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from service.errors import BadInput
from service.media import heif
from service.media.colour import Coding, to_rgb
from service.media.head import depth_of
from service.media.planes import FULL, MATRICES, layout_of
from service.media.sniff import check_pixels
from service.settings import Settings

Pixels = NDArray[Any]

_LIMITED = 1
_RGB, _UNSPECIFIED, _BT601 = 0, 2, 6  # matrices, as H.273 numbers them; a still that tells none is taken for BT.601
_DEPTHS = (8, 10, 12)
_TILE = 64  # the encoder's largest block, up to which it fills a picture
_ALPHA = (b"urn:mpeg:hevc:2015:auxid:1\0", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
_READ = {b"hvcC", b"ispe", b"pixi", b"colr", b"irot", b"imir", b"clap", b"pasp", b"auxC"}
_TURNS = {b"irot", b"imir", b"clap"}
_XMP = b"application/rdf+xml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    pixels: Pixels  # [H, W, 3] RGB, uint8, or uint16 over its whole range; as stored: before it is turned
    alpha: Pixels | None
    is_grey: bool
    depth: int  # bits of a sample in the file
    orientation: int  # as EXIF numbers them
    colours: heif.Colours | None  # where they are not those that readers assume
    exif: bytes | None  # a TIFF
    xmp: bytes | None
    icc: bytes | None
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Decoded:
    pixels: Pixels
    is_grey: bool
    depth: int
    tags: tuple[int, int]  # primaries and transfer, as the first frame says


def read_still(data: bytes, settings: Settings) -> Still:
    """The primary picture.

    Raises:
        FrameTooLarge: More pixels than the settings allow.
        BadInput: It is damaged or cut short, or is made in a way that is not read.
    """
    head = heif.read_head(BytesIO(data))
    contents = heif.read_contents(data)
    reader = _Reader(contents, settings)
    primary = contents.primary
    if any(kind == b"prem" and primary in (one, *others) for kind, one, others in contents.references):
        raise BadInput("its colours are multiplied by its alpha, which is not read")
    decoded = reader.decode(primary)
    if decoded.pixels.shape[:2] != (head.height, head.width):
        raise BadInput("the header tells two sizes of the picture")
    alpha, lost = None, []
    for number in _pointing(contents, b"auxl", primary):
        if contents.items[number].told(b"auxC")[4:].startswith(_ALPHA) and alpha is None:
            alpha = _fitted(reader.decode(number), decoded)
            lost += ["transparency"] if alpha is None else []
        else:
            lost.append("further pictures")
    if _pointing(contents, b"thmb", primary):
        lost.append("smaller copies")
    if _others(contents):
        lost.append("further pictures")
    left, top, width, height = head.crop
    cut = np.s_[top : top + height, left : left + width]
    item = contents.items[primary]
    icc = next((body[4:] for kind, body in item.properties if kind == b"colr" and body[:4] in (b"prof", b"rICC")), None)
    told = any(kind == b"colr" and body[:4] == b"nclx" for kind, body in item.properties)
    exif, xmp = _described(contents)
    return Still(
        pixels=np.ascontiguousarray(decoded.pixels[cut]),
        alpha=None if alpha is None else np.ascontiguousarray(alpha[cut]),
        is_grey=decoded.is_grey,
        depth=decoded.depth,
        orientation=head.orientation,
        colours=head.colours if told else heif.told_colours(*decoded.tags),
        exif=exif,
        xmp=xmp,
        icc=icc or None,
        lost=tuple(dict.fromkeys(lost)),
    )


class _Reader:
    def __init__(self, contents: heif.Contents, settings: Settings) -> None:
        self._contents = contents
        self._settings = settings
        self._reformatter = VideoReformatter()

    def decode(self, number: int) -> _Decoded:
        item = self._contents.items[number]
        if item.kind == b"grid":
            return self._grid(number)
        if item.kind != b"hvc1":
            raise BadInput(f"the picture is {item.kind.decode('latin-1')!r}; hvc1 and grids of it are read")
        return self._single(number, _nclx(item))

    def _grid(self, number: int) -> _Decoded:
        """Tiles in rows, of which the last ones may reach beyond the picture."""
        item = self._contents.items[number]
        _refuse_unknown(item)
        told = self._contents.bytes_of(number)
        try:
            _, flags, rows, columns = struct.unpack_from("4B", told)
            width, height = struct.unpack_from(">II" if flags & 1 else ">HH", told, 4)
        except struct.error:
            raise BadInput("the grid of the picture is cut short") from None
        rows, columns = rows + 1, columns + 1
        tiles = [
            one for kind, at, others in self._contents.references if (kind, at) == (b"dimg", number) for one in others
        ]
        if len(tiles) != rows * columns or any(self._contents.items[one].kind != b"hvc1" for one in tiles):
            raise BadInput(f"the picture has {len(tiles)} tiles of HEVC; its grid has {columns}x{rows}")
        check_pixels("image", width, height, self._settings.max_image_pixels)
        across, down = self._contents.items[tiles[0]].size
        if not (columns - 1) * across < width <= columns * across or not (rows - 1) * down < height <= rows * down:
            raise BadInput(f"the picture is {width}x{height}; {columns}x{rows} tiles of {across}x{down} do not make it")
        first: _Decoded | None = None
        pixels: Pixels = np.empty(0)
        for (row, column), tile in zip(product(range(rows), range(columns)), tiles, strict=True):
            if {kind for kind, _ in self._contents.items[tile].properties} & _TURNS:
                raise BadInput("a tile of the picture is turned or cut by itself")
            one = self._single(tile, _nclx(item) or _nclx(self._contents.items[tile]))
            if first is None:
                first = one
                pixels = np.empty((height, width, 3), one.pixels.dtype)
            if one.pixels.shape != first.pixels.shape or one.depth != first.depth:
                raise BadInput("the tiles of the picture differ in size or depth")
            place = pixels[row * down : (row + 1) * down, column * across : (column + 1) * across]
            place[...] = one.pixels[: place.shape[0], : place.shape[1]]
        assert first is not None  # a grid has a tile at least
        return _Decoded(pixels, first.is_grey, first.depth, first.tags)

    def _single(self, number: int, nclx: tuple[int, int] | None) -> _Decoded:
        item = self._contents.items[number]
        _refuse_unknown(item)
        width, height = item.size
        check_pixels("image", width, height, self._settings.max_image_pixels)
        frame = _frame_of(item.told(b"hvcC"), self._contents.bytes_of(number), (width + _TILE) * (height + _TILE))
        if (frame.width, frame.height) != (width, height):
            raise BadInput(f"a frame is {frame.width}x{frame.height}; the header says {width}x{height}")
        depth = depth_of(frame.format)
        if depth not in _DEPTHS:
            raise BadInput(f"pixels have {depth} bits; accepted are 8, 10 and 12")
        layout = layout_of(frame.format.name)
        matrix, full = nclx or (int(frame.colorspace), FULL if frame.color_range == FULL else _LIMITED)
        if layout and not layout.is_grey and matrix == _RGB:
            raise BadInput("the header says that colours are stored as RGB; its frames say that they are not")
        coding = Coding(matrix if matrix in MATRICES else _BT601, full)
        pixels = to_rgb(frame, coding, depth, self._reformatter)
        tags = (int(frame.color_primaries), int(frame.color_trc))
        return _Decoded(pixels, layout is not None and layout.is_grey, depth, tags)


def _frame_of(parameters: bytes, data: bytes, most_pixels: int) -> VideoFrame:
    """
    Args:
        parameters: What the decoder is to know beforehand, as the container has it.
        most_pixels: With what fills up the last blocks.
    """
    context = CodecContext.create("hevc", "r")
    assert isinstance(context, VideoCodecContext)
    context.extradata = parameters
    context.thread_count = 1
    context.options = {"max_pixels": str(most_pixels), "err_detect": "explode"}
    try:
        frames = [*context.decode(Packet(data)), *context.decode(None)]
    except (av.FFmpegError, OSError, ValueError):
        frames = []
    if len(frames) != 1:
        raise BadInput("the image/heic data is damaged, cut short, or of a kind that cannot be decoded here")
    return frames[0]


def _fitted(alpha: _Decoded, colours: _Decoded) -> Pixels | None:
    """Alpha of the colours' size and type; None where it has another size."""
    if alpha.pixels.shape != colours.pixels.shape:
        return None
    values: Pixels = alpha.pixels[..., 1]
    if values.dtype == colours.pixels.dtype:
        return values
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * 257
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _refuse_unknown(item: heif.Item) -> None:
    if item.essential - _READ:
        names = ", ".join(sorted(kind.decode("latin-1") for kind in item.essential - _READ))
        raise BadInput(f"to be shown, the picture needs what is not read here: {names}")


def _nclx(item: heif.Item) -> tuple[int, int] | None:
    """Matrix and range, where the container tells them: it overrules the frame."""
    for kind, body in item.properties:
        if kind == b"colr" and body[:4] == b"nclx" and len(body) >= 11:
            (matrix,) = struct.unpack(">H", body[8:10])
            return matrix, FULL if body[10] & 0x80 else _LIMITED
    return None


def _pointing(contents: heif.Contents, wanted: bytes, target: int) -> list[int]:
    return [
        one
        for kind, one, others in contents.references
        if kind == wanted and target in others and one in contents.items
    ]


def _others(contents: heif.Contents) -> bool:
    """Whether there are pictures that are neither the primary one nor belong to one."""
    parts = {one for kind, _, others in contents.references if kind == b"dimg" for one in others}
    parts |= {one for kind, one, _ in contents.references if kind in (b"auxl", b"thmb")}
    return any(
        item.kind in (b"hvc1", b"grid", b"iden", b"iovl", b"av01", b"jpeg") and not item.is_hidden
        for number, item in contents.items.items()
        if number != contents.primary and number not in parts
    )


def _described(contents: heif.Contents) -> tuple[bytes | None, bytes | None]:
    """EXIF and XMP of the primary picture."""
    exif = xmp = None
    for number in _pointing(contents, b"cdsc", contents.primary):
        item = contents.items[number]
        if item.kind == b"Exif" and exif is None:
            data = contents.bytes_of(number)
            exif = data[4 + int.from_bytes(data[:4], "big") :].removeprefix(b"Exif\0\0") or None
        elif item.kind == b"mime" and item.content_type == _XMP and xmp is None:
            xmp = contents.bytes_of(number).rstrip(b"\0") or None
    return exif, xmp
