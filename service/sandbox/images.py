"""Pixels out of a stranger's image file, decoded elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import BadInput
from service.media import exr, tiff
from service.media.blocks import JPEG_KEPT
from service.media.exr_pixels import Kept
from service.media.formats import BECOMES, IMAGES
from service.media.image import Metadata, Picture
from service.media.sniff import check_pixels, probe_image
from service.sandbox.decoder import Decoder, Shared
from service.sandbox.wire import Message
from service.settings import Settings

HEEDED = ("max_image_pixels",)  # the settings that decoding an image heeds
_MOST_DPI = 2.0**40
_COLOURS = 256  # numbers for each of primaries and transfer that H.273 has
_CONTENT_TYPES = {*BECOMES, *(spec.content_type for spec in IMAGES.values())}
_TYPES = {name: np.dtype(name) for name in ("uint8", "uint16", "float32")}


def read_image(path: Path, settings: Settings, page: int = 0) -> Picture:
    """`service.media.image.read_image` in a process of its own, whose death is a `BadInput` like the others.

    Raises:
        UnknownFormat, FrameTooLarge, BadInput: as there.
        DecoderLost: the decoder was ended from outside.
    """
    with path.open("rb") as file:
        facts = probe_image(file, settings)  # what a header tells needs no decoder, and no process
        told = {"settings": {name: getattr(settings, name) for name in HEEDED}, "page": page}
        with Decoder("image", [file.fileno()], told, settings) as decoder:
            said = decoder.receive()
            try:
                height, width, dtype, has_alpha = _measured(said)
                check_pixels("image", width, height, settings.max_image_pixels)
                metadata = _metadata(said)
                content_type = str(said.said["content_type"])
                is_grey, is_linear = bool(said.said["is_grey"]), bool(said.said["is_linear"])
                is_lossless, depth = bool(said.said["is_lossless"]), said.said["depth"]
                is_multiplied = bool(said.said["is_multiplied"])
                if metadata.exr and (metadata.exr.size != (width, height) or dtype != np.float32):
                    raise ValueError(metadata.exr.window)
                if depth not in (None, 10, 12) or (depth and dtype != np.uint16):
                    raise ValueError(f"{depth} bits")
                lost = tuple(str(words) for words in said.said["lost"])
                if content_type not in _CONTENT_TYPES:
                    raise ValueError(content_type)
            except (KeyError, TypeError, ValueError, IndexError) as err:
                raise BadInput("the decoder gave no picture") from err
            memory = Shared(height * width * (3 + has_alpha) * dtype.itemsize)
            try:
                decoder.give(memory.descriptor)
                decoder.receive()
            finally:
                memory.close_descriptor()
    pixels = memory.array((height, width, 3), dtype)
    return Picture(
        pixels=pixels,
        alpha=memory.array((height, width), dtype, pixels.nbytes) if has_alpha else None,
        is_grey=is_grey,
        content_type=content_type,
        metadata=metadata,
        lost=lost,
        is_linear=is_linear,
        depth=depth,
        pages=facts.pages or 1,
        is_lossless=is_lossless,
        is_multiplied=is_multiplied,
    )


def _measured(message: Message) -> tuple[int, int, "np.dtype[np.generic]", bool]:
    height, width, planes = (int(side) for side in message.said["shape"])
    if min(height, width) < 1 or planes != 3:
        raise ValueError(f"{height}x{width}x{planes}")
    return height, width, _TYPES[message.said["type"]], bool(message.said["has_alpha"])


def _metadata(message: Message) -> Metadata:
    """Blocks come in a row: EXIF, XMP, ICC, then PNG's chunks, TIFF's values, JPEG's segments, OpenEXR's attributes."""
    blocks = [bytes(block) for block in message.blocks]
    exif, xmp, icc, *others = blocks
    kinds = [bytes.fromhex(kind) for kind in message.said["png_chunks"]]
    tags = [tuple(int(part) for part in tag) for tag in message.said["tiff_tags"]]
    markers = [int(marker) for marker in message.said["jpeg_segments"]]
    exr_said = message.said["exr"]
    attributes = exr_said["attributes"] if exr_said else []
    if len(others) != len(kinds) + len(tags) + len(markers) + len(attributes) or set(markers) - set(JPEG_KEPT):
        raise ValueError(f"{len(blocks)} blocks")
    values = others[len(kinds) : len(kinds) + len(tags)]
    segments = others[len(kinds) + len(tags) : len(others) - len(attributes)]
    dpi = message.said["dpi"]
    if dpi is not None:
        across, down = (float(one) for one in dpi)
        dpi = (across, down)
        if not all(0 < one < _MOST_DPI for one in dpi):
            raise ValueError(f"{dpi} dots per inch")
    colours = message.said["colours"]
    if colours is not None:
        primaries, transfer = (int(number) for number in colours)
        colours = (primaries, transfer)
        if not all(0 <= number < _COLOURS for number in colours):
            raise ValueError(f"colours are {colours}")
    return Metadata(
        exif=exif or None,
        xmp=xmp or None,
        icc=icc or None,
        png_chunks=tuple(zip(kinds, others, strict=False)),
        tiff_tags={
            number: tiff.Tag(kind, count, raw, offset)
            for (number, kind, count, offset), raw in zip(tags, values, strict=True)
        },
        jpeg_segments=tuple(zip(markers, segments, strict=True)),
        dpi=dpi,
        colours=colours,
        exr=_exr(exr_said, others[len(others) - len(attributes) :]) if exr_said else None,
    )


def _exr(said: dict[str, Any], values: Sequence[bytes]) -> Kept:
    left, top, right, bottom = (int(side) for side in said["window"])
    names = [(bytes.fromhex(name), bytes.fromhex(kind)) for name, kind in said["attributes"]]
    kept = Kept(
        window=(left, top, right, bottom),
        is_half=bool(said["is_half"]),
        compression=int(said["compression"]),
        layer=str(said["layer"]),
        is_plain=bool(said["is_plain"]),
        attributes=tuple(exr.Attribute(*name, raw) for name, raw in zip(names, values, strict=True)),
    )
    if not all(map(exr.is_sound, kept.attributes)) or len({name for name, _ in names}) < len(names):
        raise ValueError(names)
    if max(map(abs, kept.window)) > exr.FARTHEST_PX or len(kept.layer) > exr.MOST_LAYER or "\0" in kept.layer:
        raise ValueError(f"{kept.window}, {kept.layer[:99]!r}")
    return kept
