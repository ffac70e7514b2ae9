"""A video done in parts is the video done as one: the same frames before the encoder, and after a lossless one."""

from pathlib import Path

import numpy as np
import pytest
from media_samples import packets_of, timestamps
from test_videos import MiddleFrame
from video_samples import decoded, planes_in, wild_noise, write_video

from models.catalogue import FITVNET, FITVNET_SPATIAL, DenoiserSpec
from service.demo import moving_clip, read_photo, with_noise, write_clip
from service.errors import JobCancelled
from service.frames import read_csv
from service.job import Options, Part, PartOutcome
from service.media.video import VideoReader
from service.pipeline.denoiser import Denoiser
from service.pipeline.videos import denoise_part, denoise_video, join_parts, plan_parts, still_of
from service.settings import Settings

LOSSLESS = Options(format="mkv", codec="ffv1")
SETTINGS = Settings(part_frames=8)


class Mixing(MiddleFrame):
    """An engine whose result depends on every frame of its window, each weighed differently."""

    def denoise(self, noisy, sigma):
        frames = np.split(noisy, noisy.shape[1] // self.planes_in, axis=1)
        weights = (0.2, 0.7, 0.1) if len(frames) == 3 else (1.0,)
        mixed = sum(weight * frame for weight, frame in zip(weights, frames, strict=True))
        mixed = mixed[:, : self.planes_out].astype(np.float32)
        missing = self.planes_out - mixed.shape[1]
        return np.concatenate([mixed, np.zeros_like(mixed[:, :1].repeat(missing, 1))], 1)

    def __init__(self, stage):
        super().__init__(stage)
        self.planes_in = stage.planes_in


def mixing(spec: DenoiserSpec) -> Denoiser:
    return Denoiser(spec, [Mixing(stage) for stage in spec.stages], tile_px=512)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "noisy.mp4"
    frames = [frame[:160, :160] for frame in moving_clip(read_photo())[:30]]
    write_clip(path, [with_noise(frame, seed) for seed, frame in enumerate(frames)])
    return path


def in_parts(
    denoiser: Denoiser, source: Path, folder: Path, options: Options, *, parts_by: Settings = SETTINGS
) -> tuple[Path, list[Part]]:
    with VideoReader(source, SETTINGS) as reader:
        facts = reader.facts
    parts = plan_parts(denoiser, source, facts, SETTINGS)
    outcomes, files, tables = [], [], []
    for part in parts:
        files.append(folder / f"part-{part.index}")
        made = denoise_part(denoiser, source, files[-1], part, options, parts_by)
        outcomes.append(
            PartOutcome(
                blob="0" * 64,
                frames=made.frames,
                removed_power=made.tally.removed_power,
                values=made.tally.values,
                seconds=made.seconds,
                backend="mixing",
                precision="fp32",
                sampled=made.sampled,
            )
        )
        tables.append(made.per_frame)
    video = join_parts(outcomes, files, source, folder / "joined.mkv", options, SETTINGS, tables=tables)
    assert video.metrics.input_noise_estimate
    (folder / "joined.csv").write_bytes(video.per_frame)
    assert video.frames == sum(part.frames for part in parts)
    return folder / "joined.mkv", parts


def frames_of(path: Path) -> list[np.ndarray]:
    with VideoReader(path, SETTINGS) as reader:
        return [frame.pixels for frame in reader]


@pytest.mark.parametrize("spec", [FITVNET, FITVNET_SPATIAL], ids=lambda spec: spec.name)
def test_the_joined_video_has_the_frames_of_the_undivided_one(spec, clip, tmp_path):
    denoiser = mixing(spec)
    joined, parts = in_parts(denoiser, clip, tmp_path, LOSSLESS)
    assert len(parts) >= 3
    whole = denoise_video(denoiser, clip, tmp_path / "whole.mkv", LOSSLESS, SETTINGS)
    assert whole.frames == 30
    pairs = list(zip(frames_of(joined), frames_of(tmp_path / "whole.mkv"), strict=True))
    assert len(pairs) == 30
    for ours, undivided in pairs:
        np.testing.assert_array_equal(ours, undivided)
    ours, undivided = read_csv((tmp_path / "joined.csv").read_bytes()), read_csv(whole.per_frame)
    assert [(row.frame, row.sigma_estimate) for row in ours] == [(row.frame, row.sigma_estimate) for row in undivided]
    assert timestamps(joined) == timestamps(tmp_path / "whole.mkv")
    assert packets_of(joined, "audio") == packets_of(tmp_path / "whole.mkv", "audio")


def test_parts_at_strength_0_are_joined_to_the_source_itself(tmp_path):
    source = write_video(tmp_path / "in.mkv", count=30, frame=wild_noise, options={"g": "1"})
    joined, parts = in_parts(mixing(FITVNET), source, tmp_path, LOSSLESS.model_copy(update={"strength": 0.0}))
    assert len(parts) >= 3
    for before, after in zip(decoded(source), decoded(joined), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(planes_in(before), planes_in(after), strict=True))


def test_a_short_video_is_not_divided(tmp_path):
    path = tmp_path / "short.mp4"
    write_clip(path, moving_clip(read_photo())[:10])
    with VideoReader(path, SETTINGS) as reader:
        assert len(plan_parts(mixing(FITVNET), path, reader.facts, SETTINGS)) == 1


def test_the_still_is_the_first_frame_of_the_result(clip, tmp_path):
    denoiser = mixing(FITVNET)
    shown: list[bytes] = []
    denoise_video(denoiser, clip, tmp_path / "whole.mkv", LOSSLESS, SETTINGS, on_still=shown.append)
    assert len(shown) == 1
    assert shown[0] == still_of(denoiser, clip, LOSSLESS, SETTINGS)
    assert shown[0].startswith(b"\xff\xd8")


def test_a_cancelled_part_leaves_no_file(clip, tmp_path):
    def cancel(progress):
        raise JobCancelled("not wanted")

    with VideoReader(clip, SETTINGS) as reader:
        parts = plan_parts(mixing(FITVNET), clip, reader.facts, SETTINGS)
    with pytest.raises(JobCancelled):
        denoise_part(mixing(FITVNET), clip, tmp_path / "part", parts[1], LOSSLESS, SETTINGS, on_progress=cancel)
    assert list(tmp_path.iterdir()) == []
