"""Does a training run do what its recipe says, and go on after a kill as if nothing had happened?"""

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.catalogue import CATALOGUE, DESCRIBED
from models.networks.fitvnet import FITVNet, SpatialModule
from models.training.material import Material, read_material
from models.training.noise import Gaussian
from models.training.recipe import Phase, half_squared_error, l2_norm
from models.training.recipes import RECIPES
from models.training.recipes.fitvnet import joint_error
from models.training.trainer import CleanSource, Run, train
from models.weights import build_wired, load_network

SMALL = {
    name: replace(recipe, phases=(Phase(0.0, max(32, DESCRIBED[recipe.network].multiple), 2),), warmup_steps=1)
    for name, recipe in RECIPES.items()
    if not name.endswith(".paper")  # the same code over widths that take minutes a step
}


def waves(height: int, width: int, seed: int) -> np.ndarray:
    """A picture of stripes in several directions: uint8 RGB."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(down * rng.uniform(0.05, 0.6) + across * rng.uniform(0.05, 0.6)) for _ in range(3)]
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Three photographs, one more that was taken noisy and clean, and footage of eight frames that pans."""
    home = tmp_path_factory.mktemp("pictures")
    photos, footage = home / "photos", home / "footage"
    photos.mkdir()
    footage.mkdir()
    for index in range(3):
        Image.fromarray(waves(170 + 8 * index, 200, index)).save(photos / f"wave-{index}.png")
    taken = waves(170, 180, 8)
    grain = np.random.default_rng(8).normal(0, 12, taken.shape)
    Image.fromarray(taken).save(photos / "scene_mean.png")
    Image.fromarray((taken + grain).clip(0, 255).astype(np.uint8)).save(photos / "scene_real.png")
    wide = waves(170, 220, 9)
    for t in range(8):
        Image.fromarray(wide[:, 4 * t : 4 * t + 170]).save(footage / f"{t:03d}.png")
    return [photos, footage]


@pytest.fixture(scope="module")
def material(folders) -> Material:
    return read_material(folders, with_clips=True)


@pytest.fixture
def weights_dir(tmp_path) -> Path:
    """Where the finished weights lie that others are trained behind, or grow from."""
    torch.manual_seed(5)
    for name in ("fitvnet-spatial", "fitvnet-spatial.camera"):
        save_file(SpatialModule().state_dict(), tmp_path / f"{name}.safetensors")
    for name in ("kpn", "unet.fast", "deform2d", "deform3d"):
        save_file(build_wired(name).state_dict(), tmp_path / f"{name}.safetensors")
    return tmp_path


def run_of(name: str, material: Material, out: Path, weights_dir: Path) -> Run:
    torch.manual_seed(SMALL[name].seed)
    return Run(SMALL[name], CleanSource(SMALL[name], material, "cpu"), out, 1.0, "cpu", weights_dir)


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_run_takes_the_step_that_the_unbroken_one_takes(name, material, weights_dir):
    torch.set_num_threads(1)  # several would sum in an order of their own
    out = weights_dir / f"{name}.new.safetensors"
    unbroken = run_of(name, material, out, weights_dir)
    unbroken._one_step()
    unbroken._one_step()
    unbroken._save_checkpoint()
    third_loss = unbroken._one_step()

    resumed = run_of(name, material, out, weights_dir)
    resumed.resume()
    assert resumed._one_step() == third_loss
    assert resumed._state().keys() == unbroken._state().keys()
    assert all(torch.equal(value, unbroken._state()[key]) for key, value in resumed._state().items())
    assert all(torch.equal(value, unbroken._average[key]) for key, value in resumed._average.items())


@pytest.mark.parametrize("name", ["dncnn", "fitvnet"])
def test_a_compiled_network_takes_the_same_step(name, material, weights_dir):
    plain, compiled = (run_of(name, material, weights_dir / f"{name}.new.safetensors", weights_dir) for _ in range(2))
    compiled.compile(backend="eager")  # traced as for any backend, and run without a compiler of C++
    assert compiled._one_step() == pytest.approx(plain._one_step(), rel=1e-3)
    assert compiled._state().keys() == plain._state().keys()


