"""Pixels out of an image file, and an image file out of pixels, with all that came along kept."""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The decoder's own bound, read once when it loads; ours, in the settings, is checked before it runs.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**40))
import cv2
from PIL import Image

from service.errors import BadInput
from service.media import blocks as beside
from service.media import exr, exr_pixels, heic, heif, light, tiff, tiff_samples
from service.media.formats import BECOMES, IMAGES, image_format_for
from service.media.held import Source
from service.media.sniff import png_chunks, probe_image
from service.settings import Settings

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it warns of, we raise or list as lost

Pixels = NDArray[Any]  # of uint8, uint16 or float32, by the picture; nothing else passes `read_image`

_JPEG_QUALITY = 95
_WEBP_QUALITY = 90
_AVIF_QUALITY = 90
# Measured on a 768x512 photograph, one busy core: 0.55 s, 159 kB and 40.9 dB so, 3.0 s, 155 kB and 41.1 dB at 8.
_AVIF_SPEED = 9
# What a JPEG segment holds, less its length field and the name each kind begins with.
_JPEG_ROOM = {"exif": 65533 - 6, "icc": 65533 - 14, "xmp": 65533}
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_KEEPS_METADATA = ("png", "jpeg", "webp", "avif")
_KEEPS_COLOURS = ("png", "avif")
_KEEPS_SCALE = ("png", "jpeg", "tiff", "bmp")
_WORDS = {"exif": "EXIF", "xmp": "XMP", "icc": "ICC profile"}
_SOUND = {"exif": beside.is_sound_exif, "xmp": beside.is_sound_xmp, "icc": beside.is_sound_profile}
_CODES = {
    "exif": cv2.IMAGE_METADATA_EXIF,
    "xmp": cv2.IMAGE_METADATA_XMP,
    "icc": cv2.IMAGE_METADATA_ICCP,
}
_PNG_CHUNKS = {"exif": (b"eXIf",), "xmp": (b"iTXt", b"zTXt", b"tEXt"), "icc": (b"iCCP",)}
# Said about how the pixels are to be shown, and by whom: copied from PNG to PNG. Profiles and EXIF go their own way.
# The words name what another format does not get; of colours only what no reader would assume by itself.
_PNG_KEPT = {
    **dict.fromkeys((b"gAMA", b"cHRM", b"sRGB", b"tIME"), ""),
    **dict.fromkeys((b"mDCV", b"cLLI"), "colour space"),
    b"cICP": "",  # told apart, as `Metadata.colours`
    **dict.fromkeys((b"tEXt", b"zTXt", b"iTXt"), "text"),
    b"pHYs": "resolution",
}
_TIFF_SCALE = (282, 283, 296)  # resolution across and down, and its unit
_INCH_M = 0.0254
_PNG_KEPT_BYTES = 16 * 1024**2
_PNG_AFTER_HEADER = 8 + 25  # signature, IHDR
_TIFF_WANTED = {
    *(tiff.SUB_PAGES, tiff.ORIENTATION, tiff.EXTRA_SAMPLES, tiff.XMP, tiff.EXIF, tiff.ICC),
    *tiff.ABOUT,
    *tiff_samples.WANTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Opaque blocks; None where the file has none."""

    exif: bytes | None = None  # a TIFF without the "Exif" in front
    xmp: bytes | None = None
    icc: bytes | None = None
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()  # type, and the whole chunk, ready to be put into another PNG
    tiff_tags: dict[int, tiff.Tag] = field(default_factory=dict)
    jpeg_segments: beside.Segments = ()
    dpi: tuple[float, float] | None = None  # across and down, as pixels are stored
    colours: heif.Colours | None = None  # where they are told by numbers, and are not those of sRGB
    exr: exr_pixels.Kept | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image as stored: its orientation is not applied but stands in its EXIF."""

    # [H, W, 3], RGB, equal planes of a grey one; whole numbers over all of their range, float32 on a scale of its own
    pixels: Pixels
    alpha: Pixels | None  # [H, W], of the same type
    is_grey: bool
    content_type: str
    metadata: Metadata
    lost: tuple[str, ...] = ()  # what of the file is not in here, in words
    is_linear: bool = False  # the numbers are light, not positions on a curve made for eyes
    depth: int | None = None  # bits of a sample in the file, where they are fewer than in here
    is_lossless: bool = False  # though its format need not be
    pages: int = 1  # that the file has; this is one of them
    is_multiplied: bool = False  # the colours, by alpha


class Encoded(NamedTuple):
    data: bytes
    content_type: str
    suffix: str
    lost: tuple[str, ...]  # what of the input the file does not hold, in words


def read_image(path: Source, settings: Settings, page: int = 0) -> Picture:
    """Decode an image, whole.

    Palettes and 1 to 4 bit samples become 8 bit; 16 bit and floating point are kept. CMYK becomes RGB. Of a TIFF
    one page is read, and its orientation is applied.

    Args:
        page: Counted from 0; smaller copies of others and masks are no pages.

    Raises:
        UnknownFormat: The bytes are in no image format that is read here.
        FrameTooLarge: More pixels than the settings allow.
        BadInput: The file is damaged or cut short, or its samples are neither 8 or 16 bit unsigned integers nor
            floating point.
    """
    with path.open("rb") as file:
        facts = probe_image(file, settings)
        file.seek(0)
        data = bytearray(file.read())
    kind = facts.content_type
    if kind == "image/heic":
        return _of_heic(bytes(data), settings)
    if kind == "image/x-exr":
        return _of_exr(bytes(data))
    directory = None
    if kind == "image/tiff":
        pages = tiff.pages_of(BytesIO(data))
        tiff.begin_at(data, [one for one in pages if one.is_picture][page].offset)
        directory = tiff.first_directory(BytesIO(data), _TIFF_WANTED)
        others = (
            ("smaller copies",) if any(not one.is_picture for one in pages) or tiff.SUB_PAGES in directory.tags else ()
        )
        if tiff_samples.can_read(directory):
            picture = _of_samples(tiff_samples.read_samples(data, directory), directory)
            return replace(picture, pages=facts.pages or 1, lost=(*picture.lost, *others))
        _leave_colour_alone(data, directory)
    try:
        decoded, kinds, blocks = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise BadInput(f"the {kind} data is damaged, cut short, or of a kind that cannot be decoded here")
    if decoded.dtype not in (np.uint8, np.uint16):
        raise BadInput(f"pixels are {decoded.dtype}; accepted are 8 and 16 bit unsigned integers")
    found = {int(which): block.tobytes() for which, block in zip(kinds, blocks, strict=True)}
    if directory:
        picture = _of_tiff(decoded, directory)
        return replace(picture, pages=facts.pages or 1, lost=(*picture.lost, *others))
    pixels, alpha, is_grey = _planes(decoded)
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    icc = found.get(cv2.IMAGE_METADATA_ICCP) or None
    is_linear = light.profile_curve_is_linear(icc) if icc else None
    if kind == "image/png":
        grey_alpha, chunks = _beside_png_pixels(data, pixels)
        alpha = grey_alpha if alpha is None else alpha
        is_grey = is_grey or data[25] == 4  # colour type: grey and alpha, which the decoder gives as colour
        is_linear = _png_is_linear(dict(chunks)) if is_linear is None else is_linear
    elif kind == "image/bmp" and alpha is not None and not alpha.any():
        alpha = None  # a fourth byte that means nothing
    elif kind == "image/avif":
        return _of_avif(data, pixels, alpha, is_grey=is_grey)
    segments: beside.Segments = ()
    dpi: tuple[float, float] | None = None
    lost: list[str] = []
    if kind == "image/jpeg":
        segments, dpi, lost = beside.jpeg_segments(data)
        if _jpeg_components(data) == 4:
            lost.append("CMYK colours")
    elif kind == "image/png":
        dpi = _png_dpi(dict(chunks))
    elif kind == "image/bmp":
        dpi = _bmp_dpi(data)
    return Picture(
        pixels=pixels,
        alpha=alpha,
        is_grey=is_grey,
        content_type=kind,
        metadata=Metadata(
            exif=found.get(cv2.IMAGE_METADATA_EXIF, b"").removeprefix(b"Exif\0\0") or None,
            xmp=found.get(cv2.IMAGE_METADATA_XMP, b"").removeprefix(_JPEG_XMP).rstrip(b"\0") or None,
            icc=icc,
            png_chunks=chunks,
            jpeg_segments=segments,
            dpi=dpi,
            colours=_png_colours(dict(chunks)),  # counts before a profile (PNG, third edition)
        ),
        lost=tuple(lost),
        is_linear=bool(is_linear),
        is_lossless=kind == "image/webp" and _webp_is_lossless(data),
    )


def write_image(
    pixels: Pixels,
    like: Picture,
    *,
    format: str,  # noqa: A002 - the name it has in the public contract
    quality: int | None = None,
) -> Encoded:
    """Encode a restored picture as a file; of several pages, one. `join_pages` makes one file of them.

    Args:
        pixels: [H, W, 3], RGB, shape and type as in `like`; of a grey picture the mean of the planes is written.
        like: What it was made of: gives alpha, metadata, and the format where that is `same`.
        quality: 1 to 100, of JPEG (95), WebP and AVIF (90); the others lose nothing. A WebP made of a WebP without
            loss is without loss where none is told, and so is an AVIF of 100.

    Raises:
        BadInput: The format is not one of `IMAGE_FORMATS`, or cannot hold so large an image.
    """
    if pixels.shape != like.pixels.shape or pixels.dtype != like.pixels.dtype:
        raise ValueError(
            f"restored is {pixels.shape} {pixels.dtype}; noisy was {like.pixels.shape} {like.pixels.dtype}"
        )
    name = image_format_for(format, like.content_type)
    spec = IMAGES[name]
    lost = list(like.lost)
    if format == "same" and like.content_type in BECOMES:
        lost.append(f"{like.content_type.removeprefix('image/').upper()} as the format")
    if like.pages > 1 and name != "tiff":
        lost.append("pages after the first")
    meta = _fitting(like.metadata, name, like.is_grey and like.alpha is None, lost)
    if name == "exr":
        return Encoded(_exr(pixels, like), spec.content_type, spec.suffix, tuple(lost))
    if like.is_multiplied and like.alpha is not None:
        pixels = _unmultiplied(pixels, like.alpha)
    if _needs_curve(like, meta, name):
        pixels, like, meta = _for_screens(pixels, like, meta, lost)
    planes = _file_planes(pixels, like, keep_alpha=name != "jpeg")
    if like.alpha is not None and name == "jpeg":
        lost.append("transparency")
    depth = like.depth or 12
    if planes.dtype == np.uint16 and name == "avif":
        planes = _to_bits(planes, depth)
        lost += ["16 bit depth"] if like.depth is None else []
    elif planes.dtype == np.uint16 and name not in ("png", "tiff"):
        planes = _to_8_bit(planes)
        lost.append(f"{like.depth or 16} bit depth")
    if like.metadata.exif and not meta.exif:
        planes = upright(planes, tiff.orientation_of(like.metadata.exif))
    planes = np.ascontiguousarray(planes)
    params = _params(name, quality, planes.dtype, depth)
    refused = _refused_blocks(name, planes, params, _blocks(meta, name))
    meta = replace(
        meta,
        exif=None if "exif" in refused else meta.exif,
        xmp=None if "xmp" in refused else meta.xmp,
        icc=None if "icc" in refused else meta.icc,
    )
    lost += [_WORDS[what] for what in refused]
    if "exif" in refused:
        planes = np.ascontiguousarray(upright(planes, tiff.orientation_of(like.metadata.exif)))
    if name == "webp" and like.is_lossless and quality is None:
        encoded = _lossless_webp(planes, _blocks(meta, name))
    else:
        encoded = _encode(spec.suffix, planes, params, _blocks(meta, name))
    if encoded is None:
        raise BadInput(f"{name} cannot hold an image of {planes.shape[1]}x{planes.shape[0]} pixels")
    turned = bool(like.metadata.exif) and not meta.exif and tiff.orientation_of(like.metadata.exif) >= 5
    dpi = meta.dpi[::-1] if meta.dpi and turned else meta.dpi
    if name == "png":
        encoded = _with_png_chunks(encoded, meta, dpi)
    if name == "avif" and meta.colours:
        said = heif.with_colours(encoded, meta.colours)
        encoded = said or encoded
        lost += [] if said else ["colour space"]
    if name == "jpeg" and (meta.jpeg_segments or dpi):
        encoded = beside.with_segments(encoded, meta.jpeg_segments, dpi)
    if name == "bmp" and dpi:
        told = struct.pack("<ii", *(min(round(one / _INCH_M), 2**31 - 1) for one in dpi))
        encoded = encoded[:38] + told + encoded[46:]
    if name == "tiff":
        if dpi and 282 not in meta.tiff_tags:
            meta = replace(meta, tiff_tags={**meta.tiff_tags, **_tiff_scale(dpi)})
        encoded = _with_tiff_tags(encoded, meta, has_alpha=planes.ndim == 3 and planes.shape[2] == 4)
    return Encoded(encoded, spec.content_type, spec.suffix, tuple(lost))


def join_pages(made: Sequence[Encoded]) -> Encoded:
    """Several TIFFs as one."""
    data = tiff.joined([one.data for one in made])
    return made[0]._replace(data=data, lost=tuple(dict.fromkeys(words for one in made for words in one.lost)))


def _planes(decoded: Pixels) -> tuple[Pixels, Pixels | None, bool]:
    """[H, W], [H, W, 3] BGR or [H, W, 4] BGRA to RGB, alpha and whether it is grey."""
    if decoded.ndim == 2 or decoded.shape[2] == 1:
        return cv2.cvtColor(decoded, cv2.COLOR_GRAY2RGB), None, True
    if decoded.shape[2] == 4:
        return cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGB), np.ascontiguousarray(decoded[..., 3]), False
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), None, False


