import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from media_samples import Pixels, bgr, encoded, exif, icc, lzw_tiff, photo, png, tiff
from PIL import Image, ImageOps

from service.errors import BadInput, FrameTooLarge, UnknownFormat
from service.media.image import Encoded, Metadata, Picture, join_pages, read_image, write_image
from service.settings import Settings

LIMITS = Settings()


@pytest.fixture
def read(tmp_path: Path):
    def read_bytes(data: bytes, name: str = "picture") -> Picture:
        path = tmp_path / name
        path.write_bytes(data)
        return read_image(path, LIMITS)

    return read_bytes


def again(made: Encoded, tmp_path: Path) -> Picture:
    path = tmp_path / "again"
    path.write_bytes(made.data)
    return read_image(path, LIMITS)


def with_metadata(suffix: str, pixels: Pixels, blocks: dict[int, bytes]) -> bytes:
    done, data = cv2.imencodeWithMetadata(
        suffix, pixels, list(blocks), [np.frombuffer(block, np.uint8) for block in blocks.values()]
    )
    assert done
    return data.tobytes()


def pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".bmp"])
def test_lossless_formats_come_back_as_they_went(suffix, read, tmp_path):
    picture = read(encoded(suffix, bgr(photo())))
    np.testing.assert_array_equal(picture.pixels, photo())
    made = write_image(picture.pixels, picture, format="same")
    assert (made.content_type, made.suffix, made.lost) == (picture.content_type, suffix, ())
    np.testing.assert_array_equal(again(made, tmp_path).pixels, photo())


@pytest.mark.parametrize(("into", "psnr_db"), [("jpeg", 40), ("webp", 35), ("avif", 35)])
def test_lossy_formats_stay_close_and_obey_quality(into, psnr_db, read, tmp_path):
    picture = read(encoded(".png", bgr(photo(96, 128))))
    made = write_image(picture.pixels, picture, format=into)
    assert cv2.PSNR(again(made, tmp_path).pixels, picture.pixels) > psnr_db
    coarse = write_image(picture.pixels, picture, format=into, quality=20)
    assert len(coarse.data) < len(made.data)


def test_red_stays_red_in_every_format(read, tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    picture = read(encoded(".png", bgr(red)))
    for into in ("png", "jpeg", "webp", "tiff", "avif"):
        middle = again(write_image(red, picture, format=into), tmp_path).pixels[8, 8]
        assert np.abs(middle.astype(int) - [250, 0, 0]).max() < 8, into  # what lossy chroma costs


@pytest.mark.parametrize("into", ["png", "tiff"])
def test_16_bits_are_kept_where_the_format_has_them(into, read, tmp_path):
    picture = read(encoded(".png", bgr(photo(bits=16))))
    assert picture.pixels.dtype == np.uint16
    made = write_image(picture.pixels, picture, format=into)
    np.testing.assert_array_equal(again(made, tmp_path).pixels, photo(bits=16))
    assert made.lost == ()


def test_16_bits_are_rounded_to_8_for_jpeg_and_named_as_lost(read, tmp_path):
    flat = np.full((16, 16, 3), 100 * 257 + 200, np.uint16)  # nearer to 101 than to 100
    made = write_image(flat, read(encoded(".png", flat)), format="jpeg", quality=100)
    assert made.lost == ("16 bit depth",)
    assert again(made, tmp_path).pixels[8, 8].tolist() == [101, 101, 101]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("into", ["png", "tiff"])
def test_alpha_is_kept_and_colours_under_it_too(bits, into, read, tmp_path):
    pixels = photo(bits=bits)
    alpha = photo(bits=bits, seed=2)[..., 1]
    alpha[:10] = 0
    picture = read(encoded(".png", np.dstack([bgr(pixels), alpha])))
    back = again(write_image(pixels, picture, format=into), tmp_path)
    np.testing.assert_array_equal(back.alpha, alpha)
    np.testing.assert_array_equal(back.pixels, pixels)


def test_alpha_is_kept_in_webp_and_named_as_lost_in_jpeg(read, tmp_path):
    alpha = photo(seed=2)[..., 1]
    picture = read(encoded(".png", np.dstack([bgr(photo()), alpha])))
    np.testing.assert_array_equal(again(write_image(picture.pixels, picture, format="webp"), tmp_path).alpha, alpha)
    assert write_image(picture.pixels, picture, format="jpeg").lost == ("transparency",)


@pytest.mark.parametrize("bits", [10, 12])
def test_an_avif_of_many_bits_keeps_them_and_comes_back_to_the_bit_at_quality_100(bits, read):
    levels = photo(bits=16) >> (16 - bits)
    stored = encoded(".avif", bgr(levels), [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100])
    picture = read(stored)
    assert (picture.pixels.dtype, picture.depth) == (np.uint16, bits)
    assert np.abs(picture.pixels.astype(int) - photo(bits=16)).max() < 2 ** (16 - bits)
    made = write_image(picture.pixels, picture, format="same", quality=100)
    assert made.lost == ()
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(made.data, np.uint8), -1)[..., ::-1], levels)
    assert write_image(picture.pixels, picture, format="jpeg").lost == (f"{bits} bit depth",)


