"""Pictures whose numbers are light, of floating point or not, go through the denoisers and come back."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from media_samples import Pixels
from media_samples import photo as waves
from PIL import Image

from models.catalogue import CATALOGUE
from models.quality import psnr_db
from service.demo import read_photo
from service.errors import BadInput
from service.job import Options
from service.media.light import Scale, decoded, encoded, scale_of
from service.pipeline.denoiser import Denoiser, Tally
from service.pipeline.images import DenoisedImage, denoise_image
from service.pipeline.shelf import Shelf
from service.settings import Settings

NAME = "fitvnet-spatial"


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Shelf(Settings()).denoiser(NAME)


@pytest.fixture(scope="module")
def scene() -> Pixels:
    """[128, 160, 3] float32: what lies before the camera, as light."""
    return decoded(read_photo()[:128, :160].astype(np.float32) / 255)


def with_shot_noise(light: Pixels, seed: int = 1) -> Pixels:
    sigma = np.sqrt(0.004 * light + 0.02**2)
    return (light + np.random.default_rng(seed).normal(0, 1, light.shape) * sigma).astype(np.float32)


def write(path: Path, stored: Pixels) -> None:
    tifffile.imwrite(path, stored, photometric="rgb" if stored.ndim == 3 else "minisblack")


def denoised(
    denoiser: Denoiser, folder: Path, stored: Pixels, reference: Pixels | None = None, **asked
) -> DenoisedImage:
    write(folder / "noisy.tiff", stored)
    if reference is not None:
        write(folder / "clean.tiff", reference)
    clean = folder / "clean.tiff" if reference is not None else None
    tally = Tally()
    made = denoise_image(denoiser, folder / "noisy.tiff", Options(**asked), Settings(), reference=clean, tally=tally)
    (folder / "made.tiff").write_bytes(made.data)
    (folder / "notes").write_text("\n".join(tally.notes))
    return made


def test_the_curve_and_back_is_the_same_light():
    light = np.linspace(0, 1, 10_001, dtype=np.float32)
    np.testing.assert_allclose(decoded(encoded(light)), light, atol=2e-7)
    assert encoded(np.float32([0.2140411]))[0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float16"])
@pytest.mark.parametrize("grey", [False, True])
def test_strength_zero_gives_every_bit_back(dtype, grey, denoiser, tmp_path):
    if dtype.startswith("float"):
        stored = np.random.default_rng(4).normal(0.3, 0.5, (40, 52, 3)).astype(dtype)
    else:
        stored = waves(40, 52, bits=8 if dtype == "uint8" else 16)
    stored = np.ascontiguousarray(stored[..., 0]) if grey else stored
    made = denoised(denoiser, tmp_path, stored, strength=0)
    assert made.lost == []
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "made.tiff"), stored)


def test_a_noisy_picture_of_light_comes_back_clean_on_its_own_scale(denoiser, scene, tmp_path):
    noisy = with_shot_noise(scene)
    made = denoised(denoiser, tmp_path, noisy, scene)
    restored = tifffile.imread(tmp_path / "made.tiff")
    assert restored.dtype == np.float32
    assert psnr_db(restored, scene) > psnr_db(noisy, scene) + 4
    assert made.metrics.psnr_db > made.metrics.input_psnr_db + 5
    assert len(np.unique(restored)) > 20_000  # nothing on the way had 8 bits
    assert "numbers are light" in (tmp_path / "notes").read_text()


def test_counts_of_photons_are_restored_as_the_same_light_would_be(denoiser, scene, tmp_path):
    noisy = with_shot_noise(scene)
    counts = (noisy * 4000).astype(np.float32)
    made = denoised(denoiser, tmp_path, counts, scene * np.float32(4000))
    restored = tifffile.imread(tmp_path / "made.tiff")
    assert psnr_db(restored / np.float32(4000), scene) > psnr_db(noisy, scene) + 4
    assert made.metrics.psnr_db > made.metrics.input_psnr_db + 5
    assert "black at -" in (tmp_path / "notes").read_text()


def test_the_sun_stays_as_bright_as_it_was_and_what_is_no_number_stays_none(denoiser, scene, tmp_path):
    noisy = with_shot_noise(scene)
    noisy[:10, :10] = 50.0
    noisy[20, 20] = np.nan
    noisy[21, 21] = np.inf
    denoised(denoiser, tmp_path, noisy)
    restored = tifffile.imread(tmp_path / "made.tiff")
    np.testing.assert_array_equal(restored[:10, :10], noisy[:10, :10])
    np.testing.assert_array_equal(restored[20:22, 20:22][[0, 1], [0, 1]], noisy[20:22, 20:22][[0, 1], [0, 1]])
    assert np.isfinite(restored).sum() == restored.size - 6


def test_the_left_half_of_a_comparison_is_untouched(denoiser, scene, tmp_path):
    noisy = with_shot_noise(scene)
    denoised(denoiser, tmp_path, noisy, side_by_side=True)
    made = tifffile.imread(tmp_path / "made.tiff")
    np.testing.assert_array_equal(made[:, :79], noisy[:, :79])
    np.testing.assert_allclose(made[:, 79:81], 1, atol=1e-6)


def test_a_16_bit_picture_keeps_its_fine_steps(denoiser, tmp_path):
    stored = (np.clip(waves(64, 64, bits=16).astype(np.int32) // 64 + 20_000, 0, 65535)).astype(np.uint16)
    denoised(denoiser, tmp_path, stored)
    assert len(np.unique(tifffile.imread(tmp_path / "made.tiff"))) > 500  # of 1024 steps; in 8 bits they would be 4


def test_every_page_of_a_tiff_is_restored_and_measured(denoiser, scene, tmp_path):
    photo = read_photo()[:96, :128]
    noise = np.random.default_rng(5).normal(0, 25, photo.shape)
    noisy = np.clip(photo + noise, 0, 255).astype(np.uint8)
    for name, colour, light in (("noisy", noisy, with_shot_noise(scene)), ("clean", photo, scene)):
        with tifffile.TiffWriter(tmp_path / f"{name}.tiff") as file:
            file.write(colour, photometric="rgb")
            file.write(light, photometric="rgb")
            file.write(np.ascontiguousarray(colour[..., 1]), photometric="minisblack")
    tally, told = Tally(), []
    made = denoise_image(
        denoiser,
        tmp_path / "noisy.tiff",
        Options(),
        Settings(),
        reference=tmp_path / "clean.tiff",
        tally=tally,
        on_progress=told.append,
    )
    assert made.lost == []
    (tmp_path / "made.tiff").write_bytes(made.data)
    with tifffile.TiffFile(tmp_path / "made.tiff") as restored, tifffile.TiffFile(tmp_path / "clean.tiff") as clean:
        gains = []
        assert len(restored.pages) == 3
        for page, expected in zip(restored.pages, clean.pages, strict=True):
            assert (page.shape, page.dtype) == (expected.shape, expected.dtype)
            gains.append(psnr_db(np.atleast_3d(page.asarray()), np.atleast_3d(expected.asarray())))
    assert gains[0] > 27
    assert made.metrics.psnr_db == pytest.approx(np.mean([gains[0], gains[2]]), abs=4)
    assert made.metrics.psnr_db > made.metrics.input_psnr_db + 3
    assert (told[-1].done, told[-1].total) == (3, 3)
    assert [one.total for one in told] == [3, 3, 3]


def test_a_reference_of_fewer_pages_is_refused(denoiser, tmp_path):
    tifffile.imwrite(tmp_path / "noisy.tiff", np.stack([waves()] * 2), photometric="rgb")
    tifffile.imwrite(tmp_path / "clean.tiff", waves(), photometric="rgb")
    with pytest.raises(BadInput, match="reference has 1 pages, the input 2"):
        denoise_image(denoiser, tmp_path / "noisy.tiff", Options(), Settings(), reference=tmp_path / "clean.tiff")


def test_a_photograph_is_taken_for_one():
    assert scale_of(waves(), is_linear=False) is None
    assert scale_of(waves(bits=16), is_linear=False) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 0.8, 1000), Scale(True)),
        (np.append(np.linspace(0, 0.8, 1000), [900.0] * 20), Scale(True)),  # lamps
        (np.zeros(100), Scale(True)),
        (np.full(100, np.nan), Scale(True)),
        (np.full(100, 3e38), Scale(True)),
    ],
)
def test_what_is_white_at_one_is_seen_so(values, expected):
    assert scale_of(values.astype(np.float32), is_linear=True) == expected


def test_black_and_white_leave_a_thousandth_beyond_them():
    dark = scale_of(np.linspace(0, 1e-3, 10_001).astype(np.float32), is_linear=True)
    assert dark.white == pytest.approx(0.999e-3, rel=1e-3)
    around = scale_of(np.linspace(-100, 900, 10_001).astype(np.float32), is_linear=False)
    assert (around.black, around.white) == (pytest.approx(-99, abs=0.1), pytest.approx(899, abs=0.1))
    assert not around.is_linear


def test_a_reference_of_whole_numbers_is_met_on_the_curve(denoiser, scene, tmp_path):
    on_curve = np.rint(encoded(scene) * 255).astype(np.uint8)
    Image.fromarray(on_curve).save(tmp_path / "clean.png")
    write(tmp_path / "noisy.tiff", scene)
    made = denoise_image(
        denoiser, tmp_path / "noisy.tiff", Options(strength=0), Settings(), reference=tmp_path / "clean.png"
    )
    assert made.metrics.psnr_db > 58  # rounding to 8 bits is 58.9 dB


def test_models_are_given_whatever_is_between_the_steps_of_eight_bits():
    seen = []

    class Watcher:
        backend, precision, batch, contexts = "watcher", "fp32", 4, 1

        def denoise(self, noisy, sigma):
            seen.append(noisy.copy())
            return noisy

    fine = (20_000 + np.arange(64 * 64 * 3, dtype=np.uint16)).reshape(64, 64, 3)
    restored = Denoiser(CATALOGUE[NAME], [Watcher()], 512).restore_picture(fine)
    np.testing.assert_array_equal(restored, fine)
    assert len(np.unique(seen[0])) == fine.size