def _beside_png_pixels(data: bytearray, pixels: Pixels) -> tuple[Pixels | None, tuple[tuple[bytes, bytes], ...]]:
    """The alpha of a grey PNG with one transparent value, which the decoder leaves out, and the chunks to keep."""
    bits, colour = data[24], data[25]
    alpha: Pixels | None = None
    kept: list[tuple[bytes, bytes]] = []
    room = _PNG_KEPT_BYTES
    for kind, at, length in png_chunks(BytesIO(data)):
        body = bytes(data[at : at + length])
        if kind == b"tRNS" and colour == 0 and length >= 2:
            (value,) = struct.unpack(">H", body[:2])
            if bits < 8:
                value = value * 255 // ((1 << bits) - 1)
            alpha = np.where(pixels[..., 0] == value, 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
        elif kind in _PNG_KEPT and not body.startswith(b"XML:com.adobe.xmp\0") and length <= room:
            room -= length
            kept.append((kind, _png_chunk(kind, body)))
    return alpha, tuple(kept)


def _of_avif(data: bytearray, pixels: Pixels, alpha: Pixels | None, *, is_grey: bool) -> Picture:
    """What the decoder made of an AVIF, with what it leaves out: blocks, depth, how the picture is turned."""
    head = heif.read_head(BytesIO(data))
    if pixels.shape[:2] != (head.height, head.width):
        raise BadInput(f"the AVIF is {pixels.shape[1]}x{pixels.shape[0]}; its header says {head.width}x{head.height}")
    depth = None
    if pixels.dtype == np.uint16:
        depth = head.bits if head.bits in (10, 12) else 12
        pixels = _from_bits(pixels, depth)
        alpha = None if alpha is None else _from_bits(alpha, depth)
    with Image.open(BytesIO(data), formats=["AVIF"]) as opened:
        told = {name: block for name, block in opened.info.items() if isinstance(block, bytes)}
    exif = told.get("exif", b"").removeprefix(b"Exif\0\0") or None
    if tiff.orientation_of(exif) != head.orientation:  # what the container says is what counts
        exif = tiff.with_orientation(exif, head.orientation)
    icc = told.get("icc_profile") or None
    return Picture(
        pixels=pixels,
        alpha=alpha,
        is_grey=is_grey,
        content_type="image/avif",
        metadata=Metadata(exif=exif, xmp=told.get("xmp") or None, icc=icc, colours=None if icc else head.colours),
        is_linear=bool(icc and light.profile_curve_is_linear(icc)),
        depth=depth,
    )


def _of_heic(data: bytes, settings: Settings) -> Picture:
    still = heic.read_still(data, settings)
    exif = still.exif
    if tiff.orientation_of(exif) != still.orientation:  # what the container says is what counts
        exif = tiff.with_orientation(exif, still.orientation)
    return Picture(
        pixels=still.pixels,
        alpha=still.alpha,
        is_grey=still.is_grey,
        content_type="image/heic",
        metadata=Metadata(exif=exif, xmp=still.xmp, icc=still.icc, colours=None if still.icc else still.colours),
        lost=still.lost,
        is_linear=bool(still.icc and light.profile_curve_is_linear(still.icc)),
        depth=still.depth if still.depth > 8 else None,
    )


def _of_exr(data: bytes) -> Picture:
    head = exr.read_head(BytesIO(data))
    colours = exr.colours_of(head)
    pixels, alpha = exr_pixels.read_pixels(data, head, colours)
    kept = exr_pixels.Kept(
        window=head.window,
        is_half=colours.kind == exr.HALF,
        compression=head.compression,
        attributes=head.attributes,
        layer=colours.names[0][:-1],
        is_plain=head.is_plain,
    )
    return Picture(
        pixels=pixels,
        alpha=alpha,
        is_grey=len(colours.names) == 1,
        content_type="image/x-exr",
        metadata=Metadata(exr=kept),
        lost=("further channels",) if colours.others else (),
        is_linear=True,
        is_multiplied=True,
    )


def _exr(pixels: Pixels, like: Picture) -> bytes:
    """The file: light, by which all OpenEXR files go, with colours multiplied by alpha."""
    if like.metadata.exr:
        grey = pixels.mean(axis=2, dtype=np.float64).astype(np.float32) if like.is_grey else None
        return exr_pixels.write_pixels(pixels if grey is None else grey, like.alpha, like.metadata.exr)
    values, alpha = pixels, like.alpha
    if values.dtype.kind == "u":
        most = np.float32(np.iinfo(values.dtype).max)
        values = values.astype(np.float32) / most
        alpha = None if alpha is None else alpha.astype(np.float32) / most
    if not like.is_linear:
        values = light.decoded(values)
    if alpha is not None:
        values = values * alpha[..., None]
    if like.metadata.exif:
        turned = tiff.orientation_of(like.metadata.exif)
        values, alpha = upright(values, turned), None if alpha is None else upright(alpha, turned)
    grey = values.mean(axis=2, dtype=np.float64).astype(np.float32) if like.is_grey else None
    is_half = pixels.dtype == np.uint8 or like.depth == 10
    kept = exr_pixels.plain(*values.shape[:2], is_half=is_half)
    return exr_pixels.write_pixels(values if grey is None else grey, alpha, kept)


def _webp_is_lossless(data: bytearray) -> bool:
    at = 12
    while at + 8 <= len(data):
        kind = bytes(data[at : at + 4])
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def _png_dpi(chunks: dict[bytes, bytes]) -> tuple[float, float] | None:
    if len(chunks.get(b"pHYs", b"")) != 12 + 9:
        return None
    across, down, unit = struct.unpack(">IIB", chunks[b"pHYs"][8:17])
    return (across * _INCH_M, down * _INCH_M) if unit == 1 and across and down else None


def _bmp_dpi(data: bytearray) -> tuple[float, float] | None:
    if struct.unpack("<I", data[14:18])[0] < 40:
        return None
    across, down = struct.unpack("<ii", data[38:46])
    return (across * _INCH_M, down * _INCH_M) if across > 0 and down > 0 else None


def _tiff_dpi(page: tiff.Directory) -> tuple[float, float] | None:
    found = []
    for tag in _TIFF_SCALE[:2]:
        told = page.tags.get(tag)
        if told is None or told.type != 5 or len(told.raw) < 8:
            return None
        number, divisor = struct.unpack("<II", told.raw[:8])
        if not number or not divisor:
            return None
        found.append(number / divisor)
    unit = page.number(_TIFF_SCALE[2]) or 2
    scale = {2: 1.0, 3: 2.54}.get(unit)
    return (found[0] * scale, found[1] * scale) if scale else None


def _jpeg_components(data: bytearray) -> int:
    """Of a file whose frame header has been found before."""
    at = 2
    while at + 10 <= len(data):
        if data[at] != 0xFF or data[at + 1] == 0xFF:
            at += 1
            continue
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 9]
        if marker in (0xD9, 0xDA):
            break
        at += 2 if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8 else 2 + max(size, 2)
    return 0


