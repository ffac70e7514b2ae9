"""What is a file, and how large are its pixels, judged by its first bytes alone?

Names and declared types are never looked at. Standard library only: the API process imports this, and no decoder.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from service.errors import BadInput, FrameTooLarge, UnknownFormat
from service.job import InputFacts
from service.media import exr, heif, tiff
from service.settings import Settings

HEAD_BYTES = 1024  # what `content_type_of` wants to see; an MPEG transport stream needs 5 x 192
MAX_SIDE_PX = 1_000_000  # libpng's own limit, the smallest among the decoders
_MAX_SEGMENTS = 4096  # markers or chunks walked before the picture's size must have turned up
_MAX_JUNK_BYTES = 4096  # between two JPEG markers; some cameras leave some

_PNG = b"\x89PNG\r\n\x1a\n"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (_PNG, "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),  # BigTIFF
    (b"MM\0+", "image/tiff"),
    (exr.MAGIC, "image/x-exr"),
    (b"\0\0\1\xba", "video/mpeg"),
    (b"FLV\1", "video/x-flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
    (b"OggS\0", "video/ogg"),
    (b"YUV4MPEG2 ", "video/x-yuv4mpeg"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", "video/mxf"),  # registered as application/mxf
    (b"\x1f\x07\0", "video/dv"),
    (b"DKIF\0\0", "video/x-ivf"),
    # Streams of a picture alone, by what they begin with: MPEG-1 and 2, H.264 and HEVC.
    (b"\0\0\1\xb3", "video/mpv"),
    *((b"\0\0\0\1" + bytes([unit]), "video/h264") for unit in (0x09, 0x27, 0x47, 0x67)),
    *((b"\0\0\0\1" + unit, "video/h265") for unit in (b"\x40\1", b"\x46\1")),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_STILL_BRANDS = {b"mif1", b"msf1", b"crx "}  # which codec, their other brands tell
_BARE_QUICKTIME = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}  # first atoms of files older than `ftyp`
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}  # sizes; "BM" alone also begins words


def content_type_of(head: bytes) -> str | None:
    """The media type that the first `HEAD_BYTES` bytes of a file show; None for what is not read here.

    Text of any kind is None: a playlist names other files, and nothing here may open them. So is GIF.
    """
    for magic, content_type in _MAGIC:
        if head.startswith(magic):
            return content_type
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}.get(head[8:12])
    if head[:2] == b"BM" and len(head) >= 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "image/bmp"
    if head[4:8] == b"ftyp":
        return _of_brand(head[8:12], head[16 : int.from_bytes(head[:4], "big")])
    if head[4:8] in _BARE_QUICKTIME and head[0] < 0x20:  # a length; a letter would be text
        return "video/quicktime"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _of_ebml(head)
    for packet, first in ((188, 0), (192, 4)):
        if len(head) > first + 4 * packet and all(head[first + n * packet] == 0x47 for n in range(5)):
            return "video/mp2t"
    return None


def accepted(kind: str) -> str:
    """The formats read here, in words for a message."""
    if kind == "image":
        return "PNG, JPEG, WebP, TIFF, AVIF, OpenEXR, BMP, HEIC"
    return (
        "MP4, QuickTime, 3GP, Matroska, WebM, AVI, MPEG-TS, MPEG-PS, FLV, ASF, Ogg, MXF, DV, IVF, YUV4MPEG2, and bare "
        "MPEG-1, MPEG-2, H.264 and HEVC"
    )


def unknown_format(head: bytes, kind: str) -> UnknownFormat:
    found = content_type_of(head)
    what = f"is {found}" if found else f"starts with {head[:8].hex(' ')}"
    return UnknownFormat(f"file {what}; accepted are {accepted(kind)}")


def probe_image(file: BinaryIO, settings: Settings) -> InputFacts:
    """Read what an image's header says; no pixel is decoded.

    Args:
        file: Seekable; its position afterwards is anywhere.

    Raises:
        UnknownFormat: The bytes are in no image format that is read here.
        FrameTooLarge: More pixels than `max_image_pixels`, in all pages together, or a side no decoder takes.
        BadInput: It is empty, its header is cut short or broken, or it moves (APNG, animated WebP, sequences of AVIF or
            HEIC).
    """
    size = file.seek(0, 2)
    if not size:
        raise BadInput("file is empty")
    file.seek(0)
    head = file.read(HEAD_BYTES)
    content_type = content_type_of(head)
    measure = {
        "image/png": _png_size,
        "image/jpeg": _jpeg_size,
        "image/webp": _webp_size,
        "image/tiff": _tiff_size,
        "image/avif": _avif_size,
        "image/heic": _heic_size,
        "image/x-exr": _exr_size,
        "image/bmp": _bmp_size,
    }.get(content_type or "")
    if measure is None or content_type is None:
        raise unknown_format(head, "image")
    try:
        width, height = measure(file)
    except (struct.error, IndexError):
        raise BadInput(f"the {content_type} header is cut short: the file has {size} bytes") from None
    if width < 1 or height < 1:
        raise BadInput(f"image is {width}x{height}; it needs at least one pixel")
    check_pixels("image", width, height, settings.max_image_pixels)
    pages = _count_tiff_pages(file, settings.max_image_pixels) if content_type == "image/tiff" else 1
    return InputFacts(
        content_type=content_type,
        bytes=size,
        width=width,
        height=height,
        pages=pages if pages > 1 else None,
        frames=None,
        frame_rate=None,
        has_audio=None,
    )


def check_pixels(what: str, width: int, height: int, most: int) -> None:
    if width * height > most:
        raise FrameTooLarge(f"{what} is {width}x{height}; at most {most} pixels are accepted")
    if max(width, height) > MAX_SIDE_PX:
        raise FrameTooLarge(f"{what} is {width}x{height}; a side of at most {MAX_SIDE_PX} pixels is accepted")


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Type, offset of the data, and its length, of each chunk of a PNG up to its pixels."""
    at = len(_PNG)
    for _ in range(_MAX_SEGMENTS):
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind in (b"IDAT", b"IEND"):
            return
        yield kind, at + 8, length
        at += 12 + length


