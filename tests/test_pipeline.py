"""Pictures of every size and depth, and clips, go through the shipped denoisers."""

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.catalogue import CATALOGUE, find
from models.quality import psnr_db
from service.demo import moving_clip, read_photo, with_noise
from service.errors import JobCancelled
from service.job import Options
from service.pipeline import denoiser as denoiser_module
from service.pipeline.denoiser import Denoiser, Tally, to_planes
from service.pipeline.images import denoise_image
from service.pipeline.shelf import Shelf
from service.settings import Settings

ROOT = Path(__file__).parent.parent
IMAGE_DENOISERS = [spec.name for spec in CATALOGUE.values() if spec.kind == "image"]


@pytest.fixture(scope="module")
def shelf():
    return Shelf(Settings())


@pytest.fixture(scope="module")
def photo():
    return read_photo()


@pytest.mark.parametrize("name", IMAGE_DENOISERS)
def test_a_noisy_photo_comes_back_clean(shelf, photo, name):
    noisy = with_noise(photo, seed=1)
    restored = shelf.denoiser(name).restore_picture(noisy)
    assert psnr_db(restored, photo) > psnr_db(noisy, photo) + 8  # 9 and more measured; NLM gains 7


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (17, 16), (33, 47), (100, 1)])
def test_any_size_works(shelf, photo, size):
    picture = np.ascontiguousarray(photo[: size[0], : size[1]])
    restored = shelf.denoiser("fitvnet-spatial").restore_picture(picture)
    assert restored.shape == picture.shape
    assert restored.dtype == np.uint8


def test_sixteen_bits_stay_sixteen(shelf, photo):
    deep = photo[:64, :64].astype(np.uint16) * 257 + np.uint16(3)
    restored = shelf.denoiser("fitvnet-spatial").restore_picture(deep)
    assert restored.dtype == np.uint16
    assert len(np.unique(restored % 257)) > 100  # values between the 8-bit steps


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_strength_zero_gives_the_input_back(shelf, dtype):
    picture = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (50, 60, 3), endpoint=True).astype(dtype)
    restored = shelf.denoiser("fitvnet-spatial").restore_picture(picture, strength=0)
    np.testing.assert_array_equal(restored, picture)


def test_half_strength_lies_between(shelf, photo):
    noisy = with_noise(photo, seed=2)[:128, :128]
    denoiser = shelf.denoiser("fitvnet-spatial")
    whole, half = (denoiser.restore_picture(noisy, strength=strength).astype(int) for strength in (1.0, 0.5))
    between = (noisy.astype(int) + whole) / 2
    assert np.abs(half - between).max() <= 1  # both were rounded


@pytest.mark.parametrize("name", IMAGE_DENOISERS)
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_tiles_join_without_a_seam(photo, name, backend):
    """Less than half an 8-bit step anywhere, less than one in bfloat16; all in all less than 0.02 dB.

    What averages over all that it is given sees another picture in each tile, here of a ninth of the usual size: it is
    half a step off in the mean, and where two meet there is no edge that could be seen.
    """
    noisy = np.ascontiguousarray(np.tile(with_noise(photo, seed=4), (1, 2, 1))[:500, :760])
    settings = Settings(backend=backend)
    tiled = Shelf(settings.model_copy(update={"tile_px": 256})).denoiser(name)
    whole = Shelf(settings.model_copy(update={"tile_px": 1024})).denoiser(name)
    planes = to_planes(noisy)
    (one,) = whole.restore_frames([planes])
    (other,) = tiled.restore_frames([planes])
    differences = np.abs(one - other) * 255
    if whole.spec.stages[0].averages_all:
        assert differences.mean() < 0.5
        assert np.abs(np.diff(one - other, axis=2)).mean((0, 1)).max() < 1 / 255
    else:
        # Sums in bfloat16 go another way in a tile of another size: of `kpn`, which weighs samples by them, 1.1 steps.
        assert differences.max() < (1.5 if whole.precision == "bf16" else 0.5)
    clean = to_planes(np.ascontiguousarray(np.tile(photo, (1, 2, 1))[:500, :760]))
    assert abs(psnr_db(one, clean) - psnr_db(other, clean)) < 0.02


