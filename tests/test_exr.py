"""OpenEXR: what renderers and compositors keep light in comes back with all that it says, less the noise."""

import struct
from io import BytesIO

import numpy as np
import OpenEXR
import pytest

from service.demo import read_photo
from service.errors import BadInput, FrameTooLarge
from service.media import exr
from service.media.image import write_image
from service.media.light import decoded
from service.media.sniff import probe_image
from service.sandbox import images
from service.sandbox.images import read_image
from service.settings import Settings

SETTINGS = Settings()
WINDOW = (3, -5, 42, 24)  # forty by thirty


def light(count=3, seed=0, dtype=np.float16):
    """[30, 40, count], some of it brighter than white, some not finite."""
    values = np.random.default_rng(seed).gamma(0.8, 0.3, (30, 40, count)).astype(dtype)
    values[4, 5] = np.inf
    values[6, 7] = np.nan
    values[8, 9] = 60000
    return values


def written(channels, **header):
    left, top, right, bottom = header.pop("window", WINDOW)
    told = {
        "type": OpenEXR.scanlineimage,
        "compression": OpenEXR.ZIP_COMPRESSION,
        "dataWindow": (np.array([left, top], np.int32), np.array([right, bottom], np.int32)),
        **header,
    }
    file = BytesIO()
    planes = {name: np.ascontiguousarray(plane) for name, plane in channels.items()}
    OpenEXR.File(told, planes, num_threads=0).write(file)
    return file.getvalue()


def read_back(data):
    """Its header, and its channels as they are stored."""
    file = OpenEXR.File(BytesIO(data), separate_channels=True, num_threads=0)
    return file.header(), {name: channel.pixels for name, channel in file.channels().items()}


@pytest.fixture
def read(tmp_path):
    """What the confined decoder makes of bytes."""

    def reader(data):
        (tmp_path / "in.exr").write_bytes(data)
        return read_image(tmp_path / "in.exr", SETTINGS)

    return reader


def rgba(values):
    return dict(zip("RGBA", np.moveaxis(values, -1, 0), strict=False))


