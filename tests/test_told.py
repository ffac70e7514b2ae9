"""What is a denoiser told of the noise level, where the caller does not tell it?"""

from collections import deque
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from models.catalogue import DNCNN, DenoiserSpec, StageSpec
from models.noise import add_gaussian
from models.noise_level import estimate_sigma
from service.pipeline.denoiser import Denoiser

FIRST = StageSpec(name="first", frames=3, halo_px=0, parameters=0, macs_per_pixel=0)
SECOND = StageSpec(name="second", frames=3, halo_px=0, parameters=0, macs_per_pixel=0)


class Told:
    """Gives back the middle frame of each window, and remembers what it was told."""

    backend, precision, batch, contexts = "told", "fp32", 1, 1

    def __init__(self):
        self.levels: deque[float] = deque()

    def denoise(self, noisy, sigma):
        self.levels.append(float(sigma[0]))
        middle = noisy.shape[1] // 2
        return noisy[:, middle - 1 : middle + 2].copy()


def denoiser_of(spec: DenoiserSpec) -> tuple[Denoiser, list[Told]]:
    engines = [Told() for _ in spec.stages]
    return Denoiser(spec, engines, tile_px=256), engines


CASCADE = replace(DNCNN, name="cascade", kind="video", stages=(FIRST, SECOND), sigma=(0.0, 1.0))
PICTURES = replace(DNCNN, name="told", sigma=(0.0, 1.0))


def clip(length: int) -> list[np.ndarray]:
    """Frames whose noise grows: each has its own level."""
    return [add_gaussian(np.full((3, 48, 64), 0.5, np.float32), 0.02 * (1 + t), seed=t) for t in range(length)]


def test_it_is_told_what_the_caller_says():
    denoiser, (first, second) = denoiser_of(CASCADE)
    list(denoiser.restore_frames(clip(4), sigma=0.1))
    assert set(first.levels) | set(second.levels) == {float(np.float32(0.1))}


def test_an_estimate_stays_within_what_the_denoiser_may_be_told():
    bounded = replace(PICTURES, sigma=(10 / 255, 20 / 255))
    denoiser, (engine,) = denoiser_of(bounded)
    flat = np.full((48, 64, 3), 128, np.uint8)
    denoiser.restore_picture(flat)
    grain = np.random.default_rng(4).normal(128, 60, flat.shape).clip(0, 255).astype(np.uint8)
    denoiser.restore_picture(grain)
    assert list(engine.levels) == pytest.approx([10 / 255, 20 / 255])


def test_a_blind_one_is_told_nothing():
    denoiser, (engine,) = denoiser_of(DNCNN)
    list(denoiser.restore_frames(clip(2)))
    assert set(engine.levels) == {0.0}


def test_a_picture_is_told_the_level_of_the_whole_whatever_its_tiles():
    rng = np.random.default_rng(1)
    pixels = np.clip(np.rint(128 + 20 * rng.standard_normal((300, 700, 3))), 0, 255).astype(np.uint8)
    pixels[:, 350:] = 128  # half of it is flat
    denoiser, (engine,) = denoiser_of(PICTURES)
    denoiser.restore_picture(pixels)
    assert len(engine.levels) > 4
    assert set(engine.levels) == {float(np.float32(estimate_sigma(pixels.transpose(2, 0, 1))))}


def test_every_stage_is_told_the_level_of_the_frame_that_it_restores():
    frames = clip(7)
    denoiser, (first, second) = denoiser_of(CASCADE)
    assert len(list(denoiser.restore_frames(frames))) == 7
    own = [float(np.float32(estimate_sigma(frame))) for frame in frames]
    assert own == sorted(own)
    assert list(first.levels) == [own[1], *own, own[5]]  # the clip goes on mirrored
    assert list(second.levels) == own


@pytest.mark.parametrize("cut", [[0, 4, 9], [0, 3, 6, 9]], ids=str)
def test_the_parts_of_a_clip_are_told_what_the_whole_is(cut):
    frames = clip(9)
    denoiser, (_first, second) = denoiser_of(CASCADE)
    list(denoiser.restore_frames(frames))
    whole = list(second.levels)
    second.levels.clear()
    for start, stop in pairwise(cut):
        part = frames[start - (2 if start else 0) : stop + (2 if stop < 9 else 0)]
        list(denoiser.restore_frames(part, goes_on_before=start > 0, goes_on_after=stop < 9))
    assert list(second.levels) == whole