def _png_is_linear(chunks: dict[bytes, bytes]) -> bool:
    """By its `gAMA`, which counts where nothing more exact is told."""
    if b"gAMA" not in chunks or {b"sRGB", b"cICP"} & set(chunks):
        return False
    return light.gamma_is_linear(int.from_bytes(chunks[b"gAMA"][8:12], "big") / 100_000)


def _png_colours(chunks: dict[bytes, bytes]) -> heif.Colours | None:
    """By its `cICP`, of RGB in full range, as nothing else is in a PNG."""
    body = chunks.get(b"cICP", b"")[8:-4]
    if len(body) != 4 or body[2:] != b"\0\1":
        return None
    return heif.told_colours(body[0], body[1])


def _leave_colour_alone(data: bytearray, page: tiff.Directory) -> None:
    """Keep the decoder from multiplying the colours by an alpha they were not multiplied by.

    libtiff's 8 bit path does that to unassociated alpha, for good; told that it has been done, it leaves them.
    """
    tag = page.tags.get(tiff.EXTRA_SAMPLES)
    if tag and tag.number == 2 and tag.type == 3:
        data[tag.offset : tag.offset + 2] = struct.pack(">H" if page.big_endian else "<H", 1)


def _of_tiff(decoded: Pixels, page: tiff.Directory) -> Picture:
    """What the decoder made of a TIFF: of layouts with samples of less than 8 bits, and colours told otherwise."""
    bits, photometric = page.number(tiff.BITS) or 1, page.number(tiff.PHOTOMETRIC)
    samples = page.number(tiff.SAMPLES) or 1
    if bits > 8:
        raise BadInput(f"the TIFF has {samples} samples of {bits} bits, a layout that can only be read with loss")
    pixels, alpha, is_grey = _planes(decoded)
    lost = []
    if not (photometric == 2 and samples == 4):
        alpha = None  # the decoder's filling, as beside converted CMYK
    if samples == 2:
        lost.append("transparency")
    if photometric == 5:
        lost.append("CMYK colours")
    if alpha is not None and page.number(tiff.EXTRA_SAMPLES) == 1:
        pixels = _unmultiplied(pixels, alpha)
    return _tiff_picture(pixels, alpha, page, is_grey=is_grey, lost=lost)


