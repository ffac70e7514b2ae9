"""Is the noise that denoisers are measured by what its formula says, and is its level found again?"""

import math

import numpy as np
import pytest

from models.noise import (
    NOISES,
    Gaussian,
    Mixed,
    PartialPatch,
    PoissonGaussian,
    SignalDependent,
    Subsampled,
    add_gaussian,
    gaussian_level,
    noise_named,
    recorded,
)
from models.noise_level import NoiseLevel, clipped_moments, estimate_sigma, measure_noise

YCC = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])  # BT.601
YCC_OF_HD = np.array([[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]])  # BT.709
NAMES = ["gaussian-25", *NOISES]


def waves(height: int, width: int, seed: int = 1) -> np.ndarray:
    """[3, height, width] smooth waves, float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width] / 17
    planes = [0.5 + 0.4 * np.sin(down * rng.uniform(0.5, 2) + across * rng.uniform(0.5, 2)) for _ in range(3)]
    return np.stack(planes).astype(np.float32)


def flat(value: float, side: int = 300) -> np.ndarray:
    return np.full((3, side, side), value, np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_noise_comes_back_with_its_seed_and_leaves_the_clean_picture_alone(name):
    noise, clean = noise_named(name), waves(40, 50)
    before = clean.copy()
    noisy = noise(clean, 7)
    assert (noisy.dtype, noisy.shape) == (np.float32, clean.shape)
    assert np.array_equal(noisy, noise(clean, 7))
    assert not np.array_equal(noisy, noise(clean, 8))
    assert np.array_equal(clean, before)
    assert not np.shares_memory(noisy, clean)


def test_gaussian_noise_has_its_level_and_is_not_clipped():
    clean = waves(300, 200)
    before = clean.copy()
    noisy = add_gaussian(clean, 25 / 255, seed=7)
    assert noisy.dtype == np.float32
    assert (noisy - clean).std() * 255 == pytest.approx(25, rel=0.01)  # 180 000 draws: 0.2 % is one sigma
    assert (noisy - clean).mean() * 255 == pytest.approx(0, abs=0.25)
    assert np.array_equal(noisy, add_gaussian(clean, 25 / 255, seed=7))
    assert not np.array_equal(noisy, add_gaussian(clean, 25 / 255, seed=8))
    assert np.array_equal(clean, before)
    assert noisy.min() < 0


def test_gaussian_noise_by_name_is_the_gaussian_noise_of_all_earlier_tables():
    clean = waves(30, 40)
    assert np.array_equal(noise_named("gaussian-25")(clean, 3), add_gaussian(clean, 25 / 255, seed=3))
    assert noise_named("gaussian-7.5") == Gaussian(7.5 / 255)


@pytest.mark.parametrize("name", ["gaussian-", "gaussian-loud", "gaussian--5", "gaussian-inf", "gaussian-nan", "snow"])
def test_a_noise_that_is_not_known_is_refused_by_name(name):
    assert gaussian_level(name) is None
    with pytest.raises(ValueError, match="known are gaussian-25 and other levels, mixed, signal-low"):
        noise_named(name)


def test_a_tenth_of_mixed_noise_is_salt_and_pepper_and_the_rest_is_gaussian():
    clean = flat(0.5)
    noisy = NOISES["mixed"](clean, 1)
    pepper, salt = (noisy == 0).mean(), (noisy == 1).mean()
    assert pepper == pytest.approx(0.05, abs=0.002)  # 270 000 values: 0.0004 is one sigma
    assert salt == pytest.approx(0.05, abs=0.002)
    rest = noisy[(noisy != 0) & (noisy != 1)]
    assert rest.std() * 255 == pytest.approx(25.5, rel=0.01)
    struck = (noisy == 0) | (noisy == 1)
    assert not np.array_equal(struck[0], struck[1])  # each colour by itself


def test_mixed_noise_without_salt_and_pepper_is_gaussian():
    clean = waves(30, 40)
    assert np.array_equal(Mixed(sigma=0.1, struck=0.0)(clean, 5), add_gaussian(clean, 0.1, seed=5))


@pytest.mark.parametrize(("name", "shot", "read"), [("signal-low", 2.5e-3, 1e-2), ("signal-high", 6.4e-3, 2e-2)])
@pytest.mark.parametrize("light", [0.05, 0.2, 0.7])
def test_signal_dependent_noise_has_the_papers_variance_in_linear_light(name, shot, read, light):
    srgb = 1.055 * light ** (1 / 2.4) - 0.055
    noisy = NOISES[name](flat(srgb), 2).astype(np.float64)
    # Equation (8), turned round by hand: the foot of the curve ends at 0.04045.
    linear = np.where(noisy <= 0.04045, noisy / 12.92, ((np.maximum(noisy, 0) + 0.055) / 1.055) ** 2.4)
    assert linear.mean() == pytest.approx(light, abs=5e-4)
    assert linear.std() == pytest.approx(math.sqrt(shot * light + read**2), rel=0.01)


def test_without_noise_the_way_to_linear_light_and_back_changes_nothing():
    clean = np.linspace(0, 1, 3 * 64 * 64, dtype=np.float32).reshape(3, 64, 64)
    assert np.abs(SignalDependent(shot=0, read=0)(clean, 1) - clean).max() < 1e-6


def test_poisson_gaussian_noise_has_the_variance_of_both():
    noisy = PoissonGaussian(photons=50, sigma=10 / 255)(flat(0.5), 3)
    assert noisy.mean() == pytest.approx(0.5, abs=1e-3)
    assert noisy.std() == pytest.approx(math.sqrt(0.5 / 50 + (10 / 255) ** 2), rel=0.01)


def test_partial_patch_noise_stays_in_one_square_of_all_planes():
    clean = waves(60, 90)
    places = set()
    for seed in range(20):
        changed = (PartialPatch(within=Gaussian(0.1), side=0.5)(clean, seed) != clean).any(0)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (30, 30)
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        places.add((rows[0], columns[0]))
    assert len(places) > 15


@pytest.mark.parametrize(("name", "to_ycc"), [("subsampled-25", YCC), ("subsampled-hd-25", YCC_OF_HD)])
def test_subsampled_noise_is_what_a_file_of_half_the_colours_holds(name, to_ycc):
    clean = flat(0.5)
    noisy = NOISES[name](clean, 4)
    assert np.array_equal(noisy, recorded(noisy))
    luma, blue, red = np.tensordot(to_ycc, noisy, 1)
    for colour in (blue, red):  # four share one, but for the rounding of RGB
        assert np.abs(colour[0::2] - colour[1::2]).max() < 2 / 255
        assert np.abs(colour[:, 0::2] - colour[:, 1::2]).max() < 2 / 255
        assert colour.std() > 3 / 255
    own = 25 * math.sqrt((to_ycc[0] ** 2).sum())
    assert luma.std() * 255 == pytest.approx(own, rel=0.03)
    assert np.abs(np.corrcoef(luma[:, :-1].ravel(), luma[:, 1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (30, 41)])
def test_subsampling_takes_from_a_grey_picture_nothing_whatever_its_size(size):
    grey = np.repeat(recorded(np.random.default_rng(2).random((1, *size), np.float32)), 3, 0)
    assert np.array_equal(Subsampled(0.0)(grey, 1), grey)


def test_clipped_noise_is_what_an_upload_holds():
    clean = waves(100, 100)
    noisy = add_gaussian(clean, 50 / 255, seed=9)
    upload = add_gaussian(clean, 50 / 255, seed=9, clipped=True)
    assert upload.dtype == np.float32
    stored = np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)
    assert np.array_equal(np.rint(upload * 255).astype(np.uint8), stored)
    assert np.array_equal(upload, stored.astype(np.float32) / 255)
    assert np.array_equal(upload, recorded(noisy))


# --- the level, found again


@pytest.mark.parametrize("level", [2, 10, 25, 50])
@pytest.mark.parametrize("shape", [(300, 200), (2100, 900)])  # of the second not all blocks are looked at
def test_the_level_of_white_noise_is_found_again(level, shape):
    noisy = add_gaussian(waves(*shape), level / 255, seed=4)
    # The waves themselves are half a percent of level 2; the rest is chance, of some 10 000 frequencies.
    assert estimate_sigma(noisy) * 255 == pytest.approx(level, rel=0.04)


@pytest.mark.parametrize("level", [10, 25, 60])
def test_each_colour_has_a_level_of_its_own(level):
    shares = np.array([0.5, 1.0, 0.8], np.float32)
    noise = add_gaussian(np.zeros((3, 300, 400), np.float32), level / 255, seed=7)
    found = measure_noise(waves(300, 400) + noise * shares[:, None, None])
    assert np.array(found.sigma) * 255 == pytest.approx(level * shares, rel=0.06)  # waves are nowhere quite flat
    assert found.mean * 255 == pytest.approx(level * np.sqrt((shares**2).mean()), rel=0.04)


@pytest.mark.parametrize("level", [25, 60])
def test_what_clipping_took_from_the_noise_is_put_back(level):
    noisy = recorded(add_gaussian(np.clip(2 * waves(400, 600) - 0.5, 0, 1), level / 255, seed=8))
    assert np.std(noisy - np.clip(2 * waves(400, 600) - 0.5, 0, 1)) * 255 < 0.93 * level
    assert measure_noise(noisy).mean * 255 == pytest.approx(level, rel=0.1)


def test_noise_that_grows_with_brightness_is_told_from_noise_that_does_not():
    clean = np.broadcast_to(np.linspace(0.1, 0.9, 600, dtype=np.float32), (3, 400, 600)).copy()
    drawn = add_gaussian(np.zeros_like(clean), 1.0, seed=9)
    found = measure_noise(clean + drawn * np.sqrt(0.01 * clean + 0.02**2).astype(np.float32))
    assert np.array(found.black) == pytest.approx(0.02, abs=0.008)  # nothing darker than 0.1 is there to see
    assert np.array(found.white) == pytest.approx(np.sqrt(0.0104), rel=0.05)
    steady = measure_noise(clean + drawn * np.float32(0.05))
    assert steady.black == steady.white


def test_the_variance_lies_on_a_line_between_black_and_white():
    noise = NoiseLevel(sigma=(0.1,), black=(0.06,), white=(0.1,))
    brightness = np.array([[-1, 0, 0.5, 1, 2]], np.float32)
    assert noise.variance_at(brightness)[0] == pytest.approx([0.0036, 0.0036, 0.0068, 0.01, 0.01])


@pytest.mark.parametrize(("level", "sigma"), [(0.5, 0.1), (0.1, 0.2), (0.9, 0.3), (0.0, 0.05)])
def test_moments_of_clipped_noise_are_those_of_a_draw(level, sigma):
    drawn = np.random.default_rng(10).normal(level, sigma, 400_000).clip(0, 1)
    assert clipped_moments(level, sigma) == pytest.approx((drawn.mean(), drawn.var()), rel=0.01)


def test_stored_pictures_are_estimated_like_the_floats_they_were():
    noisy = recorded(add_gaussian(waves(200, 300), 10 / 255, seed=5))
    in_8_bits = np.rint(noisy * 255).astype(np.uint8)
    in_16_bits = np.rint(noisy * 65535).astype(np.uint16)
    for stored in (in_8_bits, in_16_bits):
        assert estimate_sigma(stored) == pytest.approx(estimate_sigma(noisy), rel=1e-4)


def test_smooth_surfaces_straight_edges_and_black_bars_are_no_noise():
    edge = flat(0.2)
    edge[..., 100:] = 0.9
    assert estimate_sigma(edge) < 1e-6  # rounding errors of the transform
    assert estimate_sigma(waves(200, 300)) * 255 < 0.1
    barred = np.zeros((3, 400, 300), np.float32)
    barred[:, 150:250] = add_gaussian(waves(100, 300), 25 / 255, seed=6)
    assert estimate_sigma(barred) * 255 == pytest.approx(25, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (50, 2)])
def test_a_picture_too_small_to_tell_has_no_noise(shape):
    assert estimate_sigma(np.ones((3, *shape), np.float32)) == 0
