"""Does footage that nobody has clean frames of make a denoiser better, and is the result there by name at once?"""

import json
import math
import shutil
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from api_support import PATIENCE_S, served, short_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from models.catalogue import CATALOGUE, FITVNET, FITVNET_CAMERA, SHIPPED_DIR
from models.errors import UnknownDenoiser
from models.networks.fitvnet import FITVNet
from models.own import MOST_BYTES, Adaptation, BrokenDenoiser, Library, NameTaken, OwnDenoiser, sha256_of
from models.training.footage import check_clips, read_frames, spread_runs
from models.training.noise_fit import NoiseFit, fit_noise
from models.training.recipe import Phase, l2_norm, l2_norm_of_known, middle_of
from models.training.recipes import RECIPES
from models.training.recipes.fitvnet import (
    ENLARGED_ALPHA,
    adapting_error,
    adapting_error_noisy,
    joint_error_noisy,
    restore_aligned_clip,
)
from models.training.unsupervised import FootageSource, Recorruption, adapt
from models.weights import stage_modules
from service.__main__ import app
from service.adaptation import read_footage
from service.errors import BadInput
from service.pipeline.shelf import Shelf
from service.settings import Settings
from service.worker import Stop, Worker
from trtbuild.export import export_stage

WHITE = NoiseFit((0.0, 0.0, 0.0), (0.01, 0.01, 0.01), 1.0)  # sigma 0.1
A_SHA = "0123456789abcdef" * 4


def hills(frames: int, height: int, width: int) -> np.ndarray:
    """Footage that pans over smooth hills of every brightness from 0.1 to 0.9: [T, H, W, 3] in [0, 1]."""
    down, across = np.mgrid[0:height, 0 : width + 2 * frames]
    planes = [0.5 + 0.4 * np.sin(down / (17 + 3 * c)) * np.cos(across / (23 - 2 * c)) for c in range(3)]
    wide = np.stack(planes, -1)
    return np.stack([wide[:, 2 * t : 2 * t + width] for t in range(frames)])


def recorded(values: np.ndarray) -> np.ndarray:
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def with_camera_noise(clean: np.ndarray, shot, read, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return clean + rng.standard_normal(clean.shape) * np.sqrt(np.asarray(shot) * clean + np.asarray(read))


# What the noise of footage is found to be


@pytest.mark.parametrize("level", [5, 15, 25, 40])
def test_the_level_of_white_noise_is_found_within_a_few_percent(level):
    fit = fit_noise([recorded(with_camera_noise(hills(4, 160, 240), 0, (level / 255) ** 2))])
    for brightness in (0.2, 0.5, 0.8):
        # At 40 the range cuts some of the noise of the ends.
        assert fit.sigma_at(brightness) * 255 == pytest.approx(level, rel=0.05)


def test_noise_that_grows_with_light_is_found_colour_by_colour():
    shot, read = (0.004, 0.012, 0.024), (4e-4, 1e-4, 9e-4)
    fit = fit_noise([recorded(with_camera_noise(hills(6, 200, 300), shot, read))])
    for colour in range(3):
        for brightness in (0.2, 0.5, 0.8):
            expected = shot[colour] * brightness + read[colour]
            assert fit.shot[colour] * brightness + fit.read[colour] == pytest.approx(expected, rel=0.08)  # 4 % of sigma


def test_noise_that_neighbours_share_is_told_from_noise_that_they_do_not():
    clean = hills(4, 160, 240)
    noise = np.random.default_rng(3).standard_normal(clean.shape) * 0.06
    shared = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, (1, 1), (1, 2))) / 2
    assert fit_noise([recorded(clean + noise)]).blotch == pytest.approx(1, abs=0.1)
    assert fit_noise([recorded(clean + shared)]).blotch > 2


def test_frames_too_small_to_tell_their_noise_are_refused():
    with pytest.raises(ValueError, match="too few pixels"):
        fit_noise([np.zeros((3, 20, 20, 3), np.uint8)])


# Two noisy frames out of one


