"""Does any spoilt file make the code around the decoders do something else than refuse it?

`make fuzz FUZZ_SECONDS=600` spoils good files at random and has them sniffed, probed and decoded. A decoder that dies
of one is held, and counted; what fails is an error that is no refusal, or a wait that does not end. The file that did
it is kept.
"""

import argparse
import io
import random
import sys
import time
import traceback
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import tifffile
from PIL import Image

from hostile.corpus import burdened, clip, photo, photo_pages, tiff, y4m, zeros
from service.errors import BadInput, Indivisible
from service.media.image import write_image
from service.media.sniff import HEAD_BYTES, content_type_of, probe_image
from service.sandbox.images import read_image
from service.sandbox.videos import VideoReader, read_field_order, read_timeline
from service.settings import Settings

SETTINGS = Settings(
    decode_timeout_s=20, decode_memory_bytes=512 * 1024**2, max_image_pixels=10_000_000, max_frame_pixels=4_000_000
)
_FRAMES = 20  # of a video; what comes later is decoded by the same code
_CLIPS = (
    *(("mp4", "libx264"), ("mov", "mpeg4"), ("matroska", "libx265"), ("matroska", "ffv1"), ("webm", "libvpx-vp9")),
    *(("mpegts", "mpeg2video"), ("vob", "mpeg2video"), ("avi", "mpeg4"), ("flv", "flv"), ("asf", "wmv2")),
)
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds() -> list[bytes]:
    """Small good files of every format read here."""
    deep = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(deep, "PNG")
    palette = io.BytesIO()
    Image.open(io.BytesIO(photo("PNG", 32))).convert("P").save(palette, "PNG", dpi=(72, 72))
    tagged = io.BytesIO()
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    Image.open(io.BytesIO(photo("JPEG", 32))).save(tagged, "JPEG", exif=exif, progressive=True)
    stills = [photo(form, 32) for form in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "AVIF", "HEIF")]
    stills += [*_odd_tiffs(), photo_pages(3), *(content for name, content, _ in burdened() if "megabytes" not in name)]
    moving = [clip(muxer, frames=4, codec=codec) for muxer, codec in _CLIPS]
    more = [deep.getvalue(), palette.getvalue(), tagged.getvalue(), tiff(16, 16, zeros(768)), y4m(16, 16, 3), *_exrs()]
    return [*stills, *more, *moving]


def _exrs() -> list[bytes]:
    random = np.random.default_rng(3)
    made = []
    for compression in (OpenEXR.ZIP_COMPRESSION, OpenEXR.PIZ_COMPRESSION, OpenEXR.B44_COMPRESSION):
        planes = {name: random.random((24, 20), np.float32).astype(np.float16) for name in "RGBA"}
        file = io.BytesIO()
        OpenEXR.File({"type": OpenEXR.scanlineimage, "compression": compression}, planes, num_threads=0).write(file)
        made.append(file.getvalue())
    return made


def _odd_tiffs() -> list[bytes]:
    """Of floats, in strips, tiles and planes, packed in each way."""
    floats = np.random.default_rng(6).normal(0.5, 0.2, (40, 36, 3)).astype(np.float32)
    made = []
    for more in (
        {},
        {"compression": "zlib", "byteorder": ">"},
        {"tile": (16, 16), "compression": "zlib", "bigtiff": True},
        {"planarconfig": "separate", "rowsperstrip": 7},
    ):
        file = io.BytesIO()
        apart = "planarconfig" in more
        tifffile.imwrite(file, floats.transpose(2, 0, 1).copy() if apart else floats, photometric="rgb", **more)
        made.append(file.getvalue())
    for compression, predictor in ((5, 1), (5, 3), (8, 3), (32773, 1)):
        params = [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, predictor]
        made.append(cv2.imencode(".tiff", floats, [*params, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 9])[1].tobytes())
    return made


def spoilt(data: bytes, dice: random.Random) -> bytes:
    """A copy with one to eight things wrong."""
    made = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        if len(made) < 8:
            break
        # Headers are where lengths, counts and offsets stand.
        most = len(made) if dice.random() < 0.5 else min(len(made), 512)
        at = dice.randrange(most)
        match dice.randrange(7):
            case 0:
                made[at] ^= 1 << dice.randrange(8)
            case 1:
                made[at] = dice.randrange(256)
            case 2:
                size = dice.choice((1, 2, 4))
                number = dice.choice(_NUMBERS) & (256**size - 1)
                made[at : at + size] = number.to_bytes(size, dice.choice(("big", "little")))
            case 3:
                del made[at : at + dice.randint(1, 64)]
            case 4:
                made[at:at] = made[at : at + dice.randint(1, 256)]
            case 5:
                made[at:at] = dice.randbytes(dice.randint(1, 64))
            case 6:
                del made[dice.randrange(len(made)) :]
    return _summed(bytes(made)) if dice.random() < 0.7 else bytes(made)


def _summed(data: bytes) -> bytes:
    """A PNG with right check sums again, or nothing but these would be tried."""
    if not data.startswith(b"\x89PNG"):
        return data
    made, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        body = data[at + 4 : end]
        made += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at = end + 4
    return bytes(made) + data[at:]


def tried(path: Path) -> str:
    """What comes of a file: its type and how it ended. Raises what should not have been."""
    with path.open("rb") as file:
        kind = content_type_of(file.read(HEAD_BYTES)) or "unknown"
    try:
        if kind.startswith("image/"):
            with path.open("rb") as file:
                probe_image(file, SETTINGS)
            picture = read_image(path, SETTINGS)
            write_image(picture.pixels, picture, format="same")  # what came along meets an encoder, here unguarded
        else:
            with VideoReader(path, SETTINGS) as reader:
                for frame in islice(reader, _FRAMES):
                    assert frame.pixels.shape == (reader.head.height, reader.head.width, 3)
            read_field_order(path, SETTINGS, "interlaced")
            read_timeline(path, SETTINGS)
    except Indivisible:
        return f"{kind}: indivisible"
    except BadInput as err:
        if "died" in str(err) or "failed on it" in str(err):
            return f"{kind}: DECODER DIED"
        if "to decode" in str(err) and "more than" in str(err):
            return f"{kind}: took too much"
        return f"{kind}: refused"
    return f"{kind}: decoded"


def fuzz(seconds: float, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Try spoilt files for so long.

    Returns:
        How often what came of them, and what should not have been; the files that did it, and those that killed a
        decoder, are kept in `folder`.
    """
    dice, outcomes, failures = random.Random(seed), Counter[str](), []
    good = seeds()
    path = folder / "spoilt"
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        content = spoilt(dice.choice(good), dice)
        path.write_bytes(content)
        try:
            outcome = tried(path)
        except Exception:
            outcome = "FAILED"
            failures.append(f"{folder}/{len(failures)}.failed\n{traceback.format_exc()}")
            (folder / f"{len(failures) - 1}.failed").write_bytes(content)
        outcomes[outcome] += 1
        if "DIED" in outcome:
            (folder / f"{sum(outcomes.values())}.died").write_bytes(content)
    return outcomes, failures


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=float, default=60)
    words.add_argument("--seed", type=int, default=int(time.time()))
    words.add_argument("--folder", type=Path, default=Path(".fuzz"))
    told = words.parse_args()
    told.folder.mkdir(exist_ok=True)
    print(f"seed {told.seed}, {told.seconds:g} s")
    outcomes, failures = fuzz(told.seconds, told.seed, told.folder)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8} {outcome}")
    for failure in failures[:5]:
        print(failure, file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
