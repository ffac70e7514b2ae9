"""Makes the pictures and videos that tests are about: small, seeded, and odd in one way each."""

import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]

A_RATE = Fraction(30000, 1001)


def photo(height: int = 48, width: int = 64, *, bits: int = 8, seed: int = 1, moment: float = 0.0) -> Pixels:
    """[H, W, 3], RGB: soft waves of colour, with a little texture; `moment` moves them."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack(
        [
            0.5 + 0.30 * np.sin(columns / 21 + rows / 37 + moment),
            0.5 + 0.30 * np.sin(rows / 17 + 1 - moment),
            0.5 + 0.25 * np.cos(columns / 29 - rows / 23 + 2 * moment),
        ],
        axis=-1,
    )
    texture = np.random.default_rng(seed).normal(0, 0.01, waves.shape)
    most = (1 << bits) - 1
    return (np.clip(waves + texture, 0, 1) * most).round().astype(np.uint8 if bits == 8 else np.uint16)


def encoded(suffix: str, planes: Pixels, params: Sequence[int] = ()) -> bytes:
    """A file as OpenCV writes it; planes are BGR, BGRA or grey."""
    done, data = cv2.imencode(suffix, planes, list(params))
    assert done
    return data.tobytes()


def bgr(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[..., ::-1])


def exif(orientation: int) -> bytes:
    """A TIFF of one tag."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHH", 1, 274, 3, 1, orientation, 0) + bytes(4)