def test_an_avif_of_16_bits_has_12_and_that_is_named(read, tmp_path):
    picture = read(encoded(".png", bgr(photo(bits=16))))
    made = write_image(picture.pixels, picture, format="avif", quality=100)
    assert made.lost == ("16 bit depth",)
    assert np.abs(again(made, tmp_path).pixels.astype(int) - photo(bits=16)).max() <= 16


@pytest.mark.parametrize("turn", range(1, 9))
def test_an_avif_is_turned_as_its_container_says(turn, read):
    told = Image.Exif()
    told[274] = turn
    made = io.BytesIO()
    Image.fromarray(photo(24, 16)).save(made, "AVIF", quality=100, exif=told.tobytes())
    picture = read(made.getvalue())
    upright = np.asarray(pillow(write_image(picture.pixels, picture, format="tiff").data))
    np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(Image.open(made))))
    assert pillow(write_image(picture.pixels, picture, format="same").data).getexif().get(274, 1) == turn


def test_a_profile_of_an_avif_counts_before_its_numbers(read):
    made = cv2.imencodeWithMetadata(".avif", bgr(photo()), [cv2.IMAGE_METADATA_ICCP], [np.frombuffer(icc(), np.uint8)])[
        1
    ].tobytes()
    picture = read(made)
    assert (picture.metadata.icc, picture.metadata.colours, picture.lost) == (icc(), None, ())


def test_a_webp_without_loss_stays_so_unless_a_quality_is_told(read, tmp_path):
    stored = np.dstack([photo(), photo(seed=2)[..., 1]])
    stored[:10, :, 3] = 0
    made = io.BytesIO()
    Image.fromarray(stored).save(made, "WEBP", lossless=True, exact=True, exif=exif(6), icc_profile=icc())
    picture = read(made.getvalue())
    same = write_image(picture.pixels, picture, format="same")
    back = again(same, tmp_path)
    np.testing.assert_array_equal(np.dstack([back.pixels, back.alpha]), stored)
    assert (back.metadata.exif, back.metadata.icc) == (exif(6), icc())
    assert len(write_image(picture.pixels, picture, format="same", quality=50).data) < len(same.data) / 2


def test_a_tiff_with_alpha_is_understood_by_other_readers(read):
    alpha = photo(seed=2)[..., 1]
    picture = read(encoded(".png", np.dstack([bgr(photo()), alpha])))
    other = pillow(write_image(picture.pixels, picture, format="tiff").data)
    assert other.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(other), np.dstack([photo(), alpha]))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_whose_colours_are_not_multiplied_by_alpha_is_left_so(order, read):
    stored = np.dstack([photo(8, 8), np.full((8, 8), 3, np.uint8)])
    picture = read(tiff(stored, 2, order=order, extra={338: (3, [2])}))
    np.testing.assert_array_equal(picture.pixels, photo(8, 8))
    assert set(picture.alpha.ravel()) == {3}