def _of_samples(samples: Pixels, page: tiff.Directory) -> Picture:
    """[H, W, samples] as they stand in a TIFF."""
    count, colours = samples.shape[2], 3 if page.number(tiff.PHOTOMETRIC) == 2 else 1
    extra = page.numbers(tiff.EXTRA_SAMPLES)
    if count < colours or (colours == 1 and count > 2):
        raise BadInput(f"the TIFF has {count} samples in a pixel, of which {colours} are its colours; they must match")
    lost = []
    if samples.dtype.kind == "f" and samples.dtype.itemsize == 8:
        lost.append("64 bit floating point")  # 32 are kept
    if samples.dtype.kind == "f":
        samples = samples.astype(np.float32)
    planes = samples[..., :colours]
    alpha = None
    # One sample more than colours is taken for alpha where the file does not say what it is.
    if count > colours and (extra[:1] in ([1], [2]) or (colours == 3 and count == 4)):
        alpha = np.ascontiguousarray(samples[..., colours])
    if count > colours + (alpha is not None):
        lost.append("further samples")
    if page.number(tiff.PHOTOMETRIC) == 0:  # zero is white
        most = np.iinfo(planes.dtype).max if planes.dtype.kind == "u" else 1
        planes = planes.dtype.type(most) - planes
    pixels = np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))
    if alpha is not None and extra[:1] == [1]:
        pixels = _unmultiplied(pixels, alpha)
    turned = page.number(tiff.ORIENTATION) or 1
    pixels = np.ascontiguousarray(upright(pixels, turned))
    alpha = None if alpha is None else np.ascontiguousarray(upright(alpha, turned))
    return _tiff_picture(pixels, alpha, page, is_grey=colours == 1, lost=lost)