def test_a_frozen_part_is_not_touched_and_not_saved(material, weights_dir):
    run = run_of("fitvnet", material, weights_dir / "fitvnet.safetensors", weights_dir)
    before = {key: value.detach().clone() for key, value in run._network.state_dict().items()}
    run._one_step()
    run.finish([weights_dir])
    after = run._network.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"first", "second"}
    assert {key.split(".")[0] for key in load_file(weights_dir / "fitvnet.safetensors")} == {"first", "second"}
    # What training wrote is what the catalogue's denoiser is made of.
    assert load_network(CATALOGUE["fitvnet"], weights_dir)


def test_a_joint_run_starts_from_the_finished_part_moves_all_and_saves_all(material, weights_dir):
    run = run_of("fitvnet-joint", material, weights_dir / "fitvnet.safetensors", weights_dir)
    before = {key: value.detach().clone() for key, value in run._network.state_dict().items()}
    finished = load_file(weights_dir / "fitvnet-spatial.safetensors")
    assert all(torch.equal(before[f"spatial.{key}"], value.float()) for key, value in finished.items())
    run._one_step()
    run.finish([weights_dir])
    after = run._network.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"spatial", "first", "second"}
    # What training wrote is what the catalogue's denoiser is made of.
    assert load_network(CATALOGUE["fitvnet"], weights_dir)


def test_a_joint_loss_weighs_the_spatial_module_less_with_every_epoch():
    torch.manual_seed(1)
    network, clean = FITVNet(), torch.rand(1, 5, 3, 32, 32)
    noisy, sigma = clean + 0.1 * torch.randn(clean.shape), torch.full((1,), 0.1)
    with torch.no_grad():
        losses = [float(joint_error(network, noisy, sigma, clean, progress)) for progress in (0.0, 0.5, 1.0)]
        spatial_only = network.spatial(noisy[0], sigma)
    share = float(l2_norm(spatial_only[None], clean))
    assert losses[0] - losses[1] == pytest.approx(share * (1 - 1 / 21), rel=1e-4)
    assert losses[0] - losses[2] == pytest.approx(share * (1 - 1 / 41), rel=1e-4)


def test_a_run_can_start_from_finished_weights_and_says_so(folders, tmp_path):
    earlier, out = tmp_path / "earlier.safetensors", tmp_path / "fitvnet-spatial.safetensors"
    recipe = SMALL["fitvnet-spatial"]
    train(recipe, folders, earlier, minutes=0.01)
    source = CleanSource(recipe, read_material(folders, with_clips=False), "cpu")
    run = Run(recipe, source, out, 1.0, "cpu", tmp_path)
    run.start_from(earlier)
    weights = {key: value.float() for key, value in load_file(earlier).items()}
    assert all(torch.equal(value, weights[key]) for key, value in run._state().items())
    assert all(torch.equal(value, weights[key]) for key, value in run._average.items())
    train(recipe, folders, out, minutes=0.01, start_from=earlier)
    with safe_open(out, "pt") as file:
        facts = file.metadata()
    with safe_open(earlier, "pt") as file:
        assert json.loads(facts["started_from"]) == {"earlier": file.metadata()}


def test_of_several_clips_one_is_kept_out_and_watched(folders, tmp_path):
    photos, footage = folders
    for name in ("first", "second", "third"):
        (tmp_path / name).symlink_to(footage, target_is_directory=True)
    clips = [tmp_path / name for name in ("first", "second", "third")]
    material = read_material([photos, *clips], with_clips=True)
    assert (len(material.clips), len(material.held_out_clips)) == (2, 1)
    source = CleanSource(SMALL["fitvnet"], material, "cpu")
    assert source.watched == ("15", "25", "50", "footage 25")
    seen = source.watch(lambda noisy, _: noisy[:, 2:-2])
    assert seen.keys() == set(source.watched)
    assert seen["footage 25"] == pytest.approx(20.2, abs=0.2)
    alone = read_material(folders, with_clips=True)
    assert CleanSource(SMALL["fitvnet"], alone, "cpu").watched == ("15", "25", "50")
    assert len(alone.clips) == 1


