"""A video goes through decoding, the network and encoding at once; what goes wrong leaves nothing behind."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.catalogue import FITVNET
from service.demo import moving_clip, read_photo, with_noise, write_clip
from service.errors import BadInput, JobCancelled
from service.job import Options
from service.pipeline.denoiser import Denoiser
from service.pipeline.videos import denoise_video
from service.settings import Settings

ROOT = Path(__file__).parent.parent


class MiddleFrame:
    """An engine that gives the middle frame of a window back: what goes in comes out."""

    backend, precision, batch, contexts = "middle", "fp32", 1, 1

    def __init__(self, stage):
        self.first = stage.frames // 2 * stage.planes_in
        self.planes_out = stage.planes_out

    def denoise(self, noisy, sigma):
        planes = noisy[:, self.first : self.first + self.planes_out]
        missing = self.planes_out - planes.shape[1]
        return np.concatenate([planes, np.zeros_like(planes[:, :missing])], 1)


@pytest.fixture
def passing():
    return Denoiser(FITVNET, [MiddleFrame(stage) for stage in FITVNET.stages], tile_px=512)


@pytest.fixture(scope="module")
def frames():
    return moving_clip(read_photo())[:12]


@pytest.fixture
def clip(tmp_path, frames):
    write_clip(tmp_path / "noisy.mp4", [with_noise(frame, seed) for seed, frame in enumerate(frames)])
    write_clip(tmp_path / "clean.mp4", frames)
    write_clip(tmp_path / "short.mp4", frames[:9])
    return tmp_path


def test_every_frame_comes_out_where_it_went_in(passing, clip):
    seen = []
    video = denoise_video(
        passing,
        clip / "noisy.mp4",
        clip / "out.mp4",
        Options(),
        Settings(),
        reference=clip / "noisy.mp4",
        on_progress=seen.append,
    )
    assert video.frames == 12
    assert video.metrics.ssim == pytest.approx(1, abs=1e-4)  # the frames are their own reference, none mixed up
    assert [progress.done for progress in seen] == list(range(1, 13))
    assert seen[-1].total == 12


def test_metrics_are_means_over_frames(passing, clip):
    options = Options(strength=0.0)
    video = denoise_video(
        passing, clip / "noisy.mp4", clip / "out.mp4", options, Settings(), reference=clip / "clean.mp4"
    )
    assert video.metrics.psnr_db == pytest.approx(video.metrics.input_psnr_db, abs=1e-6)
    assert 19 < video.metrics.input_psnr_db < 23  # sigma 25 is 20.2 dB; clipping and the codec take a little off


def test_a_reference_of_another_length_is_refused(passing, clip):
    for noisy, reference, words in (("noisy", "short", "ends after 9 frames"), ("short", "noisy", "more than")):
        with pytest.raises(BadInput, match=words):
            denoise_video(
                passing,
                clip / f"{noisy}.mp4",
                clip / "out.mp4",
                Options(),
                Settings(),
                reference=clip / f"{reference}.mp4",
            )
        assert not (clip / "out.mp4").exists()


def test_a_job_that_is_cancelled_midway_leaves_no_file(passing, clip):
    def cancel(progress):
        if progress.done == 5:
            raise JobCancelled("enough")

    with pytest.raises(JobCancelled):
        denoise_video(passing, clip / "noisy.mp4", clip / "out.mp4", Options(), Settings(), on_progress=cancel)
    assert sorted(path.name for path in clip.iterdir()) == ["clean.mp4", "noisy.mp4", "short.mp4"]


def test_an_engine_that_fails_midway_fails_the_job_and_leaves_no_file(passing, clip):
    class Failing(MiddleFrame):
        runs = 0

        def denoise(self, noisy, sigma):
            self.runs += 1
            if self.runs == 6:
                raise MemoryError("no room for the tile")
            return super().denoise(noisy, sigma)

    failing = replace(passing, engines=[*passing.engines[:2], Failing(FITVNET.stages[2])])
    with pytest.raises(MemoryError):
        denoise_video(failing, clip / "noisy.mp4", clip / "out.mp4", Options(), Settings())
    assert not (clip / "out.mp4").exists()


PEAK_OF_A_CLIP = """
import resource, sys
from pathlib import Path
import numpy as np
from models.catalogue import FITVNET
from service.demo import write_clip
from service.job import Options
from service.pipeline.denoiser import Denoiser
from service.pipeline.videos import denoise_video
from service.settings import Settings
from tests.test_videos import MiddleFrame

folder, count = Path(sys.argv[1]), int(sys.argv[2])
frames = [np.full((208, 320, 3), 40 + shade, np.uint8) for shade in range(8)]
write_clip(folder / "in.mp4", [frames[index % 8] for index in range(count)])
denoiser = Denoiser(FITVNET, [MiddleFrame(stage) for stage in FITVNET.stages], tile_px=512)
made = denoise_video(denoiser, folder / "in.mp4", folder / "out.mp4", Options(), Settings())
assert made.frames == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_length_of_a_clip(tmp_path):
    peaks_mib = {}
    for count in (100, 600):
        command = [sys.executable, "-c", PEAK_OF_A_CLIP, str(tmp_path), str(count)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        peaks_mib[count] = int(ran.stdout)
    assert peaks_mib[600] < peaks_mib[100] + 40  # 500 frames more are 100 MB as pixels, 400 MB as planes