# Motion is found in frames that tiles have cleaned by a shade otherwise: here and there it comes out another.
@pytest.mark.parametrize(("name", "most_steps"), [("fitvnet.plain", 0.5), ("fitvnet", 2)])
def test_video_tiles_join_without_a_seam(photo, name, most_steps):
    frames = [to_planes(with_noise(frame, seed=t)) for t, frame in enumerate(moving_clip(photo)[:3])]
    frames = [np.ascontiguousarray(np.tile(frame, (1, 1, 2))) for frame in frames]
    whole, tiled = (Shelf(Settings(tile_px=size)).denoiser(name) for size in (1024, 256))
    for one, other in zip(whole.restore_frames(frames), tiled.restore_frames(frames), strict=True):
        difference = np.abs(one - other) * 255
        assert difference.max() < most_steps
        assert difference.mean() < 0.02


def test_what_was_removed_tells_the_noise_level(shelf, photo):
    tally = Tally()
    shelf.denoiser("fitvnet-spatial").restore_picture(with_noise(photo, seed=5), tally=tally)
    assert tally.sigma_estimate == pytest.approx(24, abs=3)  # of 25; clipping at black takes some of it away


def test_neighbouring_frames_help_where_little_moves(shelf, photo):
    still = np.ascontiguousarray(photo[100:292, 100:420])
    noisy = [with_noise(still, seed=t) for t in range(7)]
    means = {}
    for name in ("fitvnet", "fitvnet-spatial"):
        restored = shelf.denoiser(name).restore_frames([to_planes(frame) for frame in noisy])
        means[name] = np.mean([psnr_db(frame, to_planes(still)) for frame in restored])
    assert means["fitvnet"] > means["fitvnet-spatial"] + 1  # 2.3 measured at sigma 30


def test_neighbouring_frames_help_where_much_moves_if_they_are_aligned(shelf, photo):
    clean = [np.ascontiguousarray(photo[100:292, 20 + 14 * t : 308 + 14 * t]) for t in range(6)]
    noisy = [to_planes(with_noise(frame, seed=t)) for t, frame in enumerate(clean)]
    means = {}
    for name in ("fitvnet", "fitvnet.camera", "fitvnet.plain", "fitvnet-spatial"):
        restored = shelf.denoiser(name).restore_frames(noisy)
        means[name] = np.mean([psnr_db(frame, to_planes(one)) for frame, one in zip(restored, clean, strict=True)])
    for name in ("fitvnet", "fitvnet.camera"):
        assert means[name] > means["fitvnet-spatial"] + 0.8  # 1.3 measured
        assert means[name] > means["fitvnet.plain"] + 0.8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_ensemble_is_the_mean_of_the_picture_restored_and_its_mirror_images(shelf, photo, dtype):
    noisy = with_noise(photo, seed=8)[:144, :128]  # whole blocks: others are padded on one side, and mirrored differ
    noisy = noisy / np.float32(255) if dtype is np.float32 else noisy.astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    denoiser, alone, tally = shelf.denoiser("fitvnet-spatial"), [], Tally()
    for down, across in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        (restored,) = denoiser.restore_frames([to_planes(noisy[::down, ::across])])
        alone.append(restored[:, ::down, ::across])
    for ensemble in (2, 4):
        together = denoiser.of(ensemble).restore_picture(noisy, tally=tally)
        assert together.dtype == dtype
        expected = np.mean(alone[:ensemble], 0).clip(0, 1)
        np.testing.assert_allclose(to_planes(together), expected, atol=(0.51 if dtype is np.uint8 else 0.01) / 255)
    assert tally.runs == 6


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (33, 47), (301, 290)])
def test_an_ensemble_takes_any_size_in_tiles_too(photo, size):
    picture = np.ascontiguousarray(photo[: size[0], : size[1]])
    tiled = Shelf(Settings(tile_px=256)).denoiser("fitvnet-spatial").of(4).restore_picture(picture)
    whole = Shelf(Settings()).denoiser("fitvnet-spatial").of(4).restore_picture(picture)
    assert tiled.shape == picture.shape
    assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_an_ensemble_restores_better_pictures_grey_ones_and_video(shelf, photo, tmp_path):
    noisy = with_noise(photo, seed=9)
    one, four = (shelf.denoiser("fitvnet-spatial.camera").of(n).restore_picture(noisy) for n in (1, 4))
    assert psnr_db(four, photo) > psnr_db(one, photo) + 0.03  # 0.1 measured on many
    grey = photo[..., :1].repeat(3, 2)
    Image.fromarray(with_noise(grey, seed=9)[..., 0]).save(tmp_path / "grey.png")
    made = [
        denoise_image(shelf.denoiser("fitvnet-spatial").of(n), tmp_path / "grey.png", Options(ensemble=n), Settings())
        for n in (1, 4)
    ]
    one, four = (psnr_db(np.array(Image.open(io.BytesIO(image.data)))[..., None], grey[..., :1]) for image in made)
    assert four > one
    still = [to_planes(frame[100:196, 100:260]) for frame in moving_clip(photo)[:4]]
    frames = [to_planes(with_noise(frame[100:196, 100:260], seed=t)) for t, frame in enumerate(moving_clip(photo)[:4])]
    one, four = (
        np.mean(
            [psnr_db(f, c) for f, c in zip(shelf.denoiser("fitvnet").of(n).restore_frames(frames), still, strict=True)]
        )
        for n in (1, 4)
    )
    assert four > one