def _tiff_picture(
    pixels: Pixels, alpha: Pixels | None, page: tiff.Directory, *, is_grey: bool, lost: list[str]
) -> Picture:
    if tiff.EXIF in page.tags:
        lost.append("EXIF")
    icc = page.tags[tiff.ICC].raw if tiff.ICC in page.tags else None
    tags = {tag: page.tags[tag] for tag in tiff.ABOUT if tag in page.tags}
    dpi = _tiff_dpi(page)
    if (page.number(tiff.ORIENTATION) or 1) >= 5 and {282, 283} <= set(tags):  # the picture has been turned
        tags[282], tags[283] = tags[283], tags[282]
        dpi = dpi[::-1] if dpi else None
    # Floating point is light unless a profile says otherwise: so are the files of renderers, telescopes, stacked raws.
    is_linear = light.profile_curve_is_linear(icc) if icc else None
    return Picture(
        pixels=pixels,
        alpha=alpha,
        is_grey=is_grey,
        content_type="image/tiff",
        metadata=Metadata(
            xmp=page.tags[tiff.XMP].raw if tiff.XMP in page.tags else None,
            icc=icc,
            tiff_tags=tags,
            dpi=dpi,
        ),
        lost=tuple(lost),
        is_linear=pixels.dtype.kind == "f" if is_linear is None else is_linear,
    )


