"""A HEIC, as another program wrote it, comes in with all it has, and goes out as an AVIF; a bent one is refused."""

import io
import struct

import cv2
import numpy as np
import pillow_heif
import pytest
from hostile.corpus import bent_heics
from media_samples import exif, icc, photo
from PIL import Image, ImageOps

from service.errors import BadInput, FrameTooLarge
from service.folders import each
from service.media import image as here
from service.media.heif import read_contents, read_head
from service.media.image import write_image
from service.media.sniff import content_type_of, probe_image
from service.sandbox.images import read_image
from service.settings import Settings

LIMITS = Settings()
NOTES = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}


def heic(pixels, *, bits=8, **more):
    """[H, W], [H, W, 3] or [H, W, 4] of uint8, or uint16 over its whole range, as libheif writes it."""
    mode = {2: "L", 3: "RGB", 4: "RGBA"}[pixels.ndim if pixels.ndim == 2 else pixels.shape[2]]
    mode += ";16" if bits > 8 else ""
    file = pillow_heif.from_bytes(mode, pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())
    made = io.BytesIO()
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    file.save(made, format="HEIF", **(LOSSLESS | more))
    return made.getvalue()


@pytest.fixture
def read(tmp_path):
    def read_bytes(data, settings=LIMITS):
        path = tmp_path / "picture"
        path.write_bytes(data)
        return read_image(path, settings)

    return read_bytes


@pytest.mark.parametrize("size", [(48, 64), (1, 1), (3, 5), (9, 1), (67, 101)])
def test_a_heic_without_loss_gives_its_pixels_and_its_alpha(size, read):
    stored = np.dstack([photo(*size), photo(*size, seed=2)[..., 1]])
    picture = read(heic(stored))
    np.testing.assert_array_equal(np.dstack([picture.pixels, picture.alpha]), stored)
    assert (picture.content_type, picture.depth, picture.lost) == ("image/heic", None, ())


@pytest.mark.parametrize("bits", [10, 12])
def test_a_heic_of_many_bits_keeps_them_and_becomes_an_avif_of_as_many(bits, read):
    levels = photo(bits=16) >> (16 - bits)
    picture = read(heic(levels << (16 - bits), bits=bits))
    assert (picture.pixels.dtype, picture.depth) == (np.uint16, bits)
    made = write_image(picture.pixels, picture, format="same", quality=100)
    assert (made.content_type, made.suffix, made.lost) == ("image/avif", ".avif", ("HEIC as the format",))
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(made.data, np.uint8), -1)[..., ::-1], levels)
    assert write_image(picture.pixels, picture, format="jpeg").lost == (f"{bits} bit depth",)


@pytest.mark.parametrize("chroma", [420, 422, 444])
def test_colours_are_those_that_another_reader_sees(chroma, read):
    data = heic(cv2.resize(photo(24, 32), (128, 96)), chroma=chroma, quality=90, matrix_coefficients=6)
    theirs = np.asarray(pillow_heif.open_heif(io.BytesIO(data)))
    assert np.abs(read(data).pixels.astype(int) - theirs).max() <= 3  # each spreads chroma in its way


def test_limited_range_and_another_matrix_are_followed(read):
    stored = cv2.resize(photo(24, 32), (128, 96))
    data = heic(stored, quality=95, matrix_coefficients=9, full_range_flag=0, color_primaries=1)
    assert np.abs(read(data).pixels.astype(int) - stored).mean() < 2


def test_a_grey_heic_is_grey(read):
    picture = read(heic(photo()[..., 1], quality=100, matrix_coefficients=6))
    assert picture.is_grey
    assert np.abs(picture.pixels[..., 0].astype(int) - photo()[..., 1]).max() <= 2


@pytest.mark.parametrize("size", [(128, 192), (150, 200)])
def test_a_grid_of_tiles_is_one_picture(size, read):
    data = heic(photo(*size), tile_size=64)
    assert {item.kind for item in read_contents(data).items.values()} >= {b"grid", b"hvc1"}
    picture = read(data)
    np.testing.assert_array_equal(picture.pixels, photo(*size))
    assert picture.lost == ()


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_heic_is_turned_once_and_as_its_container_says(turn, read):
    data = heic(photo(24, 16), exif=exif(turn))
    assert read_head(io.BytesIO(data)).orientation == turn
    picture = read(data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(as_png(picture)))))
    np.testing.assert_array_equal(upright, np.asarray(pillow_heif.open_heif(io.BytesIO(data))))
    assert (
        Image.open(io.BytesIO(write_image(picture.pixels, picture, format="same").data)).getexif().get(274, 1) == turn
    )


def as_png(picture):
    return write_image(picture.pixels, picture, format="png").data


def test_exif_that_contradicts_the_container_turns_nothing(read):
    picture = read(heic(photo(24, 16), exif=exif(1)).replace(exif(1), exif(6)))
    np.testing.assert_array_equal(picture.pixels, photo(24, 16))
    assert Image.open(io.BytesIO(as_png(picture))).getexif().get(274, 1) == 1