def test_a_network_of_frames_can_begin_as_that_of_one_and_says_so(folders, tmp_path):
    one, out = tmp_path / "kpn.safetensors", tmp_path / "kpn.burst.safetensors"
    train(SMALL["kpn"], folders, one, minutes=0.01)
    train(SMALL["kpn.burst-grown"], folders, out, minutes=0.01)
    with safe_open(one, "pt") as single, safe_open(out, "pt") as grown:
        assert json.loads(grown.metadata()["started_from"]) == {"kpn": single.metadata()}
    save_file({"features.weight": torch.zeros(3)}, one)
    with pytest.raises(ValueError, match=r"kpn.safetensors does not fit the network: the weights of one frame have no"):
        train(SMALL["kpn.burst-grown"], folders, out, minutes=0.01)


def test_weights_of_another_network_are_refused_as_a_start(folders, tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors does not fit the network: it has no conv.weight"):
        train(
            SMALL["dncnn"], folders, tmp_path / "d.safetensors", minutes=0.01, start_from=tmp_path / "other.safetensors"
        )


def test_a_short_run_writes_weights_a_log_and_a_checkpoint_and_can_be_prolonged(folders, tmp_path):
    out = tmp_path / "fitvnet-spatial.safetensors"
    recipe, reports = SMALL["fitvnet-spatial"], []
    train(recipe, folders, out, minutes=0.01, on_report=reports.append)
    with safe_open(out, "pt") as file:
        facts = file.metadata()
    assert facts["recipe"] == "fitvnet-spatial"
    assert facts["data"] == ", ".join(f"{folder.parent.name}/{folder.name}" for folder in folders)
    assert int(facts["steps"]) == reports[-1].step > 0
    assert load_network(CATALOGUE["fitvnet-spatial"], tmp_path)

    train(recipe, folders, out, minutes=0.02, resume=True, on_report=reports.append)
    assert reports[-1].step > int(facts["steps"])
    assert reports[-1].minutes >= 0.02
    assert list(reports[-1].psnr_db) == ["15", "25", "50"]
    with out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [report.step for report in reports]
    assert float(rows[-1]["psnr_25"]) == pytest.approx(reports[-1].psnr_db["25"], abs=1e-3)
    plot = ElementTree.parse(out.with_suffix(".svg")).getroot()
    words = [element.text for element in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert {"loss", "minutes", "15", "25", "50"} <= set(words)


@pytest.mark.parametrize("name", ["fitvnet-spatial", "dncnn"])
def test_what_is_written_is_what_the_steps_multiplied_by(name, material, weights_dir):
    """In bfloat16. Rounding has a direction that was learnt; weights as they stand make pictures darker."""
    out = weights_dir / f"{name}.new.safetensors"
    run = run_of(name, material, out, weights_dir)
    run._one_step()
    run.finish([])
    network, written = run._network.eval(), load_file(out)
    network.load_state_dict(run._average)
    frame = torch.rand(1, 1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = SMALL[name].restore(network, frame, torch.zeros(1))
        network.load_state_dict(written)
        assert torch.equal(SMALL[name].restore(network, frame, torch.zeros(1)), seen)

    multiplied = {key for key in written if key.endswith((".weight", ".bias")) and written[key].dim() == 4}
    assert multiplied
    assert {written[key].dtype for key in multiplied} == {torch.bfloat16}
    kept = {key for key in written if "running" in key}
    assert all(torch.equal(written[key], run._average[key]) for key in kept)
    assert bool(kept) == (name == "dncnn")


def test_a_run_without_its_checkpoint_pictures_or_first_weights_does_not_start(folders, tmp_path):
    out = tmp_path / "new.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train(SMALL["dncnn"], folders, out, minutes=0.01, resume=True)
    with pytest.raises(FileNotFoundError, match="no pictures"):
        train(SMALL["dncnn"], [tmp_path], out, minutes=0.01)
    with pytest.raises(FileNotFoundError):
        train(SMALL["fitvnet"], folders, out, minutes=0.01)


def test_numbered_frames_of_one_size_are_footage_and_photographs_are_not(material):
    assert [clip.shape for clip in material.clips] == [(8, 170, 170, 3)]
    assert {picture.shape[2] for picture in material.photographs} == {3}


def test_crops_are_squares_in_the_unit_range(material):
    crops = material.crops(np.random.default_rng(1), 5, 48)
    assert crops.shape == (5, 1, 3, 48, 48)
    assert 0 <= crops.min() < crops.max() <= 1


@pytest.mark.parametrize("footage_share", [0.0, 1.0], ids=["made up", "footage"])
def test_clips_move_and_stay_in_the_unit_range(material, footage_share):
    clips = material.clip_crops(np.random.default_rng(2), 8, 5, 64, footage_share)
    assert clips.shape == (8, 5, 3, 64, 64)
    assert clips.dtype == torch.float32
    assert 0 <= clips.min() < clips.max() <= 1
    moved = (clips[:, 1:] - clips[:, :-1]).abs().mean((1, 2, 3, 4))
    assert (moved > 1e-3).sum() >= 6  # now and then a pan stands still
    assert torch.equal(clips, material.clip_crops(np.random.default_rng(2), 8, 5, 64, footage_share))


def test_noise_is_one_level_an_example_drawn_from_the_range():
    clean = torch.full((64, 3, 3, 32, 32), 0.5)
    noisy, sigma = Gaussian((0.0, 55 / 255))(clean, 3)
    noise = noisy - clean
    levels = noise.std((2, 3, 4))  # [64, 3]
    assert torch.allclose(levels[:, 0], levels[:, 2], rtol=0.1)  # 3072 draws: 1.3 % is one sigma
    assert levels.max() <= 55 / 255 * 1.1
    assert levels.min() < 10 / 255
    assert levels.max() > 45 / 255
    torch.testing.assert_close(levels.mean(1), sigma, rtol=0.05, atol=1e-6)
    assert torch.equal(noisy, Gaussian((0.0, 55 / 255))(clean, 3)[0])


def test_recorded_examples_are_what_an_8_bit_file_would_hold():
    clean = torch.full((40, 1, 3, 16, 16), 0.05)
    noisy, _ = Gaussian((0.1, 0.2), recorded_share=0.5)(clean, 3)
    steps = noisy * 255
    recorded = [bool(torch.allclose(one, one.round(), atol=1e-3)) for one in steps]
    assert 10 <= sum(recorded) <= 30
    for one, is_recorded in zip(noisy, recorded, strict=True):
        assert (float(one.min()) >= 0) == is_recorded
    plain, _ = Gaussian((0.1, 0.2))(clean, 3)
    assert torch.equal(noisy[recorded.index(False)], plain[recorded.index(False)])


def test_losses_are_the_papers():
    restored, clean = torch.zeros(2, 1, 3, 8, 8), torch.zeros(2, 1, 3, 8, 8)
    restored[0] += 0.1
    restored[1] += 0.3
    assert l2_norm(restored, clean).item() == pytest.approx((0.1 + 0.3) / 2, abs=1e-4)
    assert half_squared_error(restored, clean).item() == pytest.approx(0.5 * (0.01 + 0.09) / 2, abs=1e-6)


def test_of_batches_a_share_is_grey_with_one_noise_in_all_planes(material):
    recipe = replace(SMALL["dncnn"], grey_share=0.3)
    source, rng, places = CleanSource(recipe, material, "cpu"), np.random.default_rng(1), []
    for _ in range(100):
        noisy, _, clean = source.draw(rng, replace(recipe.phases[0], batch=4))
        grey = [bool((one[:, 0] == one[:, 1]).all() and (one[:, 0] == one[:, 2]).all()) for one in noisy]
        assert all((one[:, 0] == one[:, 1]).all() == flat for one, flat in zip(clean, grey, strict=True))
        places.append(grey)
    assert np.mean(places) == pytest.approx(0.3, abs=0.04)  # though of a batch it is no whole number
    assert np.min(np.mean(places, axis=0)) > 0.15  # of every place: which noise an example has may go by its place