def icc(space: bytes = b"RGB ", gamma: float | None = None) -> bytes:
    """The head of a colour profile, as much as encoders look at, with what every profile has, and curves if told."""
    tags = [(name, b"text\0\0\0\0made for a test\0") for name in (b"desc", b"cprt")]
    if gamma is not None:
        curve = struct.pack(">4s4xIH", b"curv", 1, round(gamma * 256))
        tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table = struct.pack(">I", len(tags))
    at, values = 128 + 4 + 12 * len(tags), b""
    for name, value in tags:
        value = value.ljust(-(-len(value) // 4) * 4, b"\0")
        table += struct.pack(">4sII", name, at + len(values), len(value))
        values += value
    size = at + len(values)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x04200000, b"mntr", space, b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + table + values


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """A PNG of any colour type; `rows` are unfiltered, without their leading filter byte."""
    stride = len(rows) // height if height else 0
    lines = b"".join(b"\0" + rows[n * stride : (n + 1) * stride] for n in range(height))
    body = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in body
    )


def tiff(
    planes: Pixels,
    photometric: int,
    *,
    order: str = "<",
    big: bool = False,
    sample_format: int = 1,
    extra: dict[int, tuple[int, Sequence[int]]] | None = None,
) -> bytes:
    """An uncompressed TIFF of one strip, classic or BigTIFF; `extra` maps a tag to its type and values."""
    height, width = planes.shape[:2]
    samples = planes.shape[2] if planes.ndim == 3 else 1
    bits = 8 * planes.dtype.itemsize
    data = planes.astype(planes.dtype.newbyteorder(order)).tobytes()
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [0]),
        277: (3, [samples]),
        278: (4, [height]),
        279: (4, [len(data)]),
        339: (3, [sample_format] * samples),
        **(extra or {}),
    }
    word, count, head = (8, "Q", 16) if big else (4, "I", 8)
    table_at = head
    values_at = table_at + (8 if big else 2) + len(tags) * (20 if big else 12) + word
    codes = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 7: "B"}
    sizes = {tag: struct.calcsize(codes[kind]) * len(values) for tag, (kind, values) in tags.items()}
    pixels_at = values_at + sum(size + size % 2 for size in sizes.values() if size > word)
    tags[273] = (4, [pixels_at])
    table, beyond = b"", b""
    for tag in sorted(tags):
        kind, values = tags[tag]
        raw = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
        table += struct.pack(f"{order}HH{count}", tag, kind, len(values) // (2 if kind == 5 else 1))
        if len(raw) <= word:
            table += raw.ljust(word, b"\0")
        else:
            table += struct.pack(order + count, values_at + len(beyond))
            beyond += raw + b"\0" * (len(raw) % 2)
    mark = b"II" if order == "<" else b"MM"
    start = struct.pack(order + "HHHQ", 43, 8, 0, table_at) if big else struct.pack(order + "HI", 42, table_at)
    entries = struct.pack(order + ("Q" if big else "H"), len(tags))
    return mark + start + entries + table + bytes(word) + beyond + data


def lzw_tiff(planes: Pixels, tile: tuple[int, int] | None) -> bytes:
    """[H, W, 3] float32 in strips of 7 rows, or in tiles, packed by LZW without finding anything to pack."""
    height, width = planes.shape[:2]
    down, across = tile or (7, width)
    offsets, counts, data = [], [], b""
    for top in range(0, height, down):
        for left in range(0, width, across):
            cut = planes[top : top + down, left : left + across]
            if tile:
                cut = np.pad(cut, ((0, down - len(cut)), (0, across - cut.shape[1]), (0, 0)))
            codes = np.full(2 * cut.nbytes + 1, 256, np.uint16)  # "clear" before each byte, so that all have nine bits
            codes[1::2] = np.frombuffer(np.ascontiguousarray(cut).tobytes(), np.uint8)
            codes[-1] = 257
            bits = codes[:, None] >> np.arange(8, -1, -1) & 1
            offsets.append(8 + len(data))
            counts.append(-(-bits.size // 8))
            data += np.packbits(bits.astype(np.uint8)).tobytes()
    where = {322: (across,), 323: (down,), 324: offsets, 325: counts} if tile else {}
    where = where or {273: offsets, 278: (down,), 279: counts}
    tags: dict[int, Sequence[int]] = {256: [width], 257: [height], 258: [32], 259: [5], 262: [2], 277: [3], 339: [3]}
    tags = {**tags, 258: [32] * 3, **where}
    values_at = 8 + len(data) + 2 + 12 * len(tags) + 4
    table, beyond = b"", b""
    for tag, values in sorted(tags.items()):
        raw = struct.pack(f"<{len(values)}I", *values)
        place = raw if len(raw) == 4 else struct.pack("<I", values_at + len(beyond))
        beyond += raw if len(raw) > 4 else b""
        table += struct.pack("<HHI", tag, 4, len(values)) + place
    directory = struct.pack("<H", len(tags)) + table + bytes(4) + beyond
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def moments(count: int, step: int = 1001) -> list[int]:
    """Even times, in ticks of 1/30000 s."""
    return [step * n for n in range(count)]


UNEVEN = [0, 1001, 1500, 4004, 4005, 9009, 12012, 20020, 21021, 30030]  # a variable frame rate


def make_video(
    path: Path,
    *,
    muxer: str = "mp4",
    encoder: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (80, 64),
    pts: Sequence[int] = tuple(range(0, 12012, 1001)),
    time_base: Fraction = Fraction(1, 30000),
    options: dict[str, str] | None = None,
    audio: str | None = None,
    video: bool = True,
    rotation: int | None = None,
    tags: dict[str, int] | None = None,
    aspect: Fraction | None = None,
    metadata: dict[str, str] | None = None,
    subtitle: str | None = None,
) -> Path:
    """Encode moving waves, with a tone if `audio` names a codec, and subtitles if `subtitle` does.

    Args:
        size: Width and height.
        tags: Of colour, as the encoder's context names them.
    """
    width, height = size
    exact = {"movie_timescale": "30000"} if muxer in ("mp4", "mov") else {}
    with av.open(str(path), "w", format=muxer, container_options=exact) as out:
        out.metadata.update(metadata or {})
        packets = []
        if video:
            stream = out.add_stream(encoder, rate=A_RATE, options=options or {})
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = width, height, pixel_format
            context.time_base = stream.time_base = time_base
            for name, value in (tags or {}).items():
                setattr(context, name, value)
            if aspect:
                context.sample_aspect_ratio = aspect
            if rotation is not None:
                stream.set_display_rotation(rotation)
        if audio:
            tone = out.add_stream(audio, rate=48000)
            tone.codec_context.layout = "mono"
        if subtitle:
            out.add_stream(subtitle)
        out.start_encoding()
        if video:
            deep = stream.codec_context.format.components[0].bits > 8
            for n, moment in enumerate(pts):
                pixels = photo(height, width, bits=16 if deep else 8, seed=n, moment=n / 10)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb48le" if deep else "rgb24")
                matrix, full = stream.codec_context.colorspace, stream.codec_context.color_range
                frame = frame.reformat(
                    format=pixel_format,
                    dst_colorspace={1: 1, 9: 9}.get(matrix, 5),
                    dst_color_range=full or 1,
                    threads=1,
                )
                frame.colorspace, frame.color_range = matrix, full
                frame.pts, frame.time_base = moment, time_base
                packets += stream.encode(frame)
            packets += stream.encode(None)
        if audio:
            size_samples = tone.codec_context.frame_size or 1024
            for n in range(20):
                wave = np.sin(np.arange(n * size_samples, (n + 1) * size_samples) / 20)
                sound = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = 48000, n * size_samples, Fraction(1, 48000)
                packets += tone.encode(sound)
            packets += tone.encode(None)
        for packet in packets:
            out.mux(packet)
    return path


def timestamps(path: Path) -> list[Fraction]:
    """When each frame of the picture track is shown, in seconds, in order; from the packets, not the decoder."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return sorted(packet.pts * packet.time_base for packet in container.demux(stream) if packet.pts is not None)


def packets_of(path: Path, kind: str) -> list[list[tuple[bytes, Fraction]]]:
    """Bytes and time of each packet, for each track of a kind."""
    with av.open(str(path)) as container:
        tracks = [stream for stream in container.streams if stream.type == kind]
        found: dict[int, list[tuple[bytes, Fraction]]] = {stream.index: [] for stream in tracks}
        for packet in container.demux(tracks) if tracks else ():
            if packet.pts is not None:
                found[packet.stream.index].append((bytes(packet), packet.pts * packet.time_base))
        return list(found.values())


def planes_of(path: Path) -> list[list[Pixels]]:
    """The decoder's own planes, frame by frame, without conversion."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            planes = []
            for plane, component in zip(frame.planes, frame.format.components, strict=False):
                kind = np.uint16 if component.bits > 8 else np.uint8
                lines = np.frombuffer(plane, kind).reshape(plane.height, -1)
                planes.append(lines[:, : plane.width].copy())
            frames.append(planes)
    return frames
