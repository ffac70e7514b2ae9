"""What would somebody send who wants the service to die, to hang, to fill up, or to read a file for him?"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()  # teaches Pillow to write HEIC, by the name of HEIF

IMAGE, VIDEO = "/denoise/image", "/jobs/video"
REFUSED_TEXTS = {
    "an HLS playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
    "a DASH manifest": "<?xml version='1.0'?><MPD><BaseURL>{url}</BaseURL></MPD>",
    "a concat list": "ffconcat version 1.0\nfile {url}\n",
    "an SDP description": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=control:{url}\n",
    "an SVG": "<svg xmlns='http://www.w3.org/2000/svg'><image href='{url}'/></svg>",
    "an MVG script": "push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 0,0 '{url}'\npop graphic-context\n",
    "PostScript": "%!PS\n({url}) (r) file pop\n",
    "a PDF": "%PDF-1.7\n1 0 obj<</Type/Catalog/URI({url})>>endobj\n",
}


@dataclass(frozen=True)
class Attack:
    """A request that is to be refused, and how."""

    name: str
    door: str
    content: bytes
    statuses: tuple[int, ...]  # of the answer, or of the failed job's problem
    file_name: str = "in.bin"
    content_type: str = "application/octet-stream"


def attacks(url: str, secret_path: str) -> Iterator[Attack]:
    """All of them; `url` and `secret_path` are what the service must not touch."""
    for name, text in REFUSED_TEXTS.items():
        for target in (url, f"file://{secret_path}"):
            for door in (IMAGE, VIDEO):
                content = text.format(url=target).encode()
                yield Attack(f"{name} to {target[:4]} at {door}", door, content, (415,), "clip.m3u8", "video/mp4")
    yield from _images()
    yield from _videos(url, secret_path)


def _images() -> Iterator[Attack]:
    yield Attack("nothing", IMAGE, b"", (422,))
    yield Attack("a PNG of 10 gigapixels, declared", IMAGE, png(100_000, 100_000, b""), (413,))
    yield Attack("a PNG of the largest size there is", IMAGE, png(2**31 - 1, 2**31 - 1, b""), (413,))
    yield Attack("a PNG of no size", IMAGE, png(0, 0, b""), (422,))
    yield Attack("a PNG whose header comes second", IMAGE, b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"x\0y"), (422,))
    yield Attack("a PNG that inflates to half a gigabyte", IMAGE, png(8000, 8000, zeros(8000 * 64001), 16, 6), (422,))
    yield Attack("an animated PNG", IMAGE, png(8, 8, zeros(8 * 25), more=chunk(b"acTL", bytes(8))), (422,))
    yield Attack("a TIFF of 2500 megapixels, declared", IMAGE, tiff(50_000, 50_000, b""), (413,))
    yield Attack("a TIFF that inflates to 300 megabytes", IMAGE, tiff(10_000, 10_000, zeros(300_000_000)), (422,))
    yield Attack("a TIFF whose directory is far away", IMAGE, b"II*\0" + struct.pack("<I", 2**32 - 2), (422,))
    yield Attack("a TIFF of 65535 tags", IMAGE, b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(65535 * 12), (422,))
    yield Attack("a BigTIFF of 2^63 tags", IMAGE, b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2**63), (422,))
    yield Attack("a JPEG of 65535 pixels a side", IMAGE, _jpeg_header(65535, 65535), (413,))
    yield Attack("a JPEG that is all padding", IMAGE, b"\xff\xd8" + b"\xff" * 100_000, (422,))
    yield Attack("a JPEG of empty segments", IMAGE, b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000, (422,))
    yield Attack("a WebP of 268 megapixels, declared", IMAGE, _webp(16384, 16384), (413,))
    yield Attack("a BMP of 2^31 pixels a side", IMAGE, _bmp(2**31 - 1, 2**31 - 1), (413,))
    yield Attack("a BMP of negative width", IMAGE, _bmp(-5, 5), (422,))
    yield from _tiffs()
    yield from _exrs()
    yield from _avifs()
    yield Attack("a GIF", IMAGE, b"GIF89a" + bytes(20), (415,))
    yield Attack("a zip of zips", IMAGE, _zip(), (415,), "a.png", "image/png")
    yield Attack("a video at the door for images", IMAGE, clip(), (415,), "a.png", "image/png")


def _exrs() -> Iterator[Attack]:
    yield Attack("an OpenEXR of 2500 megapixels, declared", IMAGE, exr(50_000, 50_000), (413,))
    yield Attack("an OpenEXR whose windows lie 2^31 apart", IMAGE, exr(2**31 - 1, 2**31 - 1), (422,))
    yield Attack("an OpenEXR of 100 megapixels in no bytes", IMAGE, exr(10_000, 10_000), (422,))
    yield Attack("an OpenEXR whose lines lie behind its end", IMAGE, exr(64, 64, struct.pack("<Q", 2**63)), (422,))
    start = exr(64, 64)[:8]
    yield Attack("an OpenEXR with an attribute of 4 GB", IMAGE, start + b"a\0string\0\xff\xff\xff\xff", (422,))
    yield Attack("an OpenEXR of 100000 attributes", IMAGE, start + b"a\0i\0\0\0\0\0" * 100_000, (422,))
    yield Attack("an OpenEXR with a name of a megabyte", IMAGE, start + b"a" * 1_000_000, (422,))


def _tiffs() -> Iterator[Attack]:
    small = photo_pages(1)
    ring = bytearray(photo_pages(3))
    struct.pack_into("<I", ring, _last_link(ring), struct.unpack_from("<I", ring, 4)[0])
    yield Attack("a TIFF whose pages go round", IMAGE, bytes(ring), (422,))
    yield Attack("a TIFF of 1001 pages", IMAGE, photo_pages(1001), (422,))
    yield Attack("a TIFF of many pages that share their pixels", IMAGE, photo_pages(900, 400, 400), (413,))
    yield Attack("a TIFF of floats, 256 megabytes of them", IMAGE, _floats(8000, 8000, zeros(256 << 20)), (422,))
    yield Attack(
        "a TIFF of one tile larger than all", IMAGE, _floats(64, 64, b"", {322: 1 << 30, 323: 1 << 30}), (422,)
    )
    yield Attack("a TIFF of tiles without any size", IMAGE, _floats(64, 64, b"", {322: 0, 323: 0}), (422,))
    yield Attack("a TIFF of 65535 samples a pixel", IMAGE, _floats(64, 64, b"", {277: 65535}), (422,))
    yield Attack(
        "a TIFF whose strips are elsewhere", IMAGE, _floats(64, 64, b"", {273: 2**32 - 1, 279: 2**32 - 1}), (422,)
    )
    yield Attack("a TIFF of strips of no rows", IMAGE, _floats(64, 64, b"", {278: 0}), (422,))
    yield Attack("a TIFF of floats packed by nonsense", IMAGE, _floats(64, 64, bytes(range(256)) * 9, {259: 5}), (422,))
    yield Attack("a TIFF of 24 bit floats", IMAGE, _floats(64, 64, b"", {258: 24}), (422,))
    yield Attack("a TIFF whose next page is beyond its end", IMAGE, _with_link(small, 2**32 - 2), (422,))


def _avifs() -> Iterator[Attack]:
    good = photo("AVIF")
    size = good.index(b"ispe") + 8
    for name, width, height, statuses in (
        ("an AVIF of 10 gigapixels, declared", 100_000, 100_000, (413,)),
        ("an AVIF of no size", 0, 0, (422,)),
    ):
        lying = good[:size] + struct.pack(">II", width, height) + good[size + 8 :]
        yield Attack(name, IMAGE, lying, statuses)
    moving = io.BytesIO()
    frame = Image.open(io.BytesIO(good))
    frame.save(moving, "AVIF", save_all=True, append_images=[frame.copy()])
    yield Attack("an AVIF that moves", IMAGE, moving.getvalue(), (422,))
    head = b"\0\0\0\x14ftypavif\0\0\0\0avif"
    yield Attack("an AVIF that is nothing but its name", IMAGE, head, (422,))
    yield Attack("an AVIF whose header has 4 gigabytes", IMAGE, head + b"\xff\xff\xff\xffmeta" + bytes(100), (422,))
    yield Attack("an AVIF of empty boxes", IMAGE, head + b"\0\0\0\x08free" * 100_000, (422,))
    boxes = bytes(4) + b"\0\0\0\x08free" * 100_000
    yield Attack(
        "an AVIF whose header is empty boxes",
        IMAGE,
        head + struct.pack(">I4s", 8 + len(boxes), b"meta") + boxes,
        (422,),
    )
    yield Attack("a HEIC that is nothing but its name", IMAGE, head.replace(b"avif", b"heic"), (422,))
    yield Attack("an AVIF without its pixels", IMAGE, good[: good.index(b"mdat") + 4], (422,))


def photo_pages(count: int, width: int = 8, height: int = 8) -> bytes:
    """A TIFF of pages that all have the same pixels."""
    pixels = bytes(range(64)) * (width * height // 64)
    made = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    for number in range(count):
        tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(pixels)}
        directory = struct.pack("<H", len(tags))
        directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        following = len(made) + len(directory) + 4 if number < count - 1 else 0
        made += directory + struct.pack("<I", following)
    return made


def _last_link(pages: bytes | bytearray) -> int:
    return len(pages) - 4


def _with_link(pages: bytes, offset: int) -> bytes:
    return pages[: _last_link(pages)] + struct.pack("<I", offset)


def _floats(width: int, height: int, packed: bytes, changed: dict[int, int] | None = None) -> bytes:
    """A grey TIFF of 32 bit floats in one deflated strip, or in a tile if it is given the size of one."""
    changed = changed or {}
    where = (324, 325) if 322 in changed else (273, 279)
    tags = {256: width, 257: height, 258: 32, 259: 8, 262: 1, where[0]: 8, 277: 1, 278: height, where[1]: len(packed)}
    tags = {**tags, 339: 3, **changed}
    packed += b"\0" * (len(packed) % 2)
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + bytes(4)


def burdened() -> Iterator[tuple[str, bytes, str]]:
    """Good pictures with something bad beside their pixels: what it is, the file, and what may be lost of it."""
    profile = bytearray(128)
    struct.pack_into(">I", profile, 0, 2**31)
    profile[36:40] = b"acsp"
    bad_profile = bytes(profile) + b"\xff\xff\xff\xff" + bytes(64)
    ring = b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"
    beyond = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    for form in ("PNG", "JPEG", "WEBP", "AVIF"):
        yield f"a profile of endless tags in a {form}", _saved(form, icc_profile=bad_profile), "ICC profile"
        yield f"EXIF that begins beyond its end in a {form}", _saved(form, exif=beyond), "EXIF"
        yield f"EXIF that is a ring in a {form}", _saved(form, exif=ring), ""
    bomb = chunk(b"iCCP", b"a\0\0" + zeros(64 << 20))
    yield "a profile that inflates to 64 megabytes", png(8, 8, zeros(8 * 25), more=bomb), "ICC profile"
    text = chunk(b"zTXt", b"a\0\0" + zeros(64 << 20)) * 3
    yield "texts that inflate to 192 megabytes", png(8, 8, zeros(8 * 25), more=text), ""


def _saved(form: str, **more: bytes) -> bytes:
    file = io.BytesIO()
    plain = Image.open(io.BytesIO(photo("PNG", 32)))
    plain.save(file, form, **(more if form != "AVIF" or "exif" not in more else {}))
    return file.getvalue()


def _videos(url: str, secret_path: str) -> Iterator[Attack]:
    yield Attack("an image at the door for videos", VIDEO, photo("PNG"), (415,), "a.mp4", "video/mp4")
    yield Attack("a playlist that says it is an MP4", VIDEO, _disguised(url), (415, 422))
    yield Attack("an MP4 whose frames are in another file", VIDEO, elsewhere(f"file://{secret_path}"), (422,))
    yield Attack("an MP4 whose frames are on another host", VIDEO, elsewhere(url), (422,))
    yield Attack("an MP4 of a billion frames", VIDEO, _of_a_billion(), (413, 422))
    yield Attack("an MP4 that is all header", VIDEO, b"\0\0\0\x18ftypmp42" + bytes(12) + _nested(2000), (422,))
    yield Attack("a Y4M of 10 gigapixels", VIDEO, y4m(100_000, 100_000, 1), (413, 422))
    yield Attack("a Y4M of no size", VIDEO, b"YUV4MPEG2 W0 H0 F25:1\nFRAME\n", (422,))
    yield Attack("a Y4M that goes on and on", VIDEO, y4m(16, 16, 600), (413,))
    yield Attack("a Y4M of a million frames a second", VIDEO, y4m(16, 16, 300, rate="1000000:1"), (413,))
    yield Attack("a Y4M that lasts for years", VIDEO, y4m(16, 16, 100, rate="1:10000000"), (413,))
    yield Attack("a Matroska of a hundred tracks", VIDEO, _many_tracks(100), (422,))
    yield Attack("a transport stream of noise", VIDEO, _noise_stream(), (422,))
    yield Attack("an AVI of nothing", VIDEO, b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl", (422,))
    yield Attack("an FLV of nothing", VIDEO, b"FLV\1\5\0\0\0\x09" + b"\0" * 4000, (422,))


def photo(form: str, side: int = 72, seed: int = 3) -> bytes:
    """A small good picture; of noise, so that it has some kilobytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def clip(muxer: str = "mp4", frames: int = 8, side: int = 64, codec: str = "libx264") -> bytes:
    """A small good video."""
    file = io.BytesIO()
    noise = np.random.default_rng(4)
    with av.open(file, "w", format=muxer) as container:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=25, options=quiet)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            pixels = noise.integers(0, 256, (side, side, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def zeros(size: int) -> bytes:
    """That many zero bytes, deflated to a thousandth."""
    deflate = zlib.compressobj(1)
    block = bytes(1 << 20)
    made = [deflate.compress(block) for _ in range(size >> 20)]
    return b"".join([*made, deflate.compress(bytes(size & 0xFFFFF)), deflate.flush()])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, deflated: bytes, bits: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", deflated) + chunk(b"IEND", b"")


def exr(width: int, height: int, lines: bytes = b"") -> bytes:
    """Three channels of half, without compression; whether there are pixels is left to `lines`."""
    channel = struct.pack("<iIii", 1, 0, 1, 1)
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    told = [
        (b"channels", b"chlist", b"".join(name + b"\0" + channel for name in (b"B", b"G", b"R")) + b"\0"),
        (b"compression", b"compression", b"\0"),
        (b"dataWindow", b"box2i", window),
        (b"displayWindow", b"box2i", window),
        (b"lineOrder", b"lineOrder", b"\0"),
        (b"pixelAspectRatio", b"float", struct.pack("<f", 1)),
        (b"screenWindowCenter", b"v2f", bytes(8)),
        (b"screenWindowWidth", b"float", struct.pack("<f", 1)),
    ]
    header = b"".join(name + b"\0" + kind + b"\0" + struct.pack("<I", len(raw)) + raw for name, kind, raw in told)
    return b"v/1\x01\2\0\0\0" + header + b"\0" + lines


def tiff(width: int, height: int, deflated: bytes) -> bytes:
    """RGB in one deflated strip."""
    bits_at = 8 + len(deflated)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 8), (262, 3, 1, 2), (273, 4, 1, 8),
        (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(deflated)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", bits_at + 6) + deflated + struct.pack("<HHH", 8, 8, 8) + directory


def y4m(width: int, height: int, frames: int, rate: str = "25:1") -> bytes:
    """Frames of mid-grey; of a size that no file could have, without them."""
    body = b"FRAME\n" + b"\x80" * (width * height * 3 // 2 if width * height < 1 << 20 else 16)
    return f"YUV4MPEG2 W{width} H{height} F{rate} C420jpeg\n".encode() + body * frames


def elsewhere(url: str) -> bytes:
    """An MP4 whose data reference names another file, and that has no pictures itself."""
    data = bytearray(clip())
    begin = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    return edited(bytes(data), b"url \0\0\0\1", lambda found: found[:4] + b"\0\0\0\0", grow=url.encode() + b"\0")


def edited(data: bytes, found: bytes, change: Callable[[bytes], bytes], grow: bytes = b"") -> bytes:
    """Replace the first occurrence in an MP4, put bytes behind it, and make the sizes of all boxes around right."""
    at = data.index(found)
    made = bytearray(data)
    made[at : at + len(found)] = change(found)
    if grow:
        for start, size in _around(data, at):
            struct.pack_into(">I", made, start, size + len(grow))
        made[at + len(found) : at + len(found)] = grow
    return bytes(made)


def _around(data: bytes, at: int, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """The boxes that a place is in, outermost first."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if start <= at < start + size:
            yield start, size
            inside = {b"dref": 16, b"stsd": 16}.get(kind, 8)
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"dref"):
                yield from _around(data, at, start + inside, start + size)
            return
        start += max(size, 8)


def _of_a_billion() -> bytes:
    """Its table of sizes says a billion frames of one byte each."""
    data = clip()
    at = data.index(b"stsz") + 4
    made = bytearray(data)
    struct.pack_into(">III", made, at, 0, 1, 10**9)
    stts = data.index(b"stts") + 8
    struct.pack_into(">III", made, stts, 1, 10**9, 1)
    return bytes(made)


def _nested(depth: int) -> bytes:
    """Boxes in boxes in boxes."""
    return b"".join(struct.pack(">I4s", 8 * (depth - n), b"moov" if n % 2 else b"trak") for n in range(depth))


def _disguised(url: str) -> bytes:
    return b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + REFUSED_TEXTS["an HLS playlist"].format(url=url).encode()


def _many_tracks(count: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        picture = container.add_stream("mpeg4", rate=25)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        sound = [container.add_stream("pcm_s16le", rate=8000) for _ in range(count)]
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(picture.encode(None))
        for stream in sound:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
            container.mux(stream.encode(frame))
    return file.getvalue()


def _noise_stream() -> bytes:
    noise = bytearray(np.random.default_rng(5).bytes(188 * 2000))
    noise[::188] = b"\x47" * 2000
    return bytes(noise)


def _jpeg_header(width: int, height: int) -> bytes:
    return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)


def _webp(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def _zip() -> bytes:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 22))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(10):
            archive.writestr(f"../../{number}.zip", inner.getvalue())
    return file.getvalue()


def bent_heics(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Made of one that is a grid of tiles."""
    tiles = good.index(b"dimg") + 6  # how many follow
    yield "a grid that has fewer tiles than it says", good[:tiles] + b"\0\1" + good[tiles + 2 :]
    yield "a grid of itself", good[: tiles + 2] + good[tiles - 2 : tiles] + good[tiles + 4 :]
    yield "a grid of what is not there", good[: tiles + 2] + b"\xff\xff" + good[tiles + 4 :]
    named = good.rindex(b"hvc1")
    yield "a tile that is no picture", good[:named] + b"text" + good[named + 4 :]
    yield "a tile without its parameters", good.replace(b"hvcC", b"free")
    yield "items in more pieces than there are bytes", _pieces(good)
    size = good.rindex(b"ispe") + 8  # the first one is the grid's
    yield "tiles of no size", good[:size] + bytes(8) + good[size + 8 :]
    yield "tiles of 2^31 pixels a side", good[:size] + b"\x7f\xff\xff\xff" * 2 + good[size + 8 :]
    yield "no table of items", good.replace(b"iloc", b"free")
    yield "no names of items", good.replace(b"iinf", b"free")
    yield "no properties", good.replace(b"ipma", b"free")


def _pieces(good: bytes) -> bytes:
    at = good.index(b"iloc") + 4
    return good[: at + 6] + b"\xff\xff" + good[at + 8 :]