def test_a_mirror_before_a_turn_is_the_other_turn():
    data = heic(photo(24, 16), exif=exif(5))  # a turn and a mirror: libheif's way to write what EXIF told
    head = read_head(io.BytesIO(data))
    contents = read_contents(data)
    kinds = [kind for kind, _ in contents.items[contents.primary].properties if kind in (b"irot", b"imir")]
    assert kinds == [b"irot", b"imir"]
    ipma = data.index(b"ipma")
    listed = [kind for kind, _ in boxes_in(data, b"ipco")]
    irot, imir = (listed.index(kind) + 1 | 0x80 for kind in kinds)
    at = data.index(bytes([irot, imir]), ipma)
    swapped = read_head(io.BytesIO(data[:at] + bytes([imir, irot]) + data[at + 2 :]))
    assert (head.orientation, swapped.orientation) == (5, 7)


def boxes_in(data, kind):
    at = data.index(kind)
    end = at - 4 + int.from_bytes(data[at - 4 : at], "big")
    at += 4
    while at < end:
        (size,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + size]
        at += size


@pytest.mark.parametrize("into", ["same", "png", "jpeg", "webp"])
def test_exif_profile_and_xmp_survive(into, read, tmp_path):
    data = heic(photo(), exif=exif(6), icc_profile=icc(), xmp=NOTES)
    picture = read(data)
    assert picture.lost == ()
    path = tmp_path / "again"
    path.write_bytes(write_image(picture.pixels, picture, format=into).data)
    kept = here.read_image(path, LIMITS).metadata
    assert (kept.exif, kept.icc, kept.xmp) == (exif(6), icc(), NOTES)


def test_what_of_a_heic_is_left_behind_is_named(read):
    two = pillow_heif.from_pillow(Image.fromarray(photo(96, 128)))
    two.add_from_pillow(Image.fromarray(photo(96, 128, seed=5)))
    made = io.BytesIO()
    two.save(made, format="HEIF", primary_index=1, **LOSSLESS)
    picture = read(made.getvalue())
    np.testing.assert_array_equal(picture.pixels, photo(96, 128, seed=5))
    assert picture.lost == ("further pictures",)
    assert read(heic(photo(96, 128), thumbnails=[32])).lost == ("smaller copies",)
    depths = heic(np.dstack([photo(), photo()[..., 1]]))
    gains = depths.replace(b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:hevc:2015:auxid:2")
    gains = gains.replace(
        b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth"
    )
    picture = read(gains)
    assert (picture.alpha, picture.lost) == (None, ("further pictures",))
    wide = heic(photo(), color_primaries=9, transfer_characteristics=16, quality=90, matrix_coefficients=9)
    picture = read(wide)
    assert (picture.metadata.colours, picture.lost) == ((9, 16), ())


def test_a_part_cut_out_by_the_container_is_what_is_read(read):
    cut = cut_by(40, 1, 20, 1, -4, 1, 2, 1)  # 40x20 of 128x64, from (40, 24)
    facts = probe_image(io.BytesIO(cut), LIMITS)
    assert (facts.width, facts.height) == (40, 20)
    np.testing.assert_array_equal(read(cut).pixels, photo(64, 128)[24:44, 40:80])
    with pytest.raises(BadInput, match="400x20 pixels out of 128x64"):
        read(cut_by(400, 1, 20, 1, 0, 1, 0, 1))
    with pytest.raises(BadInput, match="fractions of nothing"):
        read(cut_by(40, 0, 20, 1, 0, 1, 0, 1))


def cut_by(*numbers):
    """A picture whose profile has become a clean aperture, which libheif does not write."""
    data = heic(photo(64, 128), icc_profile=icc())
    at = data.index(b"colrprof")
    clap = b"clap" + struct.pack(">8i", *numbers)
    return data[:at] + clap + data[at + len(clap) :]


def test_a_header_that_tells_of_no_samples_is_taken_for_8_bits():
    data = heic(photo())
    at = data.index(b"pixi") + 8
    assert read_head(io.BytesIO(data[:at] + b"\0" + data[at + 1 :])).bits == 8


def test_in_a_folder_its_result_has_the_name_of_what_it_is(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.HEIC").write_bytes(heic(photo(32, 32)))
    tasks = []
    done = [*each(tmp_path / "in", tmp_path / "out", None, None, lambda task: tasks.append(task))]
    assert [(task.target.name, task.format, task.kind) for task in tasks] == [("one.avif", "same", "image")]
    assert len(done) == 1


def test_a_sequence_is_refused(read):
    data = heic(photo())
    assert content_type_of(data) == "image/heic"
    with pytest.raises(BadInput, match="sequence"):
        read(data[:8] + b"hevc" + data[12:])


def test_more_pixels_than_allowed_are_refused_by_the_header_and_by_the_decoder(read):
    with pytest.raises(FrameTooLarge, match="64x48; at most 3000"):
        read(heic(photo()), Settings(max_image_pixels=3000))
    data = heic(photo(200, 300))
    at = data.index(b"ispe") + 8
    with pytest.raises(BadInput, match="damaged"):  # the frame is larger than it is told, and is not decoded
        read(data[:at] + struct.pack(">II", 16, 16) + data[at + 8 :])


@pytest.mark.parametrize(("name", "data"), [*bent_heics(heic(photo(128, 192), tile_size=64))])
def test_a_bent_heic_is_refused(name, data, read):
    with pytest.raises((BadInput, FrameTooLarge)):
        read(data)


def test_a_heic_cut_short_anywhere_is_refused(read, tmp_path):
    data = heic(photo(), exif=exif(6), icc_profile=icc())
    for length in [*range(16, 1024, 7), *range(1024, len(data), 509)]:
        path = tmp_path / "cut"
        path.write_bytes(data[:length])
        with pytest.raises(BadInput):
            here.read_image(path, LIMITS)