def test_the_time_in_which_neighbours_are_laid_over_a_frame_is_told(shelf, monkeypatch):
    lay, paused = denoiser_module.align, 0.05

    def slow(window):
        time.sleep(paused)
        return lay(window)

    monkeypatch.setattr(denoiser_module, "align", slow)
    tally = Tally()
    frames = [np.random.default_rng(t).random((3, 32, 32), np.float32) for t in range(3)]
    list(shelf.denoiser("fitvnet").restore_frames(frames, tally=tally))
    # By the first block for each of three frames and of one beyond either end, by the second for each of three.
    assert tally.infer_s > 8 * paused


def test_a_grey_film_is_cleaned_by_what_auto_takes(shelf, photo):
    clean = [np.repeat(frame[..., 1:2], 3, 2)[:160, :240] for frame in moving_clip(photo)[:5]]
    noisy = [to_planes(np.repeat(with_noise(frame, seed=t)[..., 1:2], 3, 2)) for t, frame in enumerate(clean)]
    denoiser = shelf.denoiser(find("auto", "video").name)
    for before, frame, after in zip(noisy, clean, denoiser.restore_frames(noisy), strict=True):
        assert psnr_db(after, to_planes(frame)) > psnr_db(before, to_planes(frame)) + 8


def test_who_watches_may_stop_the_work(shelf, photo):
    def stop(total):
        raise JobCancelled(f"after the first of {total}")

    denoiser = Denoiser(CATALOGUE["dncnn"], shelf.denoiser("dncnn").engines, tile_px=256)
    with pytest.raises(JobCancelled, match="after the first of"):
        denoiser.restore_picture(np.zeros((512, 512, 3), np.uint8), on_tile=stop)


PEAK_OF_ONE_PICTURE = """
import resource, sys
import numpy as np
from models.catalogue import CATALOGUE, find
from service.pipeline.denoiser import Denoiser

class Copy:
    backend, precision, batch, contexts = "copy", "fp32", 1, 1
    def denoise(self, noisy, sigma):
        return np.concatenate([noisy, noisy[:, :1]], 1)

side = int(sys.argv[1])
Denoiser(CATALOGUE["fitvnet-spatial"], [Copy()], 512).restore_picture(np.zeros((side, side, 3), np.uint8))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_depends_on_the_tile_not_on_the_picture():
    """A picture of 16 megapixels takes the room of itself and its result more than a small one, and no more."""
    peaks_mib = {}
    for side in (512, 4096):
        command = [sys.executable, "-c", PEAK_OF_ONE_PICTURE, str(side)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks_mib[side] = int(ran.stdout)
    pictures_mib = 2 * 4096 * 4096 * 3 // 2**20
    assert peaks_mib[4096] - peaks_mib[512] < pictures_mib + 32


def test_a_grey_photo_comes_back_clean_from_the_network_that_was_taught_grey(shelf, photo, tmp_path):
    """Its noise is the same in all three planes: what knows colours alone takes it for texture."""
    luma = np.rint(photo @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    noise = np.random.default_rng(3).normal(0, 25, luma.shape)
    noisy = np.clip(np.rint(luma + noise), 0, 255).astype(np.uint8)
    for name, pixels in {"noisy.png": noisy, "clean.png": luma}.items():
        Image.fromarray(pixels).save(tmp_path / name)

    def gain_db(name: str, tally: Tally) -> float:
        made = denoise_image(
            shelf.denoiser(name),
            tmp_path / "noisy.png",
            Options(),
            Settings(),
            reference=tmp_path / "clean.png",
            tally=tally,
        )
        assert made.metrics.psnr_db is not None
        assert made.metrics.input_psnr_db is not None
        return made.metrics.psnr_db - made.metrics.input_psnr_db

    tally = Tally()
    assert gain_db("fitvnet-spatial", tally) > 7
    assert tally.notes == ["the picture is grey: restored by fitvnet-spatial.camera"]
    tally = Tally()
    gain_db("dncnn", tally)
    assert "was taught on colours" in tally.notes[0]