@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "DWAA"])
@pytest.mark.parametrize(("dtype", "count"), [(np.float16, 3), (np.float32, 4)])
def test_a_copy_has_every_number_and_every_word_of_the_source(read, dtype, count, compression):
    said = {
        "compression": getattr(OpenEXR, f"{compression}_COMPRESSION"),
        "owner": "the sixth floor",
        "framesPerSecond": 23.976,
        "chromaticities": (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
        "displayWindow": (np.array([0, 0], np.int32), np.array([99, 49], np.int32)),
        "pixelAspectRatio": 2.0,
        "shot/plate": "sq010_0020",
    }
    source = written(rgba(light(count, dtype=dtype)), **said)
    picture = read(source)
    assert picture.pixels.dtype == np.float32
    assert (picture.alpha is not None, picture.is_linear, picture.lost) == (count == 4, True, ())
    made = write_image(picture.pixels, picture, format="same")
    assert (made.content_type, made.suffix, made.lost) == ("image/x-exr", ".exr", ())
    (old, before), (new, after) = read_back(source), read_back(made.data)
    assert before.keys() == after.keys()
    for name, plane in before.items():
        assert after[name].dtype == plane.dtype == dtype
        np.testing.assert_array_equal(after[name], plane)
    is_lossless = compression not in ("PXR24", "DWAA")
    assert new["compression"] == (old["compression"] if is_lossless else OpenEXR.ZIP_COMPRESSION)
    for header in (old, new):
        header.pop("channels"), header.pop("compression")
    assert repr(new) == repr(old)


def test_luminance_alone_stays_that(read):
    plane = light(1)[..., 0]
    picture = read(written({"Y": plane}))
    assert picture.is_grey
    header, channels = read_back(write_image(picture.pixels, picture, format="same").data)
    assert list(channels) == ["Y"]
    np.testing.assert_array_equal(channels["Y"], plane)
    assert header["compression"] == OpenEXR.ZIP_COMPRESSION


def test_a_single_layer_is_the_picture_and_what_is_beside_it_is_named(read):
    colours = {f"View.Combined.{name}": plane for name, plane in rgba(light(4)).items()}
    beside = {"View.Depth.Z": light(1, 3, np.float32)[..., 0], "id": np.ones((30, 40), np.uint32)}
    picture = read(written({**colours, **beside}))
    assert picture.lost == ("further channels",)
    _, channels = read_back(write_image(picture.pixels, picture, format="same").data)
    assert channels.keys() == colours.keys()
    for name, plane in colours.items():
        np.testing.assert_array_equal(channels[name], plane)


def test_a_tiled_file_is_read_and_written_in_lines(read):
    values = light()
    tiles = OpenEXR.TileDescription()
    tiles.xSize = tiles.ySize = 16
    picture = read(written(rgba(values), type=OpenEXR.tiledimage, tiles=tiles))
    np.testing.assert_array_equal(picture.pixels, values.astype(np.float32))
    header, _ = read_back(write_image(picture.pixels, picture, format="same").data)
    assert header["type"] == OpenEXR.scanlineimage
    assert "tiles" not in header


def test_what_is_restored_is_written_and_what_is_too_bright_for_half_is_the_brightest(read):
    picture = read(written(rgba(np.full((30, 40, 3), 0.5, np.float16))))
    restored = np.full_like(picture.pixels, 0.25)
    restored[0, 0] = 1e6
    _, channels = read_back(write_image(restored, picture, format="same").data)
    assert np.all(channels["G"][1:] == 0.25)
    assert channels["R"][0, 0] == 65504


def test_as_another_format_it_says_what_that_cannot_hold(read):
    values = np.clip(light(4).astype(np.float32), 0, 0.9)
    values[~np.isfinite(values)] = 0.5
    values[..., 3] = 0.5  # the colours are multiplied by that: 0.9 is brighter than white
    values[..., :3] *= 0.5
    data = written(rgba(values), chromaticities=(0.708, 0.292, 0.17, 0.797, 0.131, 0.046, 0.3127, 0.329), owner="me")
    picture = read(data)
    tiff = write_image(picture.pixels, picture, format="tiff")
    assert tiff.lost == ("attributes", "colour space")
    png = write_image(picture.pixels, picture, format="png")
    assert set(png.lost) == {"attributes", "colour space", "floating point"}
    plain = read(written(rgba(values[..., :3]), window=(0, 0, 39, 29)))
    assert write_image(plain.pixels, plain, format="tiff").lost == ()


def test_colours_leave_their_alpha_where_a_format_wants_them_apart(read, tmp_path):
    values = np.full((30, 40, 4), 0.25, np.float32)
    values[..., 3] = 0.5
    picture = read(written(rgba(values)))
    made = write_image(picture.pixels, picture, format="tiff")
    (tmp_path / "made.tiff").write_bytes(made.data)
    apart = read_image(tmp_path / "made.tiff", SETTINGS)
    assert np.all(apart.pixels == 0.5)
    assert np.all(apart.alpha == 0.5)
    together = write_image(apart.pixels, apart, format="exr")
    for name, plane in read_back(together.data)[1].items():
        assert np.all(plane == (0.5 if name == "A" else 0.25))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_photograph_becomes_light(tmp_path, bits):
    import cv2

    photo = read_photo()[:64, :80]
    stored = photo if bits == 8 else photo.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "in.png"), stored[..., ::-1])
    picture = read_image(tmp_path / "in.png", SETTINGS)
    made = write_image(picture.pixels, picture, format="exr")
    _, channels = read_back(made.data)
    assert channels["R"].dtype == (np.float16 if bits == 8 else np.float32)
    expected = decoded(photo.astype(np.float32) / 255)
    for at, name in enumerate("RGB"):
        np.testing.assert_allclose(channels[name].astype(np.float32), expected[..., at], rtol=1e-3, atol=1e-6)


