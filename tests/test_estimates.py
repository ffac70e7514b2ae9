"""What is said of a picture that has no reference: its noise, and how good its result is."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from models.catalogue import FITVNET, FITVNET_PLAIN, FITVNET_SPATIAL
from models.noise_level import NoiseLevel, measure_noise
from models.quality import psnr_db
from models.quality_estimate import Evidence, Probe, change_for, evidence_of
from service.demo import read_photo, with_noise
from service.job import Options
from service.pipeline.denoiser import Denoiser, to_planes
from service.pipeline.halves import side_by_side, turned_by
from service.pipeline.images import denoise_image
from service.pipeline.probing import PLACES, SIDE_PX, margin_for, places_in, probe_picture, probe_window, textures_seen
from service.pipeline.shelf import Shelf
from service.settings import Settings

STEADY = NoiseLevel(sigma=(0.1,) * 3, black=(0.1,) * 3, white=(0.1,) * 3)


class Passing:
    """An engine that gives the middle frame back, and remembers what it saw of the windows."""

    backend, precision, batch, contexts = "passing", "fp32", 1, 1

    def __init__(self, stage):
        self.first, self.planes_out = stage.frames // 2 * stage.planes_in, stage.planes_out
        self.seen = []

    def denoise(self, noisy, sigma):
        self.seen.append(noisy.copy())
        planes = noisy[:, self.first : self.first + self.planes_out]
        missing = self.planes_out - planes.shape[1]
        return np.concatenate([planes, np.zeros_like(planes[:, :missing])], 1)


@pytest.fixture(scope="module")
def shelf():
    return Shelf(Settings())


@pytest.fixture(scope="module")
def photo():
    return np.ascontiguousarray(read_photo()[:256, :256])


@pytest.fixture(scope="module")
def noisy(photo):
    return with_noise(photo, seed=3)


# --- how good a result is


def test_the_psnr_of_a_photo_is_estimated_without_its_original(shelf, photo, noisy):
    denoiser = shelf.denoiser("fitvnet-spatial")
    noise = measure_noise(noisy.transpose(2, 0, 1))
    evidence = probe_picture(denoiser, noisy, noise)
    for strength in (1.0, 0.5):
        true = psnr_db(denoiser.restore_picture(noisy, strength=strength), photo)
        estimate, error = evidence.psnr_db(strength)
        assert estimate == pytest.approx(true, abs=1.0)
        assert 0.05 < error < 1.5
    untouched, _ = evidence.psnr_db(0.0)
    assert untouched == pytest.approx(psnr_db(noisy, photo), abs=0.3)


def test_a_denoiser_that_does_nothing_leaves_the_noise_as_it_is(photo, noisy):
    passing = Denoiser(FITVNET_SPATIAL, [Passing(FITVNET_SPATIAL.stages[0])], tile_px=512)
    evidence = probe_picture(passing, noisy, measure_noise(noisy.transpose(2, 0, 1)))
    assert evidence.passed == pytest.approx(evidence.variance, rel=0.05)  # but for what is clipped
    estimate, _ = evidence.psnr_db()
    assert estimate == pytest.approx(psnr_db(noisy, photo), abs=1.0)  # 0.6 less: networks fall short of the best


def test_an_engine_in_half_precision_tells_the_same():
    rng = np.random.default_rng(5)
    noisy = (0.5 + 0.1 * rng.standard_normal((3, 256, 256))).astype(np.float32)
    change = change_for(noisy, STEADY, seed=1)

    def probe(round_to):
        def halved(planes):
            return (0.5 + 0.3 * (planes - 0.5)).astype(round_to).astype(np.float32)

        return Probe(noisy, change, halved(noisy + change), halved(noisy - change))

    exact, rough = (evidence_of([probe(kind)], STEADY) for kind in (np.float32, np.float16))
    assert exact.passed / exact.variance == pytest.approx(0.3, rel=0.01)
    assert rough.psnr_db()[0] == pytest.approx(exact.psnr_db()[0], abs=0.02)


def test_what_was_learnt_of_two_pictures_adds_up():
    one, other = Evidence(values=4, variance=0.04, passed=0.01), Evidence(values=2, variance=0.02, passed=0.002)
    one.add(other)
    assert (one.values, one.variance, one.passed) == pytest.approx((6, 0.06, 0.012))


def test_nothing_is_said_where_nothing_was_looked_at():
    assert Evidence().psnr_db() is None
    silent = NoiseLevel((0.0,), (0.0,), (0.0,))
    assert evidence_of([], STEADY).psnr_db() is None
    flat = np.zeros((1, 32, 32), np.float32)
    assert evidence_of([Probe(flat, flat + 1, flat, flat)], silent).psnr_db() is None


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (321, 481), (384, 384), (1080, 1920), (6000, 200), (9000, 9000)])
def test_however_large_a_picture_is_a_few_places_are_looked_at(size):
    places = places_in(*size)
    pixels = sum(len(range(*p.rows.indices(size[0]))) * len(range(*p.columns.indices(size[1]))) for p in places)
    assert pixels <= min(size[0] * size[1], PLACES * SIDE_PX**2)
    assert pixels >= min(size[0] * size[1], PLACES * SIDE_PX**2) * 0.6
    covered = np.zeros(size, np.uint8)
    for place in places:
        covered[place.rows, place.columns] += 1
    assert covered.max() == 1


@pytest.mark.parametrize("size", [(129, 1200), (321, 481), (1080, 1920)])
def test_what_surrounds_a_place_is_cut_out_with_it_and_not_looked_at(size):
    planes = np.random.default_rng(3).random((3, *size), np.float32)
    for bare, place in zip(places_in(*size), places_in(*size, margin_px=32), strict=True):
        cut = place.of(planes)
        assert np.array_equal(cut[:, *place.inside], bare.of(planes))
        for axis, (inner, outer) in enumerate(((bare.rows, place.rows), (bare.columns, place.columns))):
            assert outer == slice(max(0, inner.start - 32), min(size[axis], inner.stop + 32))


def test_a_place_of_frames_that_are_laid_over_each_other_is_run_with_what_surrounds_it():
    frames = [np.full((3, 400, 400), 0.1 * (index + 1), np.float32) for index in range(5)]
    for spec, side in ((FITVNET, 192), (FITVNET_PLAIN, 128)):
        engines = [Passing(stage) for stage in spec.stages]
        passing = Denoiser(spec, engines, tile_px=512)
        place = places_in(400, 400, margin_px=margin_for(passing))[4]
        evidence = probe_window(
            passing,
            [(place, [place.of(frame) for frame in frames])],
            STEADY,
            textures_seen(frames[2]),
            sigma=None,
            seed=0,
        )
        assert {planes.shape[-2:] for planes in engines[0].seen} == {(side, side)}
        assert evidence.values == 64  # blocks of 16x16 in 128x128


def test_only_the_frame_in_the_middle_of_a_window_is_changed():
    engines = [Passing(stage) for stage in FITVNET.stages]
    passing = Denoiser(FITVNET, engines, tile_px=512)
    frames = [np.full((3, 64, 64), 0.1 * (index + 1), np.float32) for index in range(5)]
    probe_window(passing, [(places_in(64, 64)[0], frames)], STEADY, textures_seen(frames[1]), sigma=None, seed=0)
    spatial = engines[0].seen
    assert len(spatial) == 10  # five frames, twice
    changed = [bool(np.ptp(planes)) for planes in spatial]
    assert changed == [False, False, True, False, False] * 2


class Blurring(Passing):
    """Takes the noise out where nothing else is, and the texture out elsewhere."""

    def denoise(self, noisy, sigma):
        return np.stack([[cv2.blur(plane, (5, 5)) for plane in one] for one in super().denoise(noisy, sigma)])


def test_places_of_a_frame_count_as_often_as_their_like_is_met_in_it():
    rng = np.random.default_rng(6)
    still, rough = np.full((3, 64, 64), 0.5, np.float32), np.full((3, 64, 64), 0.5, np.float32)
    rough += np.where(np.indices((64, 64)).sum(0) % 2, 0.2, -0.2).astype(np.float32)
    noise = rng.normal(0, 0.05, (5, 3, 64, 128)).astype(np.float32)
    level = NoiseLevel(sigma=(0.05,) * 3, black=(0.05,) * 3, white=(0.05,) * 3)
    window = [np.concatenate([still, rough], 2) + one for one in noise]
    blurring = Denoiser(FITVNET, [Blurring(stage) for stage in FITVNET.stages], tile_px=512)

    def estimated(frame):
        seen = textures_seen(frame + noise[2][..., :64])
        return probe_window(blurring, [(places_in(64, 128)[0], window)], level, seen, sigma=None, seed=0).psnr_db()[0]

    assert estimated(still) > estimated(rough) + 3


# --- in a job


@pytest.fixture
def file(tmp_path, noisy) -> Path:
    path = tmp_path / "noisy.png"
    cv2.imwrite(str(path), noisy[:160, :200, ::-1])
    return path


def test_noise_is_told_before_and_after_and_the_psnr_where_it_is_asked_for(shelf, file):
    denoiser = shelf.denoiser("fitvnet-spatial")
    plain = denoise_image(denoiser, file, Options(), Settings()).metrics
    assert plain.input_noise_estimate.sigma == pytest.approx([25, 25, 25], rel=0.1)
    assert max(plain.output_noise_estimate.sigma) < 3
    assert plain.psnr_estimate_db is None
    asked = denoise_image(denoiser, file, Options(estimate=True), Settings()).metrics
    assert 27 < asked.psnr_estimate_db < 36
    assert 0 < asked.psnr_estimate_error_db < 2


def test_of_a_grey_picture_one_level_is_told(shelf, tmp_path, photo, noisy):
    for name, picture in (("noisy", noisy), ("clean", photo)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[:160, :200, 1])
    found = denoise_image(
        shelf.denoiser("fitvnet-spatial"),
        tmp_path / "noisy.png",
        Options(estimate=True),
        Settings(),
        reference=tmp_path / "clean.png",
    ).metrics
    assert found.input_noise_estimate.sigma == pytest.approx([25], rel=0.1)
    assert found.psnr_estimate_db == pytest.approx(found.psnr_db, abs=2.5)  # one plane is a third of the evidence


def test_side_by_side_the_left_half_is_as_it_was(shelf, file, noisy):
    denoiser = shelf.denoiser("fitvnet-spatial")
    whole = denoise_image(denoiser, file, Options(), Settings())
    halves = denoise_image(denoiser, file, Options(side_by_side=True), Settings())
    seen, restored = (
        cv2.imdecode(np.frombuffer(made.data, np.uint8), cv2.IMREAD_COLOR_RGB) for made in (halves, whole)
    )
    np.testing.assert_array_equal(seen[:, :99], noisy[:160, :99])
    np.testing.assert_array_equal(seen[:, 101:], restored[:, 101:])
    assert (seen[:, 99:101] == 255).all()
    assert halves.metrics.sigma_estimate == whole.metrics.sigma_estimate


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90])
def test_left_is_what_the_viewer_sees_left(degrees):
    before, after = np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 100, np.uint8)
    as_seen = turned_by(degrees)
    shown = as_seen(side_by_side(before, after, as_seen))
    assert (shown[:, : shown.shape[1] // 2 - 1] == 0).all()
    assert (shown[:, shown.shape[1] // 2 + 1 :] == 100).all()
    assert (before == 0).all()
    assert (after == 100).all()


def test_a_picture_too_narrow_for_a_line_has_none():
    before, after = np.zeros((4, 3, 3), np.uint16), np.full((4, 3, 3), 9, np.uint16)
    assert side_by_side(before, after, turned_by(0))[0, :, 0].tolist() == [0, 9, 9]


def test_planes_of_both_depths_are_measured_alike(noisy):
    deep = noisy.astype(np.uint16) * 257
    assert measure_noise(deep.transpose(2, 0, 1)).mean == pytest.approx(measure_noise(to_planes(noisy)).mean, rel=1e-3)