def test_a_tiff_whose_colours_are_multiplied_by_alpha_is_divided(read):
    straight, alpha = photo(8, 8), np.full((8, 8, 1), 128, np.uint8)
    multiplied = (straight.astype(np.uint32) * 128 // 255).astype(np.uint8)
    picture = read(tiff(np.dstack([multiplied, alpha]), 2, extra={338: (3, [1])}))
    assert np.abs(picture.pixels.astype(int) - straight).max() <= 2  # half the levels are gone


@pytest.mark.parametrize(("suffix", "into"), [(".png", "png"), (".jpg", "jpeg"), (".tiff", "tiff"), (".bmp", "same")])
def test_grey_goes_out_as_grey(suffix, into, read):
    picture = read(encoded(suffix, photo()[..., 0]))
    assert picture.is_grey
    assert picture.pixels.shape == (48, 64, 3)
    made = write_image(picture.pixels, picture, format=into)
    assert pillow(made.data).mode == "L"


def test_grey_with_alpha_stays_both(read, tmp_path):
    levels, alpha = photo(4, 4)[..., 0], photo(4, 4)[..., 1]
    picture = read(png(4, 4, 8, 4, np.dstack([levels, alpha]).tobytes()))
    assert picture.is_grey
    back = again(write_image(picture.pixels, picture, format="same"), tmp_path)
    np.testing.assert_array_equal(back.pixels[..., 0], levels)
    np.testing.assert_array_equal(back.alpha, alpha)


def test_a_palette_becomes_its_colours_and_its_transparency_alpha(read):
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    rows = bytes([0b00_01_10_11]) * 2  # two bits a pixel
    picture = read(png(4, 2, 2, 3, rows, [(b"PLTE", palette), (b"tRNS", b"\xff\x80\x00")]))
    assert picture.pixels[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    assert picture.alpha[0].tolist() == [255, 128, 0, 255]


@pytest.mark.parametrize(
    ("bits", "row", "levels"), [(1, 0b01000000, [0, 255]), (2, 0b01100000, [85, 170]), (4, 0x3F, [51, 255])]
)
def test_few_bits_of_grey_are_spread_over_eight(bits, row, levels, read):
    picture = read(png(2, 1, bits, 0, bytes([row])))
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels[0, :, 0].tolist() == levels


@pytest.mark.parametrize(
    ("bits", "rows", "value", "alpha"),
    [(8, bytes([7, 8]), 7, [0, 255]), (16, b"\0\x07\x12\x34", 0x1234, [65535, 0]), (4, bytes([0x3F]), 3, [0, 255])],
)
def test_the_one_transparent_grey_of_a_png_becomes_alpha(bits, rows, value, alpha, read):
    picture = read(png(2, 1, bits, 0, rows, [(b"tRNS", struct.pack(">H", value))]))
    assert picture.is_grey
    assert picture.alpha[0].tolist() == alpha


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp", ".avif"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 5)])
def test_the_smallest_pictures_go_through(suffix, size, read, tmp_path):
    picture = read(encoded(suffix, bgr(photo(*size))))
    assert picture.pixels.shape == (*size, 3)
    assert again(write_image(picture.pixels, picture, format="same"), tmp_path).pixels.shape == (*size, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif"])
@pytest.mark.parametrize("into", ["png", "jpeg", "webp", "avif"])
def test_exif_profile_and_xmp_survive_from_any_to_any(suffix, into, read, tmp_path):
    notes = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    in_file = {".jpg": b"http://ns.adobe.com/xap/1.0/\0" + notes, ".png": notes + b"\0"}.get(suffix, notes)
    blocks = {
        cv2.IMAGE_METADATA_EXIF: exif(6),
        cv2.IMAGE_METADATA_ICCP: icc(),
        cv2.IMAGE_METADATA_XMP: in_file,
    }
    picture = read(with_metadata(suffix, bgr(photo()), blocks))
    assert picture.pixels.shape == (48, 64, 3)  # as stored
    made = write_image(picture.pixels, picture, format=into)
    kept = again(made, tmp_path).metadata
    assert (kept.exif, kept.icc, kept.xmp) == (exif(6), icc(), notes)
    assert made.lost == ()
    assert pillow(made.data).getexif()[274] == 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_format_without_exif_gets_the_picture_turned_upright(orientation, read):
    data = with_metadata(".png", bgr(photo(6, 9)), {cv2.IMAGE_METADATA_EXIF: exif(orientation)})
    picture = read(data)
    made = write_image(picture.pixels, picture, format="tiff")
    assert made.lost == ("EXIF",)
    np.testing.assert_array_equal(np.asarray(pillow(made.data)), np.asarray(ImageOps.exif_transpose(pillow(data))))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_keeps_its_profile_its_scale_and_its_description(order, read):
    described = b"ImageJ=1.54\nunit=micron\0"
    tags = {270: (2, list(described)), 282: (5, [254, 10]), 283: (5, [254, 10]), 34675: (7, list(icc()))}
    source = tiff(photo(), 2, order=order, extra=tags)
    made = write_image(photo(), read(source), format="same")
    kept = pillow(made.data).tag_v2
    assert kept[34675] == icc()
    assert kept[270] == described.decode().rstrip("\0")
    assert float(kept[282]) == 25.4
    assert pillow(made.data).size == (64, 48)


def test_a_profile_goes_from_tiff_to_png_and_back(read, tmp_path):
    source = tiff(photo(bits=16), 2, extra={34675: (7, list(icc()))})
    in_png = again(write_image(photo(bits=16), read(source), format="png"), tmp_path)
    assert in_png.metadata.icc == icc()
    in_tiff = again(write_image(photo(bits=16), in_png, format="tiff"), tmp_path)
    assert in_tiff.metadata.icc == icc()


def test_a_profile_for_other_colours_is_left_out_and_named(read):
    picture = read(with_metadata(".jpg", bgr(photo()), {cv2.IMAGE_METADATA_ICCP: icc(b"CMYK")}))
    assert write_image(picture.pixels, picture, format="same").lost == ("ICC profile",)


def test_exif_too_large_for_jpeg_is_named_and_the_picture_turned(read):
    picture = read(with_metadata(".png", bgr(photo()), {cv2.IMAGE_METADATA_EXIF: exif(6) + bytes(70_000)}))
    made = write_image(picture.pixels, picture, format="jpeg")
    assert made.lost == ("EXIF",)
    assert pillow(made.data).size == (48, 64)


def test_gamma_pixel_size_and_text_of_a_png_survive(read):
    chunks = [
        (b"gAMA", struct.pack(">I", 45455)),
        (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        (b"tEXt", b"Title\0Fog"),
    ]
    made = write_image(photo(4, 4), read(png(4, 4, 8, 2, photo(4, 4).tobytes(), chunks)), format="same")
    info = pillow(made.data).info
    assert info["gamma"] == 0.45455
    assert round(info["dpi"][0]) == 72
    assert info["Title"] == "Fog"


def test_how_a_png_of_wide_colours_is_to_be_shown_survives(read):
    chunk = b"cICP" + bytes([9, 16, 0, 1])  # BT.2020 primaries, PQ
    made = write_image(
        photo(4, 4), read(png(4, 4, 8, 2, photo(4, 4).tobytes(), [(chunk[:4], chunk[4:])])), format="same"
    )
    assert chunk in made.data
    assert made.lost == ()


@pytest.mark.parametrize("target", ["jpeg", "webp", "tiff"])
def test_what_a_png_says_that_another_format_does_not_get_is_named(target, read):
    chunks = [
        (b"sRGB", b"\0"),
        (b"cICP", bytes([9, 16, 0, 1])),
        (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        (b"tEXt", b"Title\0Fog"),
        (b"tEXt", b"Author\0Ada"),
    ]
    made = write_image(photo(4, 4), read(png(4, 4, 8, 2, photo(4, 4).tobytes(), chunks)), format=target)
    assert made.lost == ("colour space", *(["resolution"] if target == "webp" else []), "text")


def test_what_a_tiff_says_that_another_format_does_not_get_is_named(read):
    tags = {270: (2, list(b"Fog\0")), 282: (5, [254, 10]), 283: (5, [254, 10])}
    assert write_image(photo(), read(tiff(photo(), 2, extra=tags)), format="webp").lost == ("resolution", "text")


def test_a_cmyk_jpeg_becomes_rgb_and_that_is_named(read):
    stored = io.BytesIO()
    Image.fromarray(photo()).convert("CMYK").save(stored, "JPEG", quality=100)
    picture = read(stored.getvalue())
    assert cv2.PSNR(picture.pixels, photo()) > 35
    assert picture.lost == ("CMYK colours",)


@pytest.mark.parametrize("source", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("into", ["png", "jpeg", "tiff", "same"])
def test_dots_per_inch_go_from_any_format_that_has_them_to_any(source, into, read):
    made = io.BytesIO()
    Image.fromarray(photo()).save(made, source, dpi=(300, 150))
    picture = read(made.getvalue())
    result = write_image(picture.pixels, picture, format=into)
    assert result.lost == ()
    assert [round(float(one)) for one in pillow(result.data).info["dpi"]] == [300, 150]


def test_a_tiff_that_lies_on_its_side_is_stood_up_with_its_dots_per_inch(read):
    lying = tiff(photo(), 2, extra={274: (3, [6]), 282: (5, [300, 1]), 283: (5, [150, 1])})
    made = pillow(write_image(read(lying).pixels, read(lying), format="same").data)
    np.testing.assert_array_equal(np.asarray(made), np.rot90(photo(), -1))
    assert made.info["dpi"] == (150, 300)


def test_dots_per_inch_are_turned_with_the_picture_and_named_where_there_is_no_place(read):
    made = io.BytesIO()
    told = Image.Exif()
    told[274] = 6
    Image.fromarray(photo()).save(made, "JPEG", dpi=(300, 150), exif=told.tobytes())
    picture = read(made.getvalue())
    turned = pillow(write_image(picture.pixels, picture, format="tiff").data)
    assert turned.size == (48, 64)
    assert turned.info["dpi"] == (150, 300)
    assert write_image(picture.pixels, picture, format="webp").lost == ("resolution",)


def test_a_jpeg_keeps_its_comment_and_what_picture_desks_wrote(read):
    made = io.BytesIO()
    Image.fromarray(photo()).save(made, "JPEG", comment=b"fog over the river")
    desk = b"\xff\xed" + struct.pack(">H", 20) + b"Photoshop 3.0\08BIM"
    data = made.getvalue()
    picture = read(data[:2] + desk + data[2:])
    same = write_image(picture.pixels, picture, format="same")
    assert same.lost == ()
    assert pillow(same.data).info["comment"] == b"fog over the river"
    assert desk in same.data
    assert write_image(picture.pixels, picture, format="png").lost == ("IPTC", "text")


def test_the_second_picture_of_a_jpeg_is_named_as_lost(read):
    made = io.BytesIO()
    Image.fromarray(photo()).save(made, "MPO", save_all=True, append_images=[Image.fromarray(photo(seed=2))])
    assert "further pictures" in read(made.getvalue()).lost


def damaged_profiles() -> dict[str, bytes]:
    good = icc()
    return {
        "text": b"not a profile at all" * 20,
        "cut": good[:-8],
        "long": good + bytes(10_000_000),
        "no mark": good[:36] + b"xxxx" + good[40:],
        "endless tags": good[:128] + b"\xff\xff\xff\xff" + good[132:],
        "tags outside": good[:136] + b"\xff\xff\xff\xff" + good[140:],
        "odd class": good[:12] + b"\0\xff\0\xff" + good[16:],
        "odd intent": good[:64] + b"\xff\xff\xff\xff" + good[68:],
        "odd illuminant": good[:68] + bytes(12) + good[80:],
    }


@pytest.mark.parametrize("damage", damaged_profiles())
@pytest.mark.parametrize("into", ["png", "jpeg", "webp", "tiff", "avif"])
def test_a_broken_profile_costs_the_profile_and_nothing_else(damage, into):
    metadata = Metadata(exif=exif(6), icc=damaged_profiles()[damage], xmp=b"<x:xmpmeta/>")
    picture = Picture(pixels=photo(), alpha=None, is_grey=False, content_type="image/png", metadata=metadata)
    made = write_image(photo(), picture, format=into)
    other = pillow(made.data)
    other.load()
    if "ICC profile" in made.lost:
        assert "icc_profile" not in other.info
    else:
        assert other.info["icc_profile"] == metadata.icc  # opaque to this encoder
    assert ("EXIF" in made.lost) == (into == "tiff")
    assert "XMP" not in made.lost
    if not damage.startswith("odd"):
        assert "ICC profile" in made.lost


@pytest.mark.parametrize("into", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize(
    "block", [b"\0", b"MM\0*", b"II*\0\xff\xff\xff\x7f", bytes(100), b"II*\0\x08\0\0\0\xff\xff" + bytes(40)]
)
def test_broken_exif_costs_the_exif_and_nothing_else(block, into):
    metadata = Metadata(exif=block, icc=icc(), xmp=b"\xff\xfe not text")
    picture = Picture(pixels=photo(), alpha=None, is_grey=False, content_type="image/png", metadata=metadata)
    made = write_image(photo(), picture, format=into)
    assert made.lost == ("EXIF", "XMP")
    assert pillow(made.data).info["icc_profile"] == icc()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_16_bit_tiffs_of_any_make_are_read(order, big, read):
    picture = read(tiff(photo(bits=16), 2, order=order, big=big))
    np.testing.assert_array_equal(picture.pixels, photo(bits=16))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_in_which_zero_is_white_is_read_right(bits, read):
    levels = photo(bits=bits)[..., 0]
    picture = read(tiff(np.iinfo(levels.dtype).max - levels, 0))
    np.testing.assert_array_equal(picture.pixels[..., 0], levels)


@pytest.mark.parametrize(
    ("planes", "sample_format", "told"),
    [
        (np.ones((4, 4), np.uint32), 1, "32 bit unsigned"),
        (np.ones((4, 4), np.int16), 2, "16 bit signed"),
        (np.ones((4, 4), np.int8), 2, "8 bit signed"),
    ],
)
def test_samples_of_other_kinds_are_refused_with_those_that_are_read(planes, sample_format, told, read):
    with pytest.raises(BadInput, match=f"samples are {told} integers; accepted are 8 and 16 bit unsigned"):
        read(tiff(planes, 1, sample_format=sample_format))


def test_a_stack_of_bands_is_refused_rather_than_cut(read):
    with pytest.raises(BadInput, match="5 samples in a pixel, of which 1 are its colours"):
        read(tiff(np.dstack([photo(bits=16), photo(bits=16)[..., :2]]), 1))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_tiff_with_alpha_keeps_both_whole(bits, read, tmp_path):
    stored = photo(bits=bits)[..., :2]
    picture = read(tiff(stored, 1, extra={338: (3, [2])}))
    assert picture.is_grey
    back = again(write_image(picture.pixels, picture, format="same"), tmp_path)
    np.testing.assert_array_equal(np.dstack([back.pixels[..., :1], back.alpha]), stored)


def test_samples_that_are_neither_colour_nor_alpha_are_named_as_lost(read):
    stored = np.dstack([photo(), photo(seed=2)])[..., :5]
    picture = read(tiff(stored, 2, extra={338: (3, [2, 0])}))
    np.testing.assert_array_equal(picture.alpha, stored[..., 3])
    assert picture.lost == ("further samples",)


def floats(**more) -> Pixels:
    return (photo(bits=16, **more) / 65535).astype(np.float32)


LAYOUTS = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "tiles": {"tile": (32, 16)},
    "strips": {"rowsperstrip": 7},
    "deflated": {"compression": "zlib"},
    "deflated strips, big-endian": {"compression": "zlib", "rowsperstrip": 5, "byteorder": ">"},
    "deflated tiles": {"compression": "zlib", "tile": (16, 16)},
}


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("planes", ["together", "apart", "grey"])
def test_a_tiff_of_any_layout_is_read_to_the_bit(kind, layout, planes, read):
    pixels = photo() if kind == "uint8" else photo(bits=16) if kind == "uint16" else floats().astype(kind)
    stored = {"together": pixels, "apart": pixels.transpose(2, 0, 1), "grey": pixels[..., 0]}[planes]
    more = {"apart": {"planarconfig": "separate"}}.get(planes, {})
    made = io.BytesIO()
    tifffile.imwrite(
        made,
        np.ascontiguousarray(stored),
        photometric="minisblack" if planes == "grey" else "rgb",
        **(LAYOUTS[layout] | more),
    )
    picture = read(made.getvalue())
    expected = np.repeat(pixels[..., :1], 3, 2) if planes == "grey" else pixels
    assert picture.pixels.dtype == (np.float32 if kind.startswith("float") else kind)
    np.testing.assert_array_equal(picture.pixels, expected.astype(picture.pixels.dtype))


@pytest.mark.parametrize("compression", [1, 5, 32773, 8])
@pytest.mark.parametrize("predictor", [1, 2, 3])
@pytest.mark.parametrize("planes", [floats(), floats()[..., 0], photo(bits=16), photo()[..., 0]])
def test_a_tiff_packed_by_another_library_is_read_to_the_bit(compression, predictor, planes, read):
    if predictor == 3 and planes.dtype != np.float32:
        predictor = 2
    params = [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, predictor]
    params += [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 11]
    picture = read(encoded(".tiff", bgr(planes) if planes.ndim == 3 else planes, params))
    np.testing.assert_array_equal(picture.pixels, planes if planes.ndim == 3 else np.dstack([planes] * 3))


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_tiff_of_floats_packed_by_lzw_in_tiles_is_read_to_the_bit(tile, read):
    picture = read(lzw_tiff(floats(), tile))
    np.testing.assert_array_equal(picture.pixels, floats())


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3), (48, 64, 4)])
def test_floating_point_comes_back_to_the_bit(shape, read, tmp_path):
    values = np.random.default_rng(3).normal(100, 1000, shape).astype(np.float32)
    for column, odd in enumerate((np.nan, np.inf, -np.inf)):
        values[0, column] = odd
    extra = {338: (3, [2])} if shape[-1] == 4 else None
    picture = read(tiff(values, 1 if len(shape) == 2 else 2, sample_format=3, extra=extra))
    made = write_image(picture.pixels, picture, format="same")
    assert made.lost == ()
    (tmp_path / "made.tiff").write_bytes(made.data)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "made.tiff"), values)


def test_64_bit_floating_point_becomes_32_and_is_named(read):
    picture = read(tiff(floats().astype(np.float64), 2, sample_format=3))
    np.testing.assert_array_equal(picture.pixels, floats())
    assert picture.lost == ("64 bit floating point",)


def test_floating_point_is_light_unless_a_profile_says_otherwise(read):
    stored = floats()
    assert read(tiff(stored, 2, sample_format=3)).is_linear
    for gamma, is_linear in ((1.0, True), (2.2, False)):
        profile = {34675: (7, list(icc(gamma=gamma)))}
        assert read(tiff(stored, 2, sample_format=3, extra=profile)).is_linear == is_linear


def test_whole_numbers_are_light_where_a_profile_or_a_gamma_says_so(read):
    def of(*chunks):
        return read(png(4, 4, 8, 2, photo(4, 4).tobytes(), chunks)).is_linear

    assert not of()
    assert not of((b"gAMA", struct.pack(">I", 45455)))
    assert of((b"gAMA", struct.pack(">I", 100_000)))
    assert not of((b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0"))
    assert of((b"iCCP", b"a\0\0" + zlib.compress(icc(gamma=1.0))))


def test_light_is_put_on_the_curve_where_the_format_cannot_tell(read, tmp_path):
    half = np.full((16, 16, 3), 0.2140411, np.float32)  # of the light: half way on the sRGB curve
    half[0, 0] = 7.0
    picture = read(tiff(half, 2, sample_format=3))
    made = write_image(half, picture, format="png")
    assert made.lost == ("floating point", "what is beyond black and white")
    back = again(made, tmp_path)
    assert back.pixels.dtype == np.uint16
    assert abs(int(back.pixels[8, 8, 0]) - 65535 // 2) <= 1
    assert back.pixels[0, 0].tolist() == [65535] * 3


def test_a_png_of_light_stays_so_and_becomes_a_jpeg_for_screens(read, tmp_path):
    levels = np.full((16, 16, 3), 55, np.uint8)  # 0.2157 of the light; 128 on the curve
    picture = read(png(16, 16, 8, 2, levels.tobytes(), [(b"gAMA", struct.pack(">I", 100_000))]))
    np.testing.assert_array_equal(again(write_image(levels, picture, format="same"), tmp_path).pixels, levels)
    jpeg = again(write_image(levels, picture, format="jpeg", quality=100), tmp_path)
    assert jpeg.pixels[8, 8].tolist() == [128] * 3


def a_tiff_of_pages(*pages: Pixels, **more) -> bytes:
    made = io.BytesIO()
    with tifffile.TiffWriter(made, **more) as writer:
        for page in pages:
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", resolution=(300, 300))
    return made.getvalue()


PAGES = (photo(), photo(30, 20, bits=16, seed=2), photo(seed=3)[..., 0], photo(9, 7, bits=16)[..., 1] / np.float32(9))


@pytest.mark.parametrize("more", [{}, {"byteorder": ">"}, {"bigtiff": True}])
def test_each_page_of_a_tiff_is_read_and_all_go_into_one_again(more, tmp_path):
    path = tmp_path / "pages.tiff"
    path.write_bytes(a_tiff_of_pages(*PAGES, **more))
    pictures = [read_image(path, LIMITS, number) for number in range(4)]
    assert [picture.pages for picture in pictures] == [4] * 4
    made = join_pages([write_image(picture.pixels, picture, format="same") for picture in pictures])
    path.write_bytes(made.data)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 4
        for page, expected in zip(file.pages, PAGES, strict=True):
            np.testing.assert_array_equal(page.asarray(), expected)
            assert page.tags["XResolution"].value == (300, 1)
    with pillow(made.data) as other:
        assert other.n_frames == 4


def test_the_further_pages_of_a_tiff_are_named_as_lost_where_there_is_one_page_only(read):
    picture = read(a_tiff_of_pages(photo(), photo(seed=2)))
    np.testing.assert_array_equal(picture.pixels, photo())
    assert write_image(picture.pixels, picture, format="png").lost == ("pages after the first", "text")
    assert write_image(picture.pixels, picture, format="tiff").lost == ()


def test_smaller_copies_of_a_page_are_no_pages_and_are_named_as_lost(read):
    made = io.BytesIO()
    with tifffile.TiffWriter(made) as writer:
        writer.write(photo(), photometric="rgb")
        writer.write(photo(24, 32), photometric="rgb", subfiletype=1)
    picture = read(made.getvalue())
    assert picture.pages == 1
    assert picture.lost == ("smaller copies",)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp", ".avif"])
def test_a_file_cut_short_anywhere_is_bad_input(suffix, read):
    data = encoded(suffix, bgr(photo()))
    for length in range(0, len(data) - 12, max(1, len(data) // 50)):  # the last bytes may say nothing but the end
        with pytest.raises(BadInput):
            read(data[:length])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp", ".avif"])
def test_a_damaged_file_gives_pixels_or_bad_input(suffix, read):
    chance = np.random.default_rng(7)
    data = np.frombuffer(encoded(suffix, bgr(photo())), np.uint8)
    for _ in range(60):
        hurt = data.copy()
        hurt[chance.integers(0, len(hurt), 6)] = chance.integers(0, 256, 6)
        with contextlib.suppress(BadInput):
            assert read(hurt.tobytes()).pixels.shape[2] == 3


def test_text_that_calls_itself_png_is_refused(read):
    with pytest.raises(UnknownFormat, match="accepted are PNG"):
        read(b"This is not a picture at all.", "picture.png")


def test_a_suffix_that_lies_does_no_harm(read):
    assert read(encoded(".jpg", bgr(photo())), "picture.png").content_type == "image/jpeg"


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(png(50_000, 50_000, 8, 2, b""))
    with pytest.raises(FrameTooLarge, match="50000x50000"):
        read_image(path, LIMITS)


def test_a_picture_too_long_for_webp_is_refused_clearly(read):
    picture = read(encoded(".png", np.zeros((1, 20_000), np.uint8)))
    with pytest.raises(BadInput, match="webp cannot hold an image of 20000x1"):
        write_image(picture.pixels, picture, format="webp")


def test_a_format_that_is_not_offered_is_refused_with_those_that_are(read):
    picture = read(encoded(".png", bgr(photo())))
    with pytest.raises(BadInput, match="format is 'gif'; allowed are same, png, jpeg, webp, tiff, avif"):
        write_image(picture.pixels, picture, format="gif")