def _unmultiplied(pixels: Pixels, alpha: Pixels) -> Pixels:
    if pixels.dtype.kind == "f":
        divided: Pixels = np.divide(pixels, alpha[..., None], out=pixels.copy(), where=alpha[..., None] > 0)
        return divided
    most = int(np.iinfo(pixels.dtype).max)
    divisor = np.maximum(alpha, 1).astype(np.uint32)[..., None]
    straight = (pixels.astype(np.uint32) * most + divisor // 2) // divisor
    result: Pixels = np.minimum(straight, most).astype(pixels.dtype)
    return result


def _needs_curve(like: Picture, meta: Metadata, name: str) -> bool:
    """Whether a file of this format could not tell that its numbers are light, or hold them at all."""
    if like.pixels.dtype.kind == "f":
        return name != "tiff"
    return like.is_linear and not meta.icc and not (name == "png" and like.content_type == "image/png")


def _for_screens(pixels: Pixels, like: Picture, meta: Metadata, lost: list[str]) -> tuple[Pixels, Picture, Metadata]:
    """Pixels, what they are like, and what is kept, as whole numbers on the curve that readers assume."""
    scale = light.scale_of(like.pixels, is_linear=like.is_linear)
    assert scale is not None
    dtype, most = (np.uint8, 255) if pixels.dtype == np.uint8 else (np.uint16, 65535)

    def whole(values: NDArray[np.float32]) -> Pixels:
        return np.asarray(np.rint(values * np.float32(most)), dtype)

    alpha = like.alpha
    if pixels.dtype.kind == "f":
        lost.append("floating point")
        if scale.goes_beyond(pixels):
            lost.append("what is beyond black and white")
        if meta.icc and like.is_linear:
            lost.append("ICC profile")
            meta = replace(meta, icc=None)
        alpha = None if alpha is None else whole(np.clip(np.nan_to_num(alpha), 0, 1))
    shown = whole(scale.seen(pixels))
    return shown, replace(like, pixels=shown, alpha=alpha, is_linear=False), meta


def _file_planes(pixels: Pixels, like: Picture, *, keep_alpha: bool) -> Pixels:
    """[H, W] grey, [H, W, 3] BGR or [H, W, 4] BGRA, as the encoder wants them."""
    grey = None
    if like.is_grey and pixels.dtype.kind == "f":
        grey = pixels.mean(axis=2, dtype=np.float64).astype(pixels.dtype)  # of three equal ones exactly the one
    elif like.is_grey:
        grey = ((pixels.sum(axis=2, dtype=np.uint32) + 1) // 3).astype(pixels.dtype)
    if like.alpha is None or not keep_alpha:
        return grey if grey is not None else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if grey is not None:
        return np.dstack([grey, grey, grey, like.alpha])  # the encoder has no grey with alpha
    return np.dstack([pixels[..., ::-1], like.alpha])


def _to_bits(planes: Pixels, bits: int) -> Pixels:
    most = (1 << bits) - 1
    return ((planes.astype(np.uint32) * most + 32767) // 65535).astype(np.uint16)


def _from_bits(planes: Pixels, bits: int) -> Pixels:
    """What `_to_bits` takes back as it was."""
    most = (1 << bits) - 1
    return ((planes.astype(np.uint32) * 65535 + most // 2) // most).astype(np.uint16)


def _to_8_bit(planes: Pixels) -> Pixels:
    return ((planes.astype(np.uint32) + 128) // 257).astype(np.uint8)


def upright(planes: Pixels, orientation: int) -> Pixels:
    """Turn a picture as its EXIF orientation says it is to be seen."""
    if orientation in (5, 6, 7, 8):
        planes = planes.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        planes = planes[::-1]
    if orientation in (2, 3, 6, 7):
        planes = planes[:, ::-1]
    return planes


def _fitting(meta: Metadata, name: str, grey: bool, lost: list[str]) -> Metadata:
    """What of the metadata the format holds; the rest is named in `lost`."""
    keeps = {
        "exif": name in _KEEPS_METADATA,
        "xmp": name in _KEEPS_METADATA or name == "tiff",
        "icc": name in _KEEPS_METADATA or name == "tiff",
    }
    if name == "jpeg":
        keeps = {kind: len(getattr(meta, kind) or b"") <= room for kind, room in _JPEG_ROOM.items()}
        keeps["xmp"] = len(meta.xmp or b"") + len(_JPEG_XMP) <= _JPEG_ROOM["xmp"]
    # A profile speaks of the colours in the file: one for CMYK, from a CMYK input, would now be wrong.
    keeps["icc"] = keeps["icc"] and (meta.icc or b"")[16:20] == (b"GRAY" if grey else b"RGB ")
    for kind, words in _WORDS.items():
        if block := getattr(meta, kind):
            keeps[kind] = keeps[kind] and _SOUND[kind](block)
            if not keeps[kind]:
                lost.append(words)
    said = [_PNG_KEPT[kind] for kind, _ in meta.png_chunks] if name != "png" else []
    said += ["colour space"] if meta.colours and name not in _KEEPS_COLOURS else []
    if name != "tiff":
        said += ["resolution" if tag in _TIFF_SCALE else "text" for tag in meta.tiff_tags]
    if name != "jpeg":
        said += [beside.JPEG_KEPT[marker] for marker, _ in meta.jpeg_segments]
    if meta.exr and name != "exr":
        said += ["attributes"] if meta.exr.says_more else []
        said += [] if meta.exr.is_plain else ["colour space"]
    if meta.dpi:
        said = [words for words in said if words != "resolution"] + ["resolution"] * (name not in _KEEPS_SCALE)
    lost += sorted({words for words in said if words})
    return Metadata(
        exif=meta.exif if keeps["exif"] else None,
        xmp=meta.xmp if keeps["xmp"] else None,
        icc=meta.icc if keeps["icc"] else None,
        png_chunks=meta.png_chunks,
        tiff_tags=meta.tiff_tags,
        jpeg_segments=meta.jpeg_segments,
        dpi=meta.dpi,
        colours=meta.colours if name in _KEEPS_COLOURS else None,
        exr=meta.exr,
    )


def _params(name: str, quality: int | None, dtype: "np.dtype[Any]", depth: int) -> list[int]:
    if name == "png":
        # Measured on a 1080p photograph, one core: 85 ms and 2.9 MB so, 125 ms and 2.7 MB with zlib's own strategy;
        # in 16 bit 175 ms and 9.7 MB against 425 ms and 9.8 MB.
        return [
            *(cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
            *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB),
        ]
    if name == "jpeg":
        wanted = quality or _JPEG_QUALITY
        # Halved chroma would blur what was just restored; from 90 on, a caller shows that bytes matter less.
        sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if wanted >= 90 else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
        return [cv2.IMWRITE_JPEG_QUALITY, wanted, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    if name == "avif":
        return [
            *(cv2.IMWRITE_AVIF_QUALITY, quality or _AVIF_QUALITY, cv2.IMWRITE_AVIF_SPEED, _AVIF_SPEED),
            *(cv2.IMWRITE_AVIF_DEPTH, 8 if dtype == np.uint8 else depth),
        ]
    if name == "webp":
        return [cv2.IMWRITE_WEBP_QUALITY, quality or _WEBP_QUALITY]
    if name == "tiff":
        # LZW, the default, makes 16 bit photographs larger than they are raw. Differences of floating point numbers
        # would save a fifth, and are not read by all that read TIFF.
        is_whole = dtype.kind == "u"
        return [
            *(cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE),
            *(
                cv2.IMWRITE_TIFF_PREDICTOR,
                cv2.IMWRITE_TIFF_PREDICTOR_HORIZONTAL if is_whole else cv2.IMWRITE_TIFF_PREDICTOR_NONE,
            ),
        ]
    return []


def _blocks(meta: Metadata, name: str) -> dict[str, bytes]:
    """The metadata as the encoder takes it."""
    if name not in _KEEPS_METADATA:
        return {}
    # It takes XMP as it stands in the file: behind its name in JPEG, and ended by a zero in PNG.
    xmp = {"jpeg": _JPEG_XMP + (meta.xmp or b""), "png": (meta.xmp or b"") + b"\0"}.get(name, meta.xmp)
    named = {"exif": meta.exif, "xmp": xmp if meta.xmp else None, "icc": meta.icc}
    return {what: block for what, block in named.items() if block}


def _refused_blocks(name: str, planes: Pixels, params: list[int], blocks: dict[str, bytes]) -> list[str]:
    """Those that the encoder will not have, or leaves out without a word; a pixel is enough to see it.

    It checks profiles, and would refuse the picture for a broken one.
    """
    refused = []
    corner = np.ascontiguousarray(planes[:1, :1])
    for what, block in blocks.items():
        made = _encode(IMAGES[name].suffix, corner, params, {what: block})
        kinds = {kind for kind, _, _ in png_chunks(BytesIO(made))} if made and name == "png" else None
        if made is None or (kinds is not None and kinds.isdisjoint(_PNG_CHUNKS[what])):
            refused.append(what)
    return refused


def _with_png_chunks(encoded: bytes, meta: Metadata, dpi: tuple[float, float] | None) -> bytes:
    chunks = [chunk for _, chunk in meta.png_chunks]
    if dpi and not any(kind == b"pHYs" for kind, _ in meta.png_chunks):
        chunks.append(
            _png_chunk(b"pHYs", struct.pack(">IIB", *(min(round(one / _INCH_M), 2**31 - 1) for one in dpi), 1))
        )
    if meta.colours and not any(kind == b"cICP" for kind, _ in meta.png_chunks):
        chunks.append(_png_chunk(b"cICP", bytes([*meta.colours, 0, 1])))  # RGB, all of its range
    return encoded[:_PNG_AFTER_HEADER] + b"".join(chunks) + encoded[_PNG_AFTER_HEADER:]


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _tiff_scale(dpi: tuple[float, float]) -> dict[int, tiff.Tag]:
    tags = {}
    for tag, value in zip(_TIFF_SCALE, dpi, strict=False):
        exact = Fraction(value).limit_denominator(10_000)
        if 0 < exact.numerator <= 0xFFFFFFFF:
            tags[tag] = tiff.Tag(5, 1, struct.pack("<II", exact.numerator, exact.denominator), 0)
    return {**tags, _TIFF_SCALE[2]: tiff.Tag(3, 1, struct.pack("<H", 2), 0)} if len(tags) == 2 else {}


def _lossless_webp(planes: Pixels, blocks: dict[str, bytes]) -> bytes | None:
    """With the colours under full transparency, which the other encoder leaves out."""
    if planes.ndim == 2:
        planes = np.dstack([planes] * 3)
    ordered = planes[..., [2, 1, 0, 3]] if planes.shape[2] == 4 else planes[..., ::-1]
    file = BytesIO()
    more = {"exif": blocks.get("exif", b""), "icc_profile": blocks.get("icc", b""), "xmp": blocks.get("xmp", b"")}
    try:
        Image.fromarray(np.ascontiguousarray(ordered)).save(file, "WEBP", lossless=True, exact=True, method=2, **more)
    except (OSError, ValueError):  # it is too large for the format
        return None
    return file.getvalue()


def _encode(suffix: str, planes: Pixels, params: list[int], blocks: dict[str, bytes]) -> bytes | None:
    raw = [np.frombuffer(block, np.uint8) for block in blocks.values()]
    try:
        done, encoded = cv2.imencodeWithMetadata(suffix, planes, [_CODES[what] for what in blocks], raw, params)
    except cv2.error:
        return None
    return bytes(encoded) if done else None


def _with_tiff_tags(encoded: bytes, meta: Metadata, *, has_alpha: bool) -> bytes:
    extra = dict(meta.tiff_tags)
    if has_alpha:
        extra[tiff.EXTRA_SAMPLES] = tiff.Tag(3, 1, struct.pack("<H", 2), 0)  # alpha that colours are not multiplied by
    if meta.icc:
        extra[tiff.ICC] = tiff.Tag(7, len(meta.icc), meta.icc, 0)
    if meta.xmp:
        extra[tiff.XMP] = tiff.Tag(1, len(meta.xmp), meta.xmp, 0)
    return tiff.with_tags(encoded, extra) if extra else encoded
