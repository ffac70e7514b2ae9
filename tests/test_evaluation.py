"""Does `quietframe eval` measure what it says, by the protocol, and write it where everything takes it from?"""

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import service.evaluation
from models.errors import UnknownDenoiser
from models.figures import add_figures, read_figures, read_published
from models.noise import NOISES, add_gaussian, recorded
from models.noise_level import estimate_sigma
from models.quality import average_deviation, psnr_db, ssim
from service.__main__ import app
from service.errors import BadInput
from service.evaluation import evaluate, line_of, record, table_of
from service.pipeline.denoiser import to_planes
from service.settings import Settings
from trtbuild.classical_engine import nlm

SETTINGS = Settings(threads=1)


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """[H, W, 3] uint8: waves with an edge."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width] / 9
    planes = [0.5 + 0.4 * np.sin(down * rng.uniform(0.5, 2) + across) * np.sign(across - 3) for _ in range(3)]
    return np.rint(np.stack(planes, -1) * 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1])


@pytest.fixture
def pictures(tmp_path) -> Path:
    for index in range(3):
        write(tmp_path / "waves" / f"{index}.png", picture(index))
    return tmp_path / "waves"


@pytest.fixture
def pairs(tmp_path) -> Path:
    for index in range(2):
        clean = picture(index)
        noisy = np.rint(recorded(add_gaussian(to_planes(clean), 20 / 255, seed=index)) * 255).astype(np.uint8)
        write(tmp_path / "pairs" / f"shot{index}_mean.png", clean)
        write(tmp_path / "pairs" / f"shot{index}_real.png", noisy.transpose(1, 2, 0))
    return tmp_path / "pairs"


@pytest.fixture
def clips(tmp_path) -> Path:
    for clip in ("one", "two"):
        for t in range(6):
            write(tmp_path / "footage" / "test" / clip / f"{t:05}.png", np.roll(picture(len(clip)), t, 1))
    return tmp_path / "footage" / "test"


def as_pixels(planes: np.ndarray) -> np.ndarray:
    return planes.clip(0, 1).transpose(1, 2, 0)


def test_figures_are_the_mean_over_pictures_by_the_protocol(pictures):
    (figure,) = evaluate(["nlm"], [pictures], ["gaussian-25"], SETTINGS)
    psnrs, alike, deviations, rounded, noisy_db = [], [], [], [], []
    for index in range(3):
        clean = to_planes(picture(index))
        noisy = add_gaussian(clean, 25 / 255, seed=100_003 * index)  # not clipped, not rounded
        pair = as_pixels(nlm(noisy, 25 / 255)), as_pixels(clean)
        psnrs.append(psnr_db(*pair))
        alike.append(ssim(*pair))
        deviations.append(average_deviation(*pair))
        rounded.append(psnr_db(as_pixels(nlm(recorded(noisy), 25 / 255)), as_pixels(clean)))
        noisy_db.append(psnr_db(as_pixels(noisy), as_pixels(clean)))
    assert (figure.data, figure.pictures, figure.frames, figure.backend) == ("waves", 3, 1, "classical uint8")
    assert figure.restored_db == pytest.approx(np.mean(psnrs), abs=1e-4)
    assert figure.ssim == pytest.approx(np.mean(alike), abs=1e-5)
    assert figure.ad == pytest.approx(np.mean(deviations), abs=1e-6)
    assert figure.restored_8bit_db == pytest.approx(np.mean(rounded), abs=1e-4)
    assert figure.noisy_db == pytest.approx(np.mean(noisy_db), abs=1e-4)
    assert (figure.threads, figure.weights) == (1, "")
    assert figure.machine
    assert figure.ms_per_megapixel > 0


def test_of_other_noise_a_denoiser_is_told_the_root_mean_square(pictures, monkeypatch):
    told = []
    monkeypatch.setattr("trtbuild.classical_engine.nlm", lambda noisy, sigma: told.append(sigma) or noisy)
    (figure,) = evaluate(["nlm"], [pictures], ["signal-high"], SETTINGS, every=3)
    clean = to_planes(picture(0))
    noisy = NOISES["signal-high"](clean, 0)
    assert told == [pytest.approx(math.sqrt(np.mean((noisy - clean) ** 2)), rel=1e-5)] * 2  # floats, then 8 bits
    assert (figure.noise, figure.pictures) == ("signal-high", 1)


def test_real_pairs_are_taken_as_stored_and_their_level_is_estimated(pairs, monkeypatch):
    told = []
    monkeypatch.setattr("trtbuild.classical_engine.nlm", lambda noisy, sigma: told.append(sigma) or noisy)
    (figure,) = evaluate(["nlm"], [pairs], ["gaussian-25", "mixed"], SETTINGS)
    stored = [to_planes(cv2.imread(str(pairs / f"shot{index}_real.png"), cv2.IMREAD_COLOR_RGB)) for index in range(2)]
    assert told == pytest.approx([estimate_sigma(planes) for planes in stored])
    assert (figure.noise, figure.restored_8bit_db, figure.pictures) == ("real", None, 2)
    assert figure.restored_db == pytest.approx(figure.noisy_db)  # it gave back what it got


def test_a_clip_counts_as_one_and_a_video_denoiser_does_no_single_pictures(clips, pictures):
    (figure,) = evaluate(["nlm"], [clips], ["gaussian-25"], SETTINGS, most_frames=3)
    assert (figure.data, figure.pictures, figure.frames) == ("footage", 2, 3)
    assert list(evaluate(["fitvnet"], [pictures], ["gaussian-25"], SETTINGS)) == []


def test_what_cannot_be_measured_is_refused_by_name(pictures, tmp_path):
    with pytest.raises(UnknownDenoiser, match="model is 'nobody'; known are fitvnet, "):
        list(evaluate(["nobody"], [pictures], ["gaussian-25"], SETTINGS))
    with pytest.raises(BadInput, match="there is no noise 'snow'"):
        list(evaluate(["nlm"], [pictures], ["snow"], SETTINGS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no pictures"):
        list(evaluate(["nlm"], [tmp_path / "empty"], ["gaussian-25"], SETTINGS))


def test_a_figure_is_recorded_with_the_weights_it_was_measured_on(pictures, tmp_path):
    file = tmp_path / "figures.csv"
    (figure,) = evaluate(["nlm"], [pictures], ["gaussian-25"], SETTINGS)
    record(figure, file)
    record(figure, file)
    (kept,) = read_figures(file)
    assert kept.restored_db == pytest.approx(figure.restored_db, abs=0.005)
    assert "nlm on waves, gaussian-25: " in line_of(kept)


def test_the_command_measures_prints_and_writes(pictures, tmp_path, monkeypatch):
    file = tmp_path / "figures.csv"
    monkeypatch.setattr(service.evaluation, "add_figures", lambda figures, _file: add_figures(figures, file))
    arguments = ["eval", "nlm", "--data", str(pictures), "--every", "3", "--json"]
    ran = CliRunner().invoke(app, [*arguments, "--sigma", "15, 25.0", "--noise", "mixed", "--write"])
    assert ran.exit_code == 0, ran.output
    assert [one["noise"] for one in json.loads(ran.stdout)] == ["gaussian-15", "gaussian-25", "mixed"]
    assert [one.noise for one in read_figures(file)] == ["gaussian-15", "gaussian-25", "mixed"]
    alone = CliRunner().invoke(app, [*arguments, "--noise", "signal-low"])
    assert [one["noise"] for one in json.loads(alone.stdout)] == ["signal-low"]
    assert CliRunner().invoke(app, [*arguments, "--sigma", "loud"]).exit_code == 2


def test_what_is_published_of_the_same_data_stands_below(pictures):
    (figure,) = evaluate(["nlm"], [pictures], ["gaussian-25"], SETTINGS)
    on_kodak = replace(figure, data="kodak24")
    table = table_of([on_kodak], read_published())
    methods, whose = list(table.columns[0].cells), list(table.columns[3].cells)
    assert methods[0] == "nlm"
    assert whose[methods.index("DRUNet")] == "published, of 24"
