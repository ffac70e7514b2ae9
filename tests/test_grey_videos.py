"""Whoever hands in a grey video learns that a network for colours takes its noise for texture."""

from dataclasses import replace

import numpy as np
import pytest
from test_videos import MiddleFrame
from video_samples import filled, soft_noise, tones, write_video

from models.catalogue import FITVNET
from service.job import Options, PartOutcome, StageSeconds
from service.pipeline.denoiser import Denoiser, Tally
from service.pipeline.videos import denoise_video, notes_of
from service.settings import Settings


@pytest.fixture
def passing():
    return Denoiser(FITVNET, [MiddleFrame(stage) for stage in FITVNET.stages], tile_px=512)


@pytest.mark.parametrize("pixel_format", ["gray", "yuv420p", "gray10le"])
def test_of_a_grey_video_it_is_told_that_a_network_for_colours_does_little(pixel_format, passing, tmp_path):
    noise = np.random.default_rng(1)

    def grey(name, size, number):
        return filled(name, size, lambda plane, shape: 128 if plane else noise.normal(126, 9, shape))

    source = write_video(tmp_path / "in.mkv", pixel_format=pixel_format, frame=grey)
    tally = Tally()
    denoise_video(passing, source, tmp_path / "out.mkv", Options(), Settings(), tally=tally)
    (note,) = tally.notes
    assert note.startswith("the video is grey, and fitvnet was taught on colours")
    assert note.endswith("taught on that: fitvnet.camera, fitvnet.mixed, unet.video")
    taught = replace(passing, spec=replace(FITVNET, taught=("grey",)))
    quiet = Tally()
    denoise_video(taught, source, tmp_path / "out.mkv", Options(), Settings(), tally=quiet)
    assert quiet.notes == []


def test_of_a_video_with_colours_after_a_black_moment_it_is_not(passing, tmp_path):
    def later_colour(name, size, number):
        return tones(16)(name, size, 0) if number < 3 else soft_noise(name, size)

    source = write_video(tmp_path / "in.mkv", frame=later_colour, count=5)
    tally = Tally()
    denoise_video(passing, source, tmp_path / "out.mkv", Options(), Settings(), tally=tally)
    assert tally.notes == []


def test_a_part_that_is_grey_says_nothing_of_a_video_with_colours():
    def part(*notes):
        return PartOutcome(
            blob="b", frames=1, removed_power=0, values=1, seconds=StageSeconds(), backend="b", precision="p",
            notes=list(notes),
        )  # fmt: skip

    grey = "the video is grey, and so on"
    assert notes_of([part(grey), part("out of memory")]) == ["out of memory"]
    assert notes_of([part(grey), part(grey, "out of memory")]) == [grey, "out of memory"]