def test_a_recorrupted_pair_has_the_clean_frame_as_its_mean_and_noise_that_is_uncorrelated():
    generator = torch.Generator().manual_seed(1)
    clean = torch.linspace(0.3, 0.7, 64).expand(8, 4, 3, 64, 64)
    shot, read = 0.02, 0.001
    fit = NoiseFit((shot,) * 3, (read,) * 3, 1.0)
    variance = shot * clean + read
    observed = clean + variance.sqrt() * torch.randn(clean.shape, generator=generator)
    noisy, target = Recorruption(fit, strength=0.5).pair(observed, seed=2)
    known = target.isfinite()
    assert known.float().mean() > 0.99
    of_noisy, of_target = ((noisy - clean) / variance.sqrt())[known], ((target - clean) / variance.sqrt())[known]
    # 390 000 values: the mean of their products is uncertain by 1.1 * 2.2 / 620 = 0.004.
    assert float((of_noisy * of_target).mean()) == pytest.approx(0, abs=0.02)
    assert float(of_target.mean()) == pytest.approx(0, abs=0.02)
    assert float(of_noisy.var()) == pytest.approx(1 + 0.5**2, rel=0.02)
    assert float(of_target.var()) == pytest.approx(1 + 1 / 0.5**2, rel=0.02)


def test_what_goes_in_tells_nothing_of_the_noise_of_what_should_come_out_even_where_photons_are_counted():
    """A network that found something would leave noise in, and its error against the targets would praise it."""
    rng = np.random.default_rng(5)
    clean, shot, read = 0.2, 0.05, 0.01**2  # four photons a pixel: as skewed as noise gets
    counted = shot * rng.poisson(clean / shot, (16, 1, 3, 160, 160)) + rng.normal(0, read**0.5, (16, 1, 3, 160, 160))
    fit = NoiseFit((shot,) * 3, (read,) * 3, 1.0)
    noisy, target = Recorruption(fit).pair(torch.from_numpy(counted).float(), seed=6)
    order = noisy.flatten().argsort()
    for share in order.chunk(12):  # from the darkest of what goes in to the lightest
        found = target.flatten()[share]
        # 100 000 values with a deviation of 0.22: uncertain by 0.0007. Gaussian z misses by up to 0.06.
        assert float(found.mean()) == pytest.approx(clean, abs=0.012)


