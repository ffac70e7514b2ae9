"""Do PSNR, SSIM, Average Deviation and cards say what they should?"""

import json
import math

import numpy as np
import pytest
from measured import figure
from safetensors.torch import load_file, save_file
from seeded_networks import write_weights
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models.cards import card_of, renew_card
from models.catalogue import CATALOGUE, DNCNN, FITVNET, NLM
from models.errors import UnknownDenoiser
from models.figures import add_figures, fingerprint
from models.noise import add_gaussian
from models.quality import STRIP_VALUES, average_deviation, psnr_db, ssim


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
    with pytest.raises(ValueError, match="one shape"):
        average_deviation(picture(8, 8), picture(9, 8))


def deviation_by_the_letter(restored: np.ndarray, clean: np.ndarray) -> float:
    """Equation (12), value by value: patches of 32x32, their deviations, the mean of those above the mean."""
    height, width = clean.shape[:2]
    rho = []
    for top in range(0, height // 32 * 32, 32):
        for left in range(0, width // 32 * 32, 32):
            values = [
                float(restored[y, x, c]) - float(clean[y, x, c])
                for y in range(top, top + 32)
                for x in range(left, left + 32)
                for c in range(clean.shape[2])
            ]
            mean = sum(values) / len(values)
            rho.append(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))
    selected = [value for value in rho if value > sum(rho) / len(rho)]
    return sum(selected) / len(selected)


@pytest.mark.parametrize("shape", [(64, 96, 3), (70, 130, 3), (95, 64, 1)])  # with and without a rest at the edges
def test_average_deviation_is_equation_12(shape):
    clean = picture(*shape)
    restored = add_gaussian(clean, 0.05, seed=11)
    restored[:32, 20:50] += np.float32(0.3) * picture(32, 30, shape[2], seed=12)  # what a blurred boundary leaves
    assert average_deviation(restored, clean) == pytest.approx(deviation_by_the_letter(restored, clean), rel=1e-5)


def test_average_deviation_sees_a_blurred_boundary_and_not_a_shift_in_brightness():
    clean = np.zeros((64, 64, 3), np.float32)
    clean[:, 40:] = 1  # through two of four patches
    blurred = clean.copy()
    blurred[:, 39], blurred[:, 40] = 0.25, 0.75
    # In both: a column of 32 values 0.25 too high, one as much too low, mean zero; variance 2/32 of 0.25 squared.
    assert average_deviation(blurred, clean) == pytest.approx(0.25 * math.sqrt(2 / 32))
    assert average_deviation(clean + np.float32(0.25), clean) == pytest.approx(0, abs=1e-6)


def test_where_all_patches_are_alike_their_mean_is_the_average_deviation():
    clean = np.zeros((32, 64), np.float32)
    stripes = np.tile(np.float32([0.1, -0.1]), (32, 32))
    assert average_deviation(stripes, clean) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 40, 3), (40, 5, 3)])
def test_a_picture_smaller_than_a_patch_has_an_average_deviation_too(shape):
    clean = picture(*shape)
    assert average_deviation(clean, clean) == 0
    assert average_deviation(add_gaussian(clean, 0.3, seed=13), clean) > 0.05


def test_integers_have_the_average_deviation_of_their_floats():
    clean = picture(64, 96)
    noisy = add_gaussian(clean, 0.1, seed=14, clipped=True)
    stored = np.rint(noisy * 255).astype(np.uint8)
    assert average_deviation(stored, clean) == pytest.approx(average_deviation(noisy, clean), rel=1e-4)


# --- cards


def test_a_card_holds_the_figures_of_its_own_weights_alone(tmp_path):
    weights_dir, cards_dir, file = write_weights(tmp_path / "weights"), tmp_path / "cards", tmp_path / "figures.csv"
    written = renew_card(FITVNET, weights_dir, cards_dir)
    assert [run.weights for run in written.training] == list(FITVNET.weights)
    own = fingerprint(run.sha256 for run in written.training)
    add_figures([figure("fitvnet", weights=own, data="davis", noise="gaussian-25", restored_db=30.5, ad=0.02)], file)
    add_figures([figure("fitvnet", weights=own, data="davis", noise="signal-low", restored_db=33.0)], file)
    add_figures([figure("dncnn", weights=own, data="davis", noise="gaussian-25")], file)
    card = card_of("fitvnet", cards_dir, file)
    assert card.training == written.training
    assert list(card.quality["davis"]) == ["25", "signal-low"]
    assert card.quality["davis"]["25"]["restored"] == 30.5
    assert "ad" not in card.quality["davis"]["signal-low"]
    assert "davis, sigma 25: pictures 4, frames 1, noisy 20.5, restored 30.5" in card.text()
    assert "davis, signal-low noise: " in card.text()
    assert json.loads(json.dumps(card.as_dict()))["training"][0]["sha256"] == card.training[0].sha256

    retrained = weights_dir / "fitvnet.safetensors"
    retrained.write_bytes(retrained.read_bytes()[:-1] + b"\x01")
    renewed = renew_card(FITVNET, weights_dir, cards_dir)
    assert renewed.training[0] == card.training[0]
    assert renewed.training[1].sha256 != card.training[1].sha256
    assert card_of("fitvnet", cards_dir, file).quality == {}


def test_a_denoiser_without_a_card_is_unknown(tmp_path):
    with pytest.raises(UnknownDenoiser, match=r"no card dncnn\.json"):
        card_of("dncnn", tmp_path)


def test_a_card_tells_of_the_run_that_made_the_weights(tmp_path):
    card = renew_card(DNCNN, write_weights(tmp_path / "weights"), tmp_path / "cards")
    assert (card.training[0].recipe, card.training[0].data, card.training[0].seed) == ("dncnn", "none", 1)
    assert "level 0 to 55" in card.limits
    with pytest.raises(UnknownDenoiser, match="no weights"):
        renew_card(DNCNN, tmp_path, tmp_path / "cards")


def test_a_card_tells_what_the_weights_were_before(tmp_path):
    weights_dir = write_weights(tmp_path)
    first = {"recipe": "dncnn", "minutes": "10.0", "steps": "4"}
    other = {"recipe": "dncnn-other", "minutes": "7.5", "started_from": json.dumps({"dncnn": first})}
    last = {"recipe": "dncnn", "minutes": "5.0", "steps": "2", "started_from": json.dumps({"dncnn-other": other})}
    path = weights_dir / "dncnn.safetensors"
    save_file(load_file(path), path, metadata=last)
    card = renew_card(DNCNN, weights_dir, tmp_path)
    assert (card.training[0].minutes, card.training[0].steps, card.training[0].runs) == (15.0, 6, 2)
    assert card.training[0].begun_with == {"dncnn-other": 7.5}
    assert "6 steps in 15 minutes on , 2 runs, after 7.5 of dncnn-other, seed 0" in card.text()


def test_a_denoiser_that_is_no_network_has_a_card_without_training(tmp_path):
    card = renew_card(NLM, tmp_path, tmp_path / "cards")
    assert card.training == ()
    assert "A formula, not a network" in card.limits


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_shipped_denoiser_has_a_card_of_its_shipped_weights(name, tmp_path):
    card = card_of(name)
    renewed = renew_card(CATALOGUE[name], cards_dir=tmp_path)
    assert (card.training, card.limits) == (renewed.training, renewed.limits)
    assert card.quality, "measure it: quietframe eval --write"
