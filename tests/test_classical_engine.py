"""Do the denoisers that are no networks run beside the networks, and does each do what its formula says?"""

import math
import sys
import types

import numpy as np
import pytest

from models.catalogue import BM3D, CATALOGUE, DESCRIBED, NLM
from models.noise import add_gaussian
from models.quality import psnr_db
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings
from trtbuild.classical_engine import NLM_PATCH_PX, NLM_STRENGTH, NLM_WINDOW_PX, nlm
from trtbuild.engine import BackendUnavailable
from trtbuild.open import open_engine

SIGMA = 25 / 255


def waves(height: int, width: int) -> np.ndarray:
    """[3, height, width] in [0, 1]."""
    down, across = np.mgrid[0:height, 0:width].astype(np.float32) / 9
    return (0.5 + 0.4 * np.sin(down[None] + across[None] * np.arange(1, 4)[:, None, None])).astype(np.float32)


@pytest.fixture
def engine():
    return open_engine(NLM, NLM.stages[0], threads=1)


def nlm_by_the_letter(noisy: np.ndarray, sigma: float, y: int, x: int) -> np.ndarray:
    """A pixel of non-local means in floats: the mean over a window, weighed by how alike the patches are."""
    reach, half = NLM_WINDOW_PX // 2, NLM_PATCH_PX // 2

    def patch(row: int, column: int) -> np.ndarray:
        return noisy[:, row - half : row + half + 1, column - half : column + half + 1]

    total, weights = np.zeros(3), 0.0
    for row in range(y - reach, y + reach + 1):
        for column in range(x - reach, x + reach + 1):
            distance = float(np.mean((patch(row, column) - patch(y, x)) ** 2))
            weight = math.exp(-distance / (NLM_STRENGTH * sigma) ** 2)
            total += weight * noisy[:, row, column]
            weights += weight
    return total / weights


def test_nlm_is_the_mean_of_pixels_with_like_neighbourhoods():
    noisy = add_gaussian(waves(40, 50), SIGMA, seed=1)
    restored = nlm(noisy, SIGMA)
    for y, x in ((20, 20), (15, 30), (25, 12)):
        # Noise and weights were cut into 256 steps on the way: half a step of 1.6 / 255 and some.
        assert np.abs(restored[:, y, x] - nlm_by_the_letter(noisy, SIGMA, y, x)).max() < 2 / 255


def test_every_picture_of_a_batch_has_its_own_level(engine):
    clean = waves(64, 48)
    levels = np.array([10, 25, 50], np.float32) / 255
    noisy = np.stack([add_gaussian(clean, float(level), seed=2) for level in levels])
    before = noisy.copy()
    restored = engine.denoise(noisy, levels)
    assert (restored.shape, restored.dtype) == (noisy.shape, np.float32)
    assert np.array_equal(noisy, before)
    for index in range(3):
        assert psnr_db(restored[index], clean) > psnr_db(noisy[index], clean) + 4
        assert np.array_equal(restored[index], engine.denoise(noisy[index : index + 1], levels[index : index + 1])[0])


def test_without_noise_the_picture_comes_back_in_memory_of_its_own(engine):
    noisy = waves(20, 30)[None]
    restored = engine.denoise(noisy, np.zeros(1, np.float32))
    assert np.array_equal(restored, noisy)
    assert not np.shares_memory(restored, noisy)


def test_noise_beyond_black_and_white_is_not_clipped_before_the_mean(engine):
    clean = np.zeros((1, 3, 80, 80), np.float32)
    noisy = add_gaussian(clean, SIGMA, seed=3)
    restored = engine.denoise(noisy, np.array([SIGMA], np.float32))
    assert abs(restored.mean()) * 255 < 0.5  # clipped at black it would be 10


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (17, 16)])
def test_any_size_works(engine, size):
    noisy = waves(*size)[None]
    assert engine.denoise(noisy, np.array([SIGMA], np.float32)).shape == noisy.shape


@pytest.mark.parametrize("backend", ["auto", "openvino", "torch"])
def test_it_is_opened_whatever_runs_the_networks(backend):
    opened = open_engine(NLM, NLM.stages[0], backend=backend)
    assert (opened.backend, opened.precision) == ("classical", "uint8")


def test_a_precision_that_it_does_not_run_in_is_refused():
    with pytest.raises(BackendUnavailable, match="nlm runs in uint8; not in fp16"):
        open_engine(NLM, NLM.stages[0], precision="fp16")


def test_bm3d_is_described_and_not_served_and_says_what_it_lacks(monkeypatch):
    assert BM3D.name in DESCRIBED
    assert BM3D.name not in CATALOGUE
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(BackendUnavailable, match=r"bm3d is not installed; .*quietframe\[bench\].*no commercial use"):
        Shelf(Settings()).denoiser("bm3d")


def test_bm3d_hands_pictures_to_its_authors_package_as_that_wants_them(monkeypatch):
    def halved(pixels, sigma):
        assert (pixels.shape, pixels.dtype, sigma) == ((16, 24, 3), np.float64, pytest.approx(SIGMA))
        return pixels / 2

    monkeypatch.setitem(sys.modules, "bm3d", types.SimpleNamespace(bm3d_rgb=halved))
    engine = open_engine(BM3D, BM3D.stages[0])
    noisy = waves(16, 24)[None]
    restored = engine.denoise(noisy, np.array([SIGMA], np.float32))
    assert (restored.dtype, engine.precision) == (np.float32, "fp32")
    np.testing.assert_allclose(restored, noisy / 2, rtol=1e-6)


def test_nlm_restores_pictures_by_name_told_or_not():
    clean = waves(150, 200)
    noisy = (add_gaussian(clean, SIGMA, seed=4, clipped=True) * 255).astype(np.uint8).transpose(1, 2, 0)
    denoiser = Shelf(Settings()).denoiser("nlm")
    pixels = (clean * 255).round().astype(np.uint8).transpose(1, 2, 0)
    told, untold = denoiser.restore_picture(noisy, sigma=SIGMA), denoiser.restore_picture(noisy)
    for restored in (told, untold):
        assert psnr_db(restored, pixels) > psnr_db(noisy, pixels) + 5
    assert psnr_db(told, untold) > 40  # the level was found again, nearly
    (frame,) = denoiser.restore_frames([to_planes(noisy)], sigma=SIGMA)
    assert np.abs(frame - to_planes(told)).max() <= 0.51 / 255  # rounded, no more
