"""What a picture's numbers mean goes from file to file, where it is not sRGB; PQ is seen as networks know pictures."""

import io
import struct
import zlib

import numpy as np
import pytest
from media_samples import bgr, encoded, icc, photo, png

from models.quality import psnr_db
from service.demo import read_photo
from service.job import Options
from service.media import heif, light
from service.media.hdr_curve import PQ, PqScale, codes_of, light_of
from service.media.image import read_image, write_image
from service.media.sniff import png_chunks
from service.pipeline.denoiser import Tally
from service.pipeline.images import denoise_image
from service.pipeline.shelf import Shelf
from service.settings import Settings

BT2020, P3, SRGB_CURVE = 9, 12, 13
LIMITS = Settings()


@pytest.fixture
def read(tmp_path):
    def read_bytes(data):
        path = tmp_path / "picture"
        path.write_bytes(data)
        return read_image(path, LIMITS)

    return read_bytes


def an_avif(colours):
    made = encoded(".avif", bgr(photo(96, 128)))
    told = heif.with_colours(made, colours)
    assert told
    assert len(told) == len(made)
    return told


def a_png(pixels, colours):
    rows = pixels.astype(">u2").tobytes()
    return png(pixels.shape[1], pixels.shape[0], 16, 2, rows, [(b"cICP", bytes([*colours, 0, 1]))])


@pytest.mark.parametrize("colours", [(BT2020, PQ), (P3, SRGB_CURVE)])
@pytest.mark.parametrize("into", ["png", "avif"])
@pytest.mark.parametrize("source", ["png", "avif"])
def test_colours_that_are_not_srgbs_go_from_file_to_file(source, into, colours, read):
    picture = read(an_avif(colours) if source == "avif" else a_png(photo(96, 128).astype(np.uint16) * 257, colours))
    assert picture.metadata.colours == colours
    made = write_image(picture.pixels, picture, format=into)
    assert "colour space" not in made.lost
    assert read(made.data).metadata.colours == colours
    if into == "png":
        told = [made.data[at : at + size] for kind, at, size in png_chunks(io.BytesIO(made.data)) if kind == b"cICP"]
        assert told == [bytes([*colours, 0, 1])]


def test_of_a_png_the_numbers_count_before_a_profile(read):
    """Which HDR pictures have for readers that do not know `cICP`."""
    profile = (b"iCCP", b"hdr\0\0" + zlib.compress(icc()))
    rows = photo(96, 128).astype(">u2").tobytes()
    picture = read(png(128, 96, 16, 2, rows, [(b"cICP", bytes([BT2020, PQ, 0, 1])), profile]))
    assert (picture.metadata.colours, picture.metadata.icc) == ((BT2020, PQ), icc())


@pytest.mark.parametrize("into", ["jpeg", "webp", "tiff"])
def test_where_a_format_cannot_say_it_the_loss_is_named(into, read):
    picture = read(an_avif((BT2020, PQ)))
    assert picture.lost == ()
    assert write_image(picture.pixels, picture, format=into).lost == ("colour space",)


def test_numbers_that_the_standard_cannot_have_are_not_passed_on(read):
    plain = encoded(".avif", bgr(photo(96, 128)))
    at = plain.index(b"nclx")
    odd = plain[: at + 4] + struct.pack(">HH", 9, 4096) + plain[at + 8 :]
    assert read(odd).metadata.colours is None
    assert heif.with_colours(b"\0\0\0\x0cftypavif", (9, 16)) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_a_network_leaves_alone_is_the_stored_code(dtype):
    stored = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16, 1).repeat(3, 2)
    scale = PqScale()
    seen = scale.seen(stored)
    np.testing.assert_array_equal(scale.stored(seen, seen, stored), stored)
    made = scale.stored(np.zeros_like(seen), seen, stored)
    np.testing.assert_array_equal(made[seen >= 1], stored[seen >= 1])  # above white it was not seen
    assert not made[seen < 1].any()


def test_a_picture_in_pq_is_restored_better_along_the_other_curve(tmp_path):
    """Noise as a sensor adds it to light; told to be something else, the same codes are seen as they are."""
    clean = (read_photo()[100:260, 120:312] / 255.0) ** 2.4 * 203
    noisy = clean + 203 * 0.01 * np.random.default_rng(2).standard_normal(clean.shape)
    codes = np.rint(codes_of(noisy) * 65535).astype(np.uint16)
    denoiser = Shelf(LIMITS).denoiser("fitvnet-spatial.camera")
    shown = {}
    for transfer in (PQ, 1):
        (tmp_path / "in.png").write_bytes(a_png(codes, (BT2020, transfer)))
        tally = Tally()
        made = denoise_image(denoiser, tmp_path / "in.png", Options(), LIMITS, tally=tally)
        (tmp_path / "out.png").write_bytes(made.data)
        restored = read_image(tmp_path / "out.png", LIMITS)
        assert restored.metadata.colours == (BT2020, transfer)
        assert any("PQ" in note for note in tally.notes) == (transfer == PQ)
        shown[transfer] = psnr_db(as_a_photograph(light_of(restored.pixels / 65535)), as_a_photograph(clean))
    assert shown[PQ] > shown[1] + 0.5


def as_a_photograph(nits):
    """White at 203 nits, as BT.2408 has it for what was not made in HDR."""
    return light.encoded((nits / 203).clip(0, 1).astype(np.float32))


def test_at_strength_0_every_code_comes_out_as_it_went_in(tmp_path):
    codes = np.random.default_rng(1).integers(0, 65536, (96, 128, 3)).astype(np.uint16)
    (tmp_path / "in.png").write_bytes(a_png(codes, (BT2020, PQ)))
    made = denoise_image(Shelf(LIMITS).denoiser("unet.fast"), tmp_path / "in.png", Options(strength=0.0), LIMITS)
    (tmp_path / "out.png").write_bytes(made.data)
    np.testing.assert_array_equal(read_image(tmp_path / "out.png", LIMITS).pixels, codes)


def test_a_reference_is_seen_along_the_same_curve(tmp_path):
    clean = np.rint(codes_of((read_photo()[100:196, 120:248] / 255.0) ** 2.4 * 203) * 65535).astype(np.uint16)
    noisy = np.clip(clean + np.random.default_rng(3).normal(0, 900, clean.shape), 0, 65535).astype(np.uint16)
    for name, codes in (("noisy", noisy), ("clean", clean)):
        (tmp_path / name).write_bytes(a_png(codes, (BT2020, PQ)))
    made = denoise_image(
        Shelf(LIMITS).denoiser("unet.fast"), tmp_path / "noisy", Options(), LIMITS, reference=tmp_path / "clean"
    )
    seen = [PqScale().seen(codes) for codes in (noisy, clean)]
    assert made.metrics.input_psnr_db == pytest.approx(psnr_db(*seen), abs=0.01)