def _png_size(file: BinaryIO) -> tuple[int, int]:
    size: tuple[int, int] | None = None
    for kind, at, _ in png_chunks(file):
        if size is None:
            if kind != b"IHDR":
                raise BadInput("the PNG does not begin with its header")
            file.seek(at)
            size = struct.unpack(">II", file.read(8))
        if kind == b"acTL":
            raise BadInput("the PNG is animated; only single images are accepted")
    if size is None:
        raise BadInput("the PNG does not begin with its header")
    return size


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    file.seek(2)
    junk = 0
    for _ in range(_MAX_SEGMENTS):
        byte = file.read(1)[0]
        while byte != 0xFF:
            junk += 1
            if junk > _MAX_JUNK_BYTES:
                raise BadInput(f"the JPEG has more than {_MAX_JUNK_BYTES} bytes of junk between its segments")
            byte = file.read(1)[0]
        marker = 0xFF
        while marker == 0xFF:  # padding
            junk += 1
            if junk > _MAX_JUNK_BYTES:
                raise BadInput(f"the JPEG has more than {_MAX_JUNK_BYTES} bytes of junk between its segments")
            marker = file.read(1)[0]
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these stand alone
            continue
        if marker in (0xD9, 0xDA):
            break  # its end, or its pixels, and no size yet
        (length,) = struct.unpack(">H", file.read(2))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width = struct.unpack(">BHH", file.read(5))
            return width, height
        if length < 2:
            break
        file.seek(length - 2, 1)
    raise BadInput("the JPEG header does not tell the size of the image")


