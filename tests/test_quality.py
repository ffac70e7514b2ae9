"""Do PSNR, SSIM, noise and cards say what they should?"""

import json
import math

import numpy as np
import pytest
from seeded_networks import write_weights
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models.cards import Card, Training, card_of, record_quality, renew_card, write_card
from models.catalogue import CATALOGUE, DNCNN, FITVNET
from models.errors import UnknownDenoiser
from models.noise import add_gaussian
from models.quality import STRIP_VALUES, psnr_db, ssim


def picture(height: int, width: int, channels: int | None = 3, seed: int = 1) -> np.ndarray:
    """Smooth waves with an edge: float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width] / 17
    planes = [
        0.5 + 0.4 * np.sin(down * rng.uniform(0.5, 2) + across * rng.uniform(0.5, 2)) * np.sign(across - 2)
        for _ in range(channels or 1)
    ]
    pixels = np.stack(planes, -1).astype(np.float32)
    return pixels if channels else pixels[..., 0]


def reference_ssim(restored: np.ndarray, clean: np.ndarray) -> float:
    return structural_similarity(
        restored,
        clean,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=2 if clean.ndim == 3 else None,
    )


def test_psnr_of_a_known_error_is_the_textbooks():
    clean = np.full((40, 30, 3), 0.5, np.float32)
    assert psnr_db(clean + np.float32(0.1), clean) == pytest.approx(20, abs=1e-4)
    assert psnr_db(clean, clean) == math.inf


def test_psnr_agrees_with_scikit_image_at_any_size():
    for height in (7, 61, 2 * STRIP_VALUES // (200 * 3) + 5):  # the last takes several strips
        clean = picture(height, 200)
        noisy = add_gaussian(clean, 0.1, seed=2)
        assert psnr_db(noisy, clean) == pytest.approx(peak_signal_noise_ratio(clean, noisy, data_range=1), abs=1e-4)


def test_integers_are_measured_over_their_full_range_and_may_meet_floats():
    clean = picture(64, 80)
    noisy = add_gaussian(clean, 0.1, seed=3, clipped=True)
    in_8_bits = np.rint(noisy * 255).astype(np.uint8)
    in_16_bits = np.rint(noisy * 65535).astype(np.uint16)
    for stored in (in_8_bits, in_16_bits):
        assert psnr_db(stored, clean) == pytest.approx(psnr_db(noisy, clean), abs=1e-3)
        assert ssim(stored, clean) == pytest.approx(ssim(noisy, clean), abs=1e-5)
    # The difference of unsigned integers must not wrap around.
    assert psnr_db(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)) == 0


@pytest.mark.parametrize("shape", [(64, 48, 3), (11, 11, 3), (1500, 130, 3), (33, 200, None), (12, 300, 1)])
@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_ssim_agrees_with_scikit_image(shape, sigma):
    clean = picture(*shape)
    noisy = add_gaussian(clean, sigma, seed=4)
    # scikit-image filters in float64 of its input's type; ours in float32 throughout.
    assert ssim(noisy, clean) == pytest.approx(reference_ssim(noisy, clean), abs=1e-4)


@pytest.mark.parametrize("shape", [(10, 64), (64, 3), (1, 1), (2, 5)])
def test_a_picture_smaller_than_the_window_has_an_ssim_too(shape):
    clean = picture(*shape)
    assert ssim(clean, clean) == pytest.approx(1, abs=1e-5)
    assert ssim(add_gaussian(clean, 0.3, seed=5), clean) < 0.99


def test_views_are_measured_like_copies():
    clean = picture(40, 50).transpose(2, 0, 1)
    noisy = add_gaussian(np.ascontiguousarray(clean), 0.1, seed=6)
    seen = (noisy.transpose(1, 2, 0), clean.transpose(1, 2, 0))
    copied = tuple(np.ascontiguousarray(view) for view in seen)
    assert psnr_db(*seen) == psnr_db(*copied)
    assert ssim(*seen) == ssim(*copied)


def test_pictures_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        psnr_db(picture(8, 8), picture(8, 9))
    with pytest.raises(ValueError, match="one shape"):
        ssim(picture(8, 8), picture(8, 8, None))


def test_gaussian_noise_has_its_level_and_comes_back_with_its_seed():
    clean = picture(300, 200)
    before = clean.copy()
    noisy = add_gaussian(clean, 25 / 255, seed=7)
    assert noisy.dtype == np.float32
    assert (noisy - clean).std() * 255 == pytest.approx(25, rel=0.01)  # 180 000 draws: 0.2 % is one sigma
    assert (noisy - clean).mean() * 255 == pytest.approx(0, abs=0.25)
    assert np.array_equal(noisy, add_gaussian(clean, 25 / 255, seed=7))
    assert not np.array_equal(noisy, add_gaussian(clean, 25 / 255, seed=8))
    assert np.array_equal(clean, before)
    assert noisy.min() < 0


def test_clipped_noise_is_what_an_upload_holds():
    clean = picture(100, 100)
    noisy = add_gaussian(clean, 50 / 255, seed=9)
    upload = add_gaussian(clean, 50 / 255, seed=9, clipped=True)
    assert upload.dtype == np.float32
    stored = np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)
    assert np.array_equal(np.rint(upload * 255).astype(np.uint8), stored)
    assert np.array_equal(upload, stored.astype(np.float32) / 255)


# --- cards

A_RUN = Training(
    weights="dncnn", sha256="ab" * 32, recipe="dncnn", data="photos", minutes=9.5, steps=70, seed=1, device="cpu"
)


def test_a_card_reads_back_as_it_was_written(tmp_path):
    card = Card(
        name="dncnn",
        training=(A_RUN,),
        limits="Gaussian noise only.",
        quality={"cbsd68": {"25": {"noisy": 20.5, "restored": 31.2, "ssim": 0.88}}},
    )
    write_card(card, tmp_path)
    assert card_of("dncnn", tmp_path) == card
    assert "cbsd68, sigma 25: noisy 20.5, restored 31.2, ssim 0.88" in card.text()
    assert json.loads(json.dumps(card.as_dict()))["training"][0]["sha256"] == "ab" * 32


def test_a_denoiser_without_a_card_is_unknown(tmp_path):
    with pytest.raises(UnknownDenoiser, match=r"no card dncnn\.json"):
        card_of("dncnn", tmp_path)


def test_figures_are_added_to_a_card_and_dropped_with_the_weights_they_were_measured_on(tmp_path):
    weights_dir, cards_dir = write_weights(tmp_path / "weights"), tmp_path / "cards"
    folders = {"weights_dir": weights_dir, "cards_dir": cards_dir}
    record_quality("fitvnet", "davis", "25", {"restored": 30.0}, **folders)
    record_quality("fitvnet", "davis", "50", {"restored": 27.0}, **folders)
    card = record_quality("fitvnet", "davis", "25", {"restored": 31.0}, **folders)
    assert card.quality == {"davis": {"25": {"restored": 31.0}, "50": {"restored": 27.0}}}
    assert [run.weights for run in card.training] == list(FITVNET.weights)
    assert renew_card(FITVNET, weights_dir, cards_dir) == card

    retrained = weights_dir / "fitvnet.safetensors"
    retrained.write_bytes(retrained.read_bytes()[:-1] + b"\x01")
    renewed = renew_card(FITVNET, weights_dir, cards_dir)
    assert renewed.quality == {}
    assert renewed.training[0] == card.training[0]
    assert renewed.training[1].sha256 != card.training[1].sha256


def test_a_card_tells_of_the_run_that_made_the_weights(tmp_path):
    card = renew_card(DNCNN, write_weights(tmp_path / "weights"), tmp_path / "cards")
    assert (card.training[0].recipe, card.training[0].data, card.training[0].seed) == ("dncnn", "none", 1)
    assert "level 0 to 55" in card.limits
    with pytest.raises(UnknownDenoiser, match="no weights"):
        renew_card(DNCNN, tmp_path, tmp_path / "cards")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_shipped_denoiser_has_a_card_of_its_shipped_weights(name, tmp_path):
    card = card_of(name)
    assert card.training == renew_card(CATALOGUE[name], cards_dir=tmp_path).training
    assert card.quality
