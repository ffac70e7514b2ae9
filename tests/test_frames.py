"""Figures of each frame: how they are kept, written and drawn, and how they come about in a video."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from models.catalogue import FITVNET_SPATIAL
from models.plot import Curve, Panel, svg_of
from service.__main__ import app
from service.demo import moving_clip, read_photo, with_noise, write_clip
from service.errors import BadInput
from service.frames import COLUMNS, FrameFigures, FrameTable, in_form, joined, read_csv
from service.job import Options, Part, PartOutcome, Sampled, StageSeconds
from service.media.video import Frame
from service.pipeline.denoiser import Denoiser
from service.pipeline.sampling import Sampler, told
from service.pipeline.videos import denoise_video
from service.sandbox.videos import VideoReader
from service.settings import Settings

SVG = "{http://www.w3.org/2000/svg}"


class Halving:
    """An engine that takes half of what is not 0.5 away."""

    backend, precision, batch, contexts = "halving", "fp32", 1, 1

    def denoise(self, noisy, sigma):
        return np.concatenate([0.5 + (noisy - 0.5) / 2, noisy[:, :1]], 1)


@pytest.fixture
def halving():
    return Denoiser(FITVNET_SPATIAL, [Halving()], tile_px=512)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    frames = moving_clip(read_photo())[:26]
    write_clip(folder / "short.mkv", frames[:3])
    write_clip(folder / "noisy.mkv", [with_noise(frame, seed) for seed, frame in enumerate(frames)])
    write_clip(folder / "clean.mkv", frames)
    return folder


# --- tables


def test_a_table_is_read_as_it_was_written():
    table = FrameTable()
    rows = [FrameFigures(0, 24.5, 25.0, 0.5, 31.5, 0.9, 20.25), FrameFigures(1, 24.25)]
    for row in rows:
        table.add(row)
    assert list(read_csv(table.as_csv())) == rows
    assert table.as_csv().splitlines()[0].decode() == ",".join(COLUMNS)


def test_what_is_infinite_is_left_out():
    table = FrameTable()
    table.add(FrameFigures(0, 0.0, psnr_db=math.inf, ssim=1.0))
    (row,) = read_csv(table.as_csv())
    assert (row.psnr_db, row.ssim) == (None, 1.0)
    assert json.loads(in_form(table.as_csv(), "json"))["frames"][0]["psnr_db"] is None


def test_frames_of_parts_are_counted_on():
    parts = []
    for levels in ([1.0, 2.0], [3.0]):
        table = FrameTable()
        for number, level in enumerate(levels):
            table.add(FrameFigures(number, level))
        parts.append(table.as_csv())
    rows = list(read_csv(joined(parts)))
    assert [(row.frame, row.sigma_estimate) for row in rows] == [(0, 1.0), (1, 2.0), (2, 3.0)]


# --- plots


def test_a_curve_goes_through_its_points_and_stops_at_gaps():
    plot = ElementTree.fromstring(svg_of([Panel("a < b", "x", [Curve("y & z", [0, 1, 2, 3], [0, 1, None, 1])])]))
    (path,) = (one.attrib["d"] for one in plot.iter(f"{SVG}path"))
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert {"a < b", "x", "y & z"} <= {one.text for one in plot.iter(f"{SVG}text")}


def test_a_long_curve_is_drawn_with_few_points():
    count = 100_000
    plot = svg_of([Panel("long", "frame", [Curve("y", range(count), [float(n % 7) for n in range(count)])])])
    assert len(plot) < 20_000
    ElementTree.fromstring(plot)


@pytest.mark.parametrize("values", [[], [None, math.nan], [5.0], [5.0, 5.0]])
def test_there_is_a_plot_whatever_was_measured(values):
    places = list(range(len(values)))
    ElementTree.fromstring(svg_of([Panel("few", "frame", [Curve("y", places, values)])]))


# --- videos


def test_each_frame_of_a_video_has_its_figures(halving, clip, tmp_path):
    made = denoise_video(
        halving,
        clip / "noisy.mkv",
        tmp_path / "out.mkv",
        Options(format="mkv"),
        Settings(),
        reference=clip / "clean.mkv",
    )
    rows = list(read_csv(made.per_frame))
    assert [row.frame for row in rows] == list(range(26))
    assert np.mean([row.psnr_db for row in rows]) == pytest.approx(made.metrics.psnr_db, abs=1e-4)
    assert np.mean([row.ssim for row in rows]) == pytest.approx(made.metrics.ssim, abs=1e-5)
    power = np.mean([row.sigma_estimate**2 for row in rows])
    assert np.sqrt(power) == pytest.approx(made.metrics.sigma_estimate, rel=1e-4)
    assert [row.frame for row in rows if row.input_noise_estimate] == [0, 24]
    assert "SSIM" in in_form(made.per_frame, "svg").decode()


def test_noise_is_told_of_a_video_before_and_after(halving, clip, tmp_path):
    made = denoise_video(halving, clip / "noisy.mkv", tmp_path / "out.mkv", Options(format="mkv"), Settings())
    before, after = made.metrics.input_noise_estimate.sigma, made.metrics.output_noise_estimate.sigma
    assert before == pytest.approx([24, 24, 24], abs=2)
    assert after == pytest.approx([11, 11, 11], abs=2)  # half, less what clipping took before it was halved
    assert made.metrics.psnr_estimate_db is None  # so short a clip is not worth it


def test_the_psnr_of_a_video_is_estimated_where_it_is_asked_for(halving, clip, tmp_path):
    asked = Options(format="mkv", estimate=True)
    made = denoise_video(halving, clip / "noisy.mkv", tmp_path / "out.mkv", asked, Settings())
    assert 10 < made.metrics.psnr_estimate_db < 40
    assert made.metrics.psnr_estimate_error_db > 0


def test_the_estimate_takes_a_small_share_of_the_networks_work():
    seen = []

    class Counting(Halving):
        def denoise(self, noisy, sigma):
            seen.append(noisy.size)
            return super().denoise(noisy, sigma)

    denoiser = Denoiser(FITVNET_SPATIAL, [Counting()], tile_px=512)
    sampler = Sampler(denoiser, Options(), None, None)
    rng = np.random.default_rng(1)
    frame = (0.5 + 0.1 * rng.standard_normal((3, 288, 384))).astype(np.float32)
    for index in range(150):
        sampler.watch(index, frame)
    assert seen
    assert sum(seen) <= 0.03 * 150 * frame.size
    assert sampler.sampled().evidence["values"] > 0


def test_samples_of_parts_are_told_together():
    one = Sampled(frames=1, before=[[0.01], [0.01], [0.01]], after=[[0.0], [0.0], [0.0]])
    other = Sampled(frames=1, before=[[0.03], [0.03], [0.03]], after=[[0.0], [0.0], [0.0]])
    metrics = told([one, Sampled(), other], 1.0)
    assert metrics.input_noise_estimate.sigma == pytest.approx([255 * np.sqrt(0.02)], abs=1e-3)
    assert metrics.psnr_estimate_db is None
    assert told([], 1.0).input_noise_estimate is None


def test_a_part_counts_its_own_frames_not_its_neighbours(halving):
    part = Part(index=1, frames=30, lead=2, trail=2, begin=0, end=1)
    sampler = Sampler(halving, Options(), None, part)
    rng = np.random.default_rng(2)
    frames = [(0.5 + 0.05 * rng.standard_normal((3, 64, 64))).astype(np.float32) for _ in range(34)]
    for index, frame in enumerate(frames):
        sampler.watch(index, frame)
    told_of = [place for place in range(30) if sampler.finish(place, np.zeros((64, 64, 3), np.uint8))[0] is not None]
    assert told_of == [0, 24]
    assert sampler.sampled().frames == 2


def test_an_outcome_of_a_part_survives_its_way_through_the_broker():
    made = PartOutcome(
        blob="b",
        frames=1,
        removed_power=1.0,
        values=1,
        seconds=StageSeconds(),
        backend="x",
        precision="y",
        sampled=Sampled(frames=1, before=[[0.1]] * 3, after=[[0.0]] * 3, evidence={"values": 2.0}),
    )
    assert PartOutcome.model_validate_json(made.model_dump_json()) == made


def test_a_video_may_be_seen_side_by_side_at_half_strength(halving, clip, tmp_path):
    options = Options(format="mkv", codec="ffv1", side_by_side=True, strength=0.5)
    denoise_video(halving, clip / "noisy.mkv", tmp_path / "halves.mkv", options, Settings())
    before, halves = (_first_frame(path).astype(int) for path in (clip / "noisy.mkv", tmp_path / "halves.mkv"))
    middle = before.shape[1] // 2
    assert np.abs(before[:, : middle - 2] - halves[:, : middle - 2]).mean() < 1
    assert halves[:, middle].min() > 240
    wanted = 127.5 + 0.75 * (before[:, middle + 2 :] - 127.5)
    assert np.abs(wanted - halves[:, middle + 2 :]).mean() < 1


def _first_frame(path: Path) -> np.ndarray:
    with VideoReader(path, Settings()) as reader:
        frame: Frame = next(iter(reader))
        return frame.pixels


# --- the command


def test_the_command_writes_figures_of_frames(clip, tmp_path):
    table = tmp_path / "made" / "frames.json"
    files = [str(clip / "short.mkv"), str(tmp_path / "out.mkv")]
    result = CliRunner().invoke(app, ["denoise", *files, "--model", "fitvnet-spatial", "--per-frame", str(table)])
    assert result.exit_code == 0, result.output
    assert "noise measured" in result.output
    assert [row["frame"] for row in json.loads(table.read_text())["frames"]] == [0, 1, 2]


@pytest.mark.parametrize(("name", "words"), [("frames.xls", ".csv, .json, .svg"), ("frames.csv", "is an image")])
def test_figures_of_frames_are_refused_where_there_can_be_none(tmp_path, name, words):
    picture = Path(__file__).parent.parent / "service" / "samples" / "noisy.jpg"
    result = CliRunner().invoke(
        app, ["denoise", str(picture), str(tmp_path / "o.jpg"), "--per-frame", str(tmp_path / name)]
    )
    assert isinstance(result.exception, BadInput)
    assert words in str(result.exception)


def test_the_command_takes_a_level_or_auto():
    result = CliRunner().invoke(app, ["denoise", "missing.png", "out.png", "--sigma", "loud"])
    assert result.exit_code == 2
    assert "neither a number nor auto" in result.output
    auto = CliRunner().invoke(app, ["denoise", "missing.png", "out.png", "--sigma", "auto"])
    assert "missing.png does not exist" in str(auto.exception)