def _webp_size(file: BinaryIO) -> tuple[int, int]:
    file.seek(12)
    kind, _ = struct.unpack("<4sI", file.read(8))
    data = file.read(10)
    if kind == b"VP8X":
        if data[0] & 0x02:
            raise BadInput("the WebP is animated; only single images are accepted")
        if len(data) < 10:
            raise IndexError
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        signature, bits = struct.unpack("<BI", data[:5])
        if signature == 0x2F:
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        start, width, height = struct.unpack("<3x3sHH", data)
        if start == b"\x9d\x01\x2a":
            return width & 0x3FFF, height & 0x3FFF  # the upper two bits ask for scaling
    raise BadInput("the WebP header is damaged")


def _tiff_size(file: BinaryIO) -> tuple[int, int]:
    wanted = {tiff.WIDTH, tiff.HEIGHT, tiff.SUBFILE_TYPE, tiff.DNG_VERSION}
    page = tiff.first_directory(file, wanted, numbers_only=True)
    if tiff.DNG_VERSION in page.tags or (page.number(tiff.SUBFILE_TYPE) or 0) & 1:
        # A camera's raw file opens with a thumbnail; to clean that would be to answer another question.
        raise BadInput("the TIFF begins with a thumbnail, as a camera's raw files do; a developed image is needed")
    width, height = page.number(tiff.WIDTH), page.number(tiff.HEIGHT)
    if width is None or height is None:
        raise BadInput("the TIFF header does not tell the size of the image")
    return width, height


def _count_tiff_pages(file: BinaryIO, most_pixels: int) -> int:
    """
    Raises:
        FrameTooLarge: A page has too many pixels, or all together have.
    """
    pages = [page for page in tiff.pages_of(file) if page.is_picture]
    together = 0
    for number, page in enumerate(pages, 1):
        if not page.width or not page.height:
            raise BadInput(f"the TIFF header does not tell the size of page {number}")
        check_pixels(f"page {number}", page.width, page.height, most_pixels)
        together += page.width * page.height
    if together > most_pixels:
        raise FrameTooLarge(
            f"the TIFF has {len(pages)} pages of {together} pixels together; at most {most_pixels} are accepted"
        )
    return len(pages)


def _avif_size(file: BinaryIO) -> tuple[int, int]:
    head = heif.read_head(file)
    return head.width, head.height


def _heic_size(file: BinaryIO) -> tuple[int, int]:
    head = heif.read_head(file)
    return head.crop[2:]


def _exr_size(file: BinaryIO) -> tuple[int, int]:
    head = exr.read_head(file)
    exr.colours_of(head)
    return head.width, head.height


def _bmp_size(file: BinaryIO) -> tuple[int, int]:
    file.seek(14)
    (header,) = struct.unpack("<I", file.read(4))
    if header == 12:
        width, height = struct.unpack("<HH", file.read(4))
    else:
        width, height = struct.unpack("<ii", file.read(8))
    return width, abs(height)  # a negative height: the rows are stored top down


def _of_brand(brand: bytes, compatible: bytes) -> str | None:
    if brand in _AVIF_BRANDS:
        return "image/avif"
    if brand in _HEIC_BRANDS:
        return "image/heic"
    if brand in _STILL_BRANDS:
        others = {compatible[at : at + 4] for at in range(0, len(compatible), 4)} if brand != b"crx " else set()
        if others & _AVIF_BRANDS:
            return "image/avif"
        return "image/heic" if others & _HEIC_BRANDS else None
    if brand == b"qt  ":
        return "video/quicktime"
    if brand[:2] == b"3g":
        return "video/3gpp"
    return "video/mp4"


def _of_ebml(head: bytes) -> str | None:
    at = head.find(b"\x42\x82", 4, 128)  # the element that names the kind of document
    if at < 0 or at + 3 > len(head):
        return None
    name = head[at + 3 : at + 3 + (head[at + 2] & 0x7F)].rstrip(b"\0")
    return {b"matroska": "video/x-matroska", b"webm": "video/webm"}.get(name)