def test_the_error_against_recorrupted_targets_ranks_denoisers_as_the_error_against_clean_frames_does():
    generator = torch.Generator().manual_seed(3)
    ramp = torch.linspace(0, 12, 96)
    clean = (0.5 + 0.15 * torch.sin(ramp[:, None] * 2) * torch.cos(ramp)).expand(6, 2, 3, 96, 96)
    noisy, target = Recorruption(WHITE).pair(clean + 0.1 * torch.randn(clean.shape, generator=generator), seed=4)
    known = target.isfinite()
    for side in (1, 3, 5, 9, 21):
        planes = noisy.flatten(0, 1)
        blurred = torch.nn.functional.avg_pool2d(planes, side, 1, side // 2, count_include_pad=False).view_as(noisy)
        of_targets = float(((blurred - target)[known]).square().mean()) - 0.01 * (1 + 1 / 0.5**2)
        of_clean = float((blurred - clean)[known].square().mean())
        # 330 000 values whose squares have a deviation of 0.07: uncertain by 0.00013.
        assert of_targets == pytest.approx(of_clean, abs=5e-4)


def test_the_same_seed_makes_the_same_pair_and_another_makes_another():
    observed = torch.rand(2, 3, 3, 16, 16)
    first, again, other = (Recorruption(WHITE).pair(observed, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_nothing_is_learned_where_the_range_cuts_the_noise():
    bands = torch.tensor([0.02, 0.5, 0.98]).repeat_interleave(16).view(1, 1, 1, -1, 1).expand(1, 1, 3, 48, 48)
    known = Recorruption(WHITE).pair(bands.contiguous(), seed=1)[1].isfinite()[0, 0, 0, :, 24]
    assert known[20:28].all()
    assert not known[:12].any()
    assert not known[36:].any()
    # Light that is counted cannot fall below zero: in the dark nothing is cut.
    photons = NoiseFit((0.1, 0.1, 0.1), (0.0, 0.0, 0.0), 1.0)
    assert Recorruption(photons).pair(bands.contiguous(), seed=1)[1].isfinite()[0, 0, 0, :12].all()


def test_where_the_range_cuts_the_noise_the_network_is_held_to_what_it_was():
    recipe = RECIPES["fitvnet"].unsupervised
    halves = np.full((9, 64, 64, 3), 128, np.uint8)
    halves[:, :, 32:] = 250
    source = FootageSource(recipe, [halves], WHITE, "cpu")
    _, _, target = source.draw(np.random.default_rng(1), Phase(0.0, 64, 2))
    assert 0.3 < float(target.isnan().float().mean()) < 0.7
    assert Recorruption(WHITE).cut_share([halves]) == pytest.approx(0.5, abs=0.05)
    source.hold_to = lambda noisy, _: middle_of(torch.full_like(noisy, 7.0), 3)
    _, _, held = source.draw(np.random.default_rng(1), Phase(0.0, 64, 2))
    cut = target.isnan()
    assert (held[:, 2:5][cut[:, 2:5]] == 7).all()
    assert torch.equal(held[~cut], target[~cut])
    assert held[:, :2][cut[:, :2]].isnan().all()  # the network gives nothing there


def test_what_is_not_known_counts_for_nothing_in_the_loss():
    restored = torch.zeros(1, 1, 3, 4, 4, requires_grad=True)
    target = torch.full((1, 1, 3, 4, 4), 0.2)
    target[..., 2:] = math.nan
    loss = l2_norm_of_known(restored, target)
    assert loss.item() == pytest.approx(0.2, abs=1e-4)
    loss.backward()
    assert restored.grad.isfinite().all()
    assert (restored.grad[..., 2:] == 0).all()
    known = torch.rand(1, 1, 3, 4, 4)
    assert l2_norm_of_known(restored, known).item() == pytest.approx(l2_norm(restored, known).item(), rel=1e-5)
    assert l2_norm_of_known(restored, torch.full_like(known, math.nan)).item() == pytest.approx(0, abs=1e-3)


# The paper's objectives


def some_clip() -> tuple[FITVNet, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    network, noisy, target = FITVNet(), torch.rand(1, 5, 3, 32, 32), torch.rand(1, 5, 3, 32, 32)
    with torch.no_grad():
        network.first.dec_conv1b.weight.normal_(std=0.01)
        network.second.dec_conv1b.weight.normal_(std=0.01)
    return network, noisy, torch.full((1,), 0.1), target


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_adapting_follows_equations_8_10_and_11(progress):
    network, noisy, sigma, target = some_clip()
    with torch.no_grad():
        spatial = network.spatial(noisy[0], sigma)[None]
        restored = network(noisy.flatten(1, 2), sigma)[:, None]
        share = ENLARGED_ALPHA / (1 + 40 * progress) * float(l2_norm(spatial, target))
        as_paper = share + float(l2_norm(restored, spatial[:, 2:3]))
        aligned = restore_aligned_clip(network, noisy, sigma)
        on_targets = share + float(l2_norm(aligned, target[:, 2:3]))
        assert float(adapting_error(network, noisy, sigma, target, progress)) == pytest.approx(as_paper, rel=1e-4)
        found = float(adapting_error_noisy(network, noisy, sigma, target, progress))
        assert found == pytest.approx(on_targets, rel=1e-4)


def test_by_equation_11_the_spatial_module_learns_from_noisy_targets_alone():
    network, noisy, sigma, target = some_clip()
    adapting_error(network, noisy, sigma, target, 1.0).backward()
    both = {name: one.grad.clone() for name, one in network.spatial.named_parameters()}
    assert all(one.grad is not None for one in network.first.parameters())
    network.zero_grad(set_to_none=True)
    (ENLARGED_ALPHA / 41 * l2_norm(network.spatial(noisy[0], sigma)[None], target)).backward()
    for name, one in network.spatial.named_parameters():
        torch.testing.assert_close(both[name], one.grad, rtol=1e-3, atol=1e-6)


def test_jsn_draws_its_noisy_targets_at_the_level_of_the_input():
    network, noisy, _, clean = some_clip()
    torch.manual_seed(7)
    with torch.no_grad():
        found = float(joint_error_noisy(network, noisy, torch.full((1,), 0.2), clean, 0.0))
        spatial = network.spatial(noisy[0], torch.zeros(1))[None]
        restored = network(noisy.flatten(1, 2), torch.zeros(1))[:, None]
        power = (spatial - clean).square().mean((-3, -2, -1)) + 0.2**2  # the targets' noise adds its variance
        expected = power.sqrt().mean() + l2_norm(restored, middle_of(clean, 1))
    assert found == pytest.approx(float(expected), rel=0.02)  # 3072 draws a frame


def test_the_papers_variants_differ_in_their_objective_alone():
    jsc = RECIPES["fitvnet-jsc"]
    for name in ("fitvnet-base", "fitvnet-jsn", "fitvnet-unsupervised"):
        variant = RECIPES[name]
        assert replace(variant, name="", objective=jsc.objective, source="", unsupervised=None) == replace(
            jsc, name="", source="", unsupervised=None
        )
        assert variant.starts_from == {}
        assert variant.frozen == ()


# Footage


@given(st.integers(1, 5000), st.integers(1, 400))
def test_runs_never_overlap_never_pass_the_end_and_never_are_too_many(frames, most):
    runs = spread_runs(frames, most)
    taken = [index for run in runs for index in run]
    assert taken == sorted(set(taken))
    assert taken[0] >= 0
    assert taken[-1] < frames
    assert len(taken) <= most
    assert len(taken) == min(frames, most) or len(taken) > most - 24


def test_frames_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        Image.fromarray(np.full((20, 30, 3), number, np.uint8)).save(tmp_path / f"shot_{number}.png")
    (clip,) = read_frames(tmp_path)
    assert clip[:, 0, 0, 0].tolist() == [1, 9, 10]
    Image.fromarray(np.zeros((20, 31, 3), np.uint8)).save(tmp_path / "shot_11.png")
    with pytest.raises(ValueError, match=r"shot_11.png is 31x20 and the first frame 30x20"):
        read_frames(tmp_path)


def test_clips_too_short_or_too_small_are_refused_and_short_ones_beside_long_ones_left_out():
    short, long = np.zeros((3, 64, 64, 3), np.uint8), np.zeros((9, 64, 64, 3), np.uint8)
    assert check_clips([short, long], 7, 16) == [long]
    with pytest.raises(ValueError, match="longest clip has 3 frames; at least 7"):
        check_clips([short], 7, 16)
    with pytest.raises(ValueError, match="64x64; at least 128x128"):
        check_clips([long], 7, 128)


def test_videos_and_folders_of_frames_are_footage(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    frames = tmp_path / "takes" / "one"
    frames.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((24, 32, 3), number, np.uint8)).save(frames / f"{number}.png")
    (tmp_path / "takes" / "two.mp4").write_bytes(short_video(frames=3))
    (tmp_path / "takes" / "notes.txt").write_text("of the day")
    clips = read_footage([tmp_path / "takes"], settings)
    assert [clip.shape for clip in clips] == [(4, 24, 32, 3), (3, 24, 32, 3)]
    assert [clip.shape for clip in read_footage([tmp_path / "takes" / "two.mp4"], settings)] == [(3, 24, 32, 3)]
    with pytest.raises(BadInput, match=r"notes.txt is neither"):
        read_footage([tmp_path / "takes" / "notes.txt"], settings)
    with pytest.raises(FileNotFoundError):
        read_footage([tmp_path / "nowhere"], settings)


# A run


def test_a_run_of_a_network_of_one_frame_learns_and_goes_on_after_a_kill(tmp_path):
    recipe = RECIPES["fitvnet-spatial"].unsupervised
    recipe = replace(recipe, phases=(Phase(0.0, 32, 2),))
    clips = [recorded(with_camera_noise(0.6 * hills(6, 48, 64), 0.02, 1e-4))]
    out, reports, before = tmp_path / "one.safetensors", [], []
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        adapt(recipe, clips, out, minutes=0.005, resume=True)
    made = adapt(recipe, clips, out, minutes=0.005, on_start=before.append, on_report=reports.append)
    # So few frames tell the error so badly that the estimate may be less than nothing.
    assert before == pytest.approx([made.before_db], nan_ok=True)
    assert made.steps == reports[-1].step > 0
    again = adapt(recipe, clips, out, minutes=made.minutes + 0.005, resume=True)  # on a busy machine a step takes long
    assert again.steps > made.steps
    assert again.before_db == pytest.approx(made.before_db, nan_ok=True)
    shipped = load_file(SHIPPED_DIR / "fitvnet-spatial.safetensors")
    learned = load_file(out)
    assert learned.keys() == shipped.keys()
    assert any(not torch.equal(learned[key].float(), shipped[key].float()) for key in shipped)
    from_there = adapt(recipe, clips, tmp_path / "two.safetensors", minutes=0.001, start_from=out)
    assert from_there.before_db == pytest.approx(again.after_db, abs=1e-3, nan_ok=True)


# What a models directory holds


def an_adaptation() -> Adaptation:
    return Adaptation(
        recipe="fitvnet-adapted",
        data="night",
        minutes=4.0,
        steps=200,
        seed=1,
        device="cpu",
        sigma_dark=0.01,
        sigma_light=0.3,
        blotch=1.0,
        estimate_before_db=25.0,
        estimate_after_db=27.5,
    )


def an_own(name: str = "night") -> OwnDenoiser:
    return OwnDenoiser(
        name=name,
        base="fitvnet",
        made_at="2026-11-21T07:00:00+00:00",
        weights_sha256=A_SHA,
        graphs_sha256={stage.name: A_SHA for stage in FITVNET.stages},
        adaptation=an_adaptation(),
    )


def test_a_denoiser_that_is_added_is_found_by_name_beside_the_catalogues(tmp_path):
    library = Library(tmp_path)
    assert [spec.name for spec in library.specs()] == list(CATALOGUE)
    library.add(an_own())
    assert library.own("night") == an_own()
    spec = library.find("night", "video")
    assert (spec.name, spec.adapted_from, spec.home, spec.kind) == ("night", "fitvnet", tmp_path, "video")
    assert spec.frames == FITVNET.frames
    assert {stage.name for stage in spec.stages}.isdisjoint(stage.name for stage in FITVNET.stages)
    assert [spec.name for spec in library.specs()] == [*CATALOGUE, "night"]
    assert library.find("auto", "video") == FITVNET_CAMERA
    assert "25.00 to 27.50 dB" in library.card_of("night").limits
    assert library.card_of("fitvnet").name == "fitvnet"
    with pytest.raises(UnknownDenoiser, match="needs neighbouring frames"):
        library.find("night", "image")
    with pytest.raises(UnknownDenoiser, match=r"'day'; known are .*fitvnet, .*night"):
        library.find("day")
    (tmp_path / "night.json").unlink()
    assert library.own("night") is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "a\\b", "/abs", "Night", "a..b", "-a", "a b", "a\n", "é", "a" * 61, "x\0y"]
)
def test_names_that_could_lead_elsewhere_are_no_names(name, tmp_path):
    library = Library(tmp_path / "models")
    (tmp_path / "up.json").write_text("{}")
    assert library.own(name) is None
    with pytest.raises(UnknownDenoiser):
        library.find(name)
    with pytest.raises(NameTaken, match="cannot be a model's name"):
        library.check_new_name(name)


@pytest.mark.parametrize("name", ["fitvnet", "fitvnet-spatial", "dncnn", "auto"])
def test_names_that_come_with_quietframe_stay_its_own(name, tmp_path):
    library = Library(tmp_path)
    with pytest.raises(NameTaken, match="comes with Quietframe"):
        library.check_new_name(name)
    (tmp_path / f"{name}.json").write_text(json.dumps({"format": 1, **asdict(an_own(name))}))
    assert [spec.name for spec in library.specs()] == list(CATALOGUE)
    assert library.find("fitvnet") == FITVNET


def test_a_name_is_given_twice_only_where_that_is_wanted(tmp_path):
    library = Library(tmp_path)
    library.add(an_own())
    with pytest.raises(NameTaken, match="--replace"):
        library.check_new_name("night")
    library.check_new_name("night", replaces=True)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(A_SHA) | st.just("fitvnet"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = list({"format": 1, **asdict(an_own())})


@given(field=st.sampled_from(FIELDS), inside=st.sampled_from([None, *asdict(an_adaptation())]), value=ANY_JSON)
def test_a_description_with_any_one_thing_wrong_is_read_or_told_of_and_hurts_nobody(
    tmp_path_factory, field, inside, value
):
    folder = tmp_path_factory.mktemp("models")
    written = {"format": 1, **asdict(an_own())}
    if field == "adaptation" and inside:
        written["adaptation"][inside] = value
    else:
        written[field] = value
    check_that_it_hurts_nobody(folder, json.dumps(written).encode())


@given(st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_a_description_of_any_bytes_hurts_nobody(tmp_path_factory, content):
    check_that_it_hurts_nobody(tmp_path_factory.mktemp("models"), content)


def check_that_it_hurts_nobody(folder: Path, content: bytes) -> None:
    library = Library(folder)
    library.add(an_own("well"))
    (folder / "night.json").write_bytes(content)
    names = [spec.name for spec in library.specs()]
    assert set(names) >= {*CATALOGUE, "well"}
    if "night" not in names:
        with pytest.raises(BrokenDenoiser, match="'night' is damaged"):
            library.own("night")
        with pytest.raises(BrokenDenoiser):
            library.find("night")
        return
    own = library.own("night")
    assert own.spec_in(folder).home == folder
    assert all(path.parent == folder for path in own.files_in(folder))
    json.dumps(own.card().as_dict(), allow_nan=False)


@pytest.mark.parametrize("content", [b"[" * 60_000, b" " * (MOST_BYTES + 1), b"1" * 6000, b'{"format": NaN}'])
def test_a_description_made_to_be_hard_to_read_is_told_of(content, tmp_path):
    check_that_it_hurts_nobody(tmp_path, content)


def test_a_description_that_is_mended_is_read_again(tmp_path):
    library = Library(tmp_path)
    (tmp_path / "night.json").write_text("{")
    with pytest.raises(BrokenDenoiser, match=r"night.json cannot be read"):
        library.own("night")
    library.add(an_own())
    assert library.own("night") == an_own()


# From noisy frames to a name, once for all the tests below: the network is real, its training is seconds


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    noisy = recorded(with_camera_noise(0.6 * hills(12, 64, 80), 0.02, 1e-4))
    for number, frame in enumerate(noisy):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def adapted(footage, tmp_path_factory) -> tuple[Path, str]:
    """A data directory with the model `night` in it, and what was told on the way."""
    data_dir = tmp_path_factory.mktemp("data")
    told = adapting(data_dir, footage, "--name", "night", "--minutes", 0.02)
    return data_dir, told


def quietframe(data_dir: Path, *words: object, status: int = 0) -> str:
    """Run a command, and give what it prints."""
    ran = CliRunner().invoke(app, [*map(str, words), "--data-dir", str(data_dir)])
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == status, ran.output
    return ran.output


def adapting(data_dir: Path, footage: Path, *words: object, status: int = 0, recipe: str = "fitvnet") -> str:
    return quietframe(data_dir, "train", recipe, "--unsupervised", "--data", footage, *words, status=status)


def copy_of(adapted: tuple[Path, str], tmp_path: Path) -> Path:
    return shutil.copytree(adapted[0], tmp_path / "copy")


def test_adapting_tells_what_it_finds_and_leaves_a_model_and_nothing_half_done(adapted):
    data_dir, told = adapted
    assert "read 12 frames in 1 clips" in told
    assert "found noise of level" in told
    assert "step " in told
    assert "(estimated)" in told
    assert "quietframe denoise --model night" in told
    own = Library(data_dir / "models").own("night")
    files = {path.name for path in (data_dir / "models").iterdir()}
    graphs = {f"{own.version}-{stage.name}.onnx" for stage in FITVNET.stages}
    assert files == {"night.json", "night.csv", f"{own.version}.safetensors", *graphs}
    assert own.adaptation.sigma_light == pytest.approx(0.02**0.5, rel=0.15)  # 12 small frames
    assert own.adaptation.recipe == "fitvnet-adapted"


def test_an_adapted_model_is_the_trained_network_on_every_backend(adapted):
    data_dir, _ = adapted
    frames = [one.transpose(2, 0, 1).astype(np.float32) for one in hills(6, 48, 64)]
    restored = {}
    for backend in ("openvino", "torch"):
        denoiser = Shelf(Settings(data_dir=data_dir, backend=backend)).denoiser("night")
        assert denoiser.backend == backend
        restored[backend] = np.stack(list(denoiser.restore_frames(frames)))
    # bfloat16 against float32, half an 8-bit step in the mean
    assert np.abs(restored["openvino"] - restored["torch"]).mean() < 0.5 / 255
    shipped = np.stack(list(Shelf(Settings(backend="torch")).denoiser("fitvnet").restore_frames(frames)))
    assert np.abs(restored["torch"] - shipped).max() > 0  # it has learned something


def test_the_command_line_lists_shows_uses_and_measures_it(adapted, footage, tmp_path):
    data_dir, _ = adapted
    assert "night" in quietframe(data_dir, "models")
    assert "without clean frames" in quietframe(data_dir, "models", "night")
    assert [one["name"] for one in json.loads(quietframe(data_dir, "models", "--json"))][-1] == "night"
    video, result = tmp_path / "in.mp4", tmp_path / "out.mp4"
    video.write_bytes(short_video(64, 48, 6))
    assert "night on openvino" in quietframe(data_dir, "denoise", video, result, "--model", "night")
    assert result.stat().st_size > 0
    tests = tmp_path / "set" / "clip"
    tests.mkdir(parents=True)
    for number, frame in enumerate(recorded(hills(5, 48, 64))):
        Image.fromarray(frame).save(tests / f"{number}.png")
    told = quietframe(data_dir, "eval", "night", "--data", tests.parent, "--sigma", "25", "--json")
    (figure,) = json.loads(told[told.index("[") :])
    assert figure["denoiser"] == "night"
    assert figure["restored_db"] > figure["noisy_db"]


def test_what_cannot_be_adapted_is_refused_before_any_training(adapted, footage, tmp_path):
    data_dir, _ = adapted
    with pytest.raises(NameTaken, match="there is a model 'night'"):
        adapting(data_dir, footage, "--name", "night")
    with pytest.raises(NameTaken, match="cannot be a model's name"):
        adapting(data_dir, footage, "--name", "../x")
    with pytest.raises(BadInput, match=r"'dncnn' cannot be adapted to noisy footage; .*fitvnet"):
        adapting(data_dir, footage, recipe="dncnn")
    with pytest.raises(FileNotFoundError):
        adapting(data_dir, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        adapting(data_dir, footage, "--resume")
    adapting(data_dir, footage, "--out", tmp_path / "x", status=2)
    quietframe(data_dir, "train", "fitvnet", "--data", footage, status=2)  # no --out
    quietframe(data_dir, "train", "fitvnet", "--data", footage, "--out", tmp_path / "x", "--name", "x", status=2)


def test_a_damaged_file_is_told_of_and_the_others_go_on(adapted, tmp_path):
    data_dir = copy_of(adapted, tmp_path)
    own = Library(data_dir / "models").own("night")
    graph = data_dir / "models" / f"{own.version}-fitvnet-first.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    shelf = Shelf(Settings(data_dir=data_dir))
    with pytest.raises(BrokenDenoiser, match=f"{graph.name} is not what was written"):
        shelf.denoiser("night")
    graph.unlink()
    with pytest.raises(BrokenDenoiser, match=f"{graph.name} is not in"):
        shelf.denoiser("night")
    with pytest.raises(UnknownDenoiser):
        shelf.denoiser("day")
    assert shelf.denoiser("fitvnet")


def replaced(folder: Path) -> OwnDenoiser:
    """Put other weights in the place of `night`, as a second adaptation does."""
    library = Library(folder)
    before = library.own("night")
    state = load_file(folder / f"{before.version}.safetensors")
    state["second.dec_conv1b.bias"] = state["second.dec_conv1b.bias"] + 0.25
    weights = folder / "new.safetensors"
    save_file(state, weights)
    own = replace(before, weights_sha256=sha256_of(weights))
    weights.rename(folder / f"{own.version}.safetensors")
    spec = own.spec_in(folder)
    graphs = {}
    modules = stage_modules(spec, folder)
    for stage, shipped in zip(spec.stages, FITVNET.stages, strict=True):
        path = folder / f"{stage.name}.onnx"
        path.write_bytes(export_stage(spec, stage, modules[stage.name]))  # one that is not of the weights is refused
        graphs[shipped.name] = sha256_of(path)
    own = replace(own, graphs_sha256=graphs)
    library.add(own)
    return own


def test_a_process_that_has_loaded_a_model_sees_that_it_was_replaced(adapted, tmp_path):
    data_dir = copy_of(adapted, tmp_path)
    shelf = Shelf(Settings(data_dir=data_dir, backend="torch"))
    frames = [np.full((3, 32, 32), 0.5, np.float32)] * 3
    first = shelf.denoiser("night")
    before = np.stack(list(first.restore_frames(frames)))
    assert shelf.denoiser("night") is first
    own = replaced(data_dir / "models")
    after = np.stack(list(shelf.denoiser("night").restore_frames(frames)))
    np.testing.assert_allclose(after - before, 0.25, atol=1e-3)
    # Of the one before nothing is left.
    assert all(own.version in path.name for path in (data_dir / "models").iterdir() if path.suffix in {".onnx"})


def test_the_service_lists_and_runs_a_model_that_came_after_it_was_started(adapted, tmp_path, fresh_redis_url):
    settings = Settings(port=0, data_dir=tmp_path / "data", redis_url=fresh_redis_url)
    stop = Stop()
    with served(settings) as (client, _):
        worker = threading.Thread(target=Worker(settings, fresh_redis_url).run, args=(stop,))
        worker.start()
        try:
            assert client.get("/models/night").status_code == 404
            assert client.post("/jobs/video", **a_video("night")).status_code == 422
            shutil.copytree(adapted[0] / "models", settings.own_models_dir)

            listed = {one["name"]: one for one in client.get("/models").json()["models"]}
            assert list(listed) == [*CATALOGUE, "night"]
            assert listed["night"]["adapted_from"] == "fitvnet"
            assert listed["fitvnet"]["adapted_from"] is None
            assert "without clean frames" in client.get("/models/night").json()["card"]["limits"]
            document = finished(client, client.post("/jobs/video", **a_video("night")))
            assert (document["state"], document["model"]) == ("succeeded", "night")
            ready = wait_for(lambda: client.get("/models/night").json()["ready"])
            assert ready[0]["backend"] == "openvino"

            (settings.own_models_dir / "night.json").write_text("{}")
            assert "damaged" in client.get("/models/night").json()["detail"]
            assert "night" not in {one["name"] for one in client.get("/models").json()["models"]}
            assert "damaged" in client.post("/jobs/video", **a_video("night")).json()["detail"]
            assert finished(client, client.post("/jobs/video", **a_video("fitvnet")))["state"] == "succeeded"
        finally:
            stop.ask(0)
            worker.join()


def a_video(model: str) -> dict:
    return {"files": {"file": ("clip.mp4", short_video(64, 48, 3))}, "data": {"model": model}}


def finished(client, answer) -> dict:
    assert answer.status_code == 202, answer.text
    location = answer.headers["location"]

    def final():
        document = client.get(location).json()
        return document if document["state"] in {"succeeded", "failed"} else None

    return wait_for(final)


def wait_for(what):
    deadline = time.monotonic() + 3 * PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