def broken_header(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


REFUSED = {
    "deep": (lambda data: data[:5] + b"\x08" + data[6:], "deep pixels"),
    "several parts": (lambda data: data[:5] + b"\x10" + data[6:], "several parts"),
    "version 3": (lambda data: data[:4] + b"\x03" + data[5:], "version 3"),
    "no window": (lambda data: broken_header(data, b"dataWindow", b"dataWindoW"), "does not tell window"),
    "no colours": (lambda data: broken_header(data, b"R\0\x01\0\0\0\0", b"Q\0\x01\0\0\0\0"), "it has B, G, Q"),
    "whole numbers": (lambda data: broken_header(data, b"R\0\x01\0\0\0\0", b"R\0\0\0\0\0\0"), "of whole numbers"),
    "a name without end": (lambda data: data[:8] + b"x" * 400, "cut short or broken"),
    "nothing but magic": (lambda data: data[:4], "cut short"),
    "a header alone": (lambda data: data[:200], "cut short"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_in_words(read, what):
    change, words = REFUSED[what]
    with pytest.raises(BadInput, match=words):
        read(change(written(rgba(light()))))


def test_a_layer_has_a_name_that_can_be_written(read):
    values = rgba(light())
    assert read(written({f"{'a' * 199}.{name}": plane for name, plane in values.items()})).pixels.shape == (30, 40, 3)
    with pytest.raises(BadInput, match="name has 201 characters; at most 200"):
        read(written({f"{'a' * 200}.{name}": plane for name, plane in values.items()}))


SAID = {"window": [0, 0, 9, 9], "is_half": True, "compression": 3, "layer": "", "is_plain": True, "attributes": []}


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"window": [2**40, 0, 2**40 + 9, 9]}, "1099511627776"),
        ({"window": [0, 0, 9]}, "unpack"),
        ({"layer": "a\0b"}, "a.x00b"),
        ({"layer": "a" * 201}, "aaa"),
        ({"attributes": [[b"channels".hex(), b"chlist".hex()]]}, "channels"),
        ({"attributes": [[b"a\0b".hex(), b"string".hex()]]}, "string"),
        ({"attributes": [[b"a".hex(), b"string".hex()]] * 2}, "string"),
        ({"attributes": [["not hex", "00"]]}, "hexadecimal"),
    ],
)
def test_a_decoder_that_lies_about_an_openexr_file_is_not_believed(lie, words):
    assert images._exr(SAID, []).window == (0, 0, 9, 9)
    said = {**SAID, **lie}
    with pytest.raises(ValueError, match=words):
        images._exr(said, [b""] * len(said["attributes"]))


def test_windows_are_measured_before_anything_is_decoded(read):
    data = written(rgba(light()))
    window = struct.pack("<4i", *WINDOW)
    with pytest.raises(FrameTooLarge, match="50001x50001"):
        read(broken_header(data, window, struct.pack("<4i", 0, 0, 50_000, 50_000)))
    with pytest.raises(BadInput, match="at least one pixel"):
        read(broken_header(data, window, struct.pack("<4i", 0, 0, -1, 10)))
    with pytest.raises(BadInput, match="data window is"):
        read(broken_header(data, window, struct.pack("<4i", -(2**31), 0, 2**31 - 1, 10)))
    with pytest.raises(BadInput, match="damaged"):  # of another height than the pixels are of
        read(broken_header(data, window, struct.pack("<4i", 3, -5, 42, 2400)))


def test_a_file_cut_short_anywhere_is_refused(read):
    data = written(rgba(light()))
    for length in range(0, len(data) - 1, 997):
        with pytest.raises(BadInput):
            read(data[:length])


def test_flipped_bits_give_a_picture_or_a_refusal_and_never_more(read):
    data = bytearray(written(rgba(light())))
    random = np.random.default_rng(1)
    for _ in range(40):
        harmed = bytearray(data)
        for at in random.integers(8, len(data), 3):
            harmed[at] ^= 1 << random.integers(8)
        try:
            picture = read(bytes(harmed))
        except (BadInput, FrameTooLarge):
            continue
        assert picture.pixels.shape[2] == 3
        made = write_image(picture.pixels, picture, format="same")
        assert exr.read_head(BytesIO(made.data)).width == picture.pixels.shape[1]


def test_the_header_alone_tells_the_size():
    facts = probe_image(BytesIO(written(rgba(light()))), SETTINGS)
    assert (facts.content_type, facts.width, facts.height, facts.pages) == ("image/x-exr", 40, 30, None)
