"""Does the noise of training runs have the statistics that it is said to have?"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from models.training.material import read_material
from models.training.noise import Camera, Compressed, Either, Gaussian, Subsampled, stratified
from models.training.recipes import RECIPES
from models.training.trainer import train

GREY = torch.full((48, 1, 3, 64, 64), 0.4)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one * other).mean() / (one.square().mean() * other.square().mean()).sqrt())


def test_stratified_levels_have_one_in_every_step():
    levels = stratified(8, torch.Generator().manual_seed(1))
    assert sorted((levels * 8).floor().tolist()) == list(range(8))


def test_camera_noise_is_an_8_bit_files_and_the_same_for_the_same_seed():
    noisy, sigma = Camera()(GREY, 7)
    assert torch.equal(noisy, Camera()(GREY, 7)[0])
    assert not torch.equal(noisy, Camera()(GREY, 8)[0])
    torch.testing.assert_close(noisy * 255, (noisy * 255).round(), atol=1e-3, rtol=0)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    torch.testing.assert_close(sigma, (noisy - GREY).square().mean((1, 2, 3, 4)).sqrt())


def test_camera_noise_is_shared_by_neighbours_and_colours():
    noise = Camera(shot=(1e-3, 2e-3), smoothed_share=1.0, jpeg_share=0.0)(GREY, 3)[0] - GREY
    noise = noise - noise.mean((3, 4), keepdim=True)
    assert correlation(noise[..., 1:], noise[..., :-1]) > 0.5
    assert correlation(noise[:, :, 0], noise[:, :, 1]) > 0.4
    white = Gaussian((0.1, 0.1))(GREY, 3)[0] - GREY
    assert abs(correlation(white[..., 1:], white[..., :-1])) < 0.01


def test_in_linear_light_camera_noise_grows_with_brightness():
    camera = Camera(shot=(1e-3, 1e-3), smoothed_share=0.0, jpeg_share=0.0)
    deviations = []
    for level in (0.2, 0.5, 0.8):
        clean = torch.full_like(GREY, level)
        deviations.append(float((camera(clean, 4)[0] ** 2.2 - clean**2.2).std()))
    assert deviations[0] < 0.6 * deviations[1] < deviations[1] < deviations[2]


@pytest.mark.parametrize("jpeg_share", [0.0, 1.0])
def test_in_subsampled_noise_four_pixels_share_a_colour_and_none_its_brightness(jpeg_share):
    noise = Subsampled(Gaussian((0.1, 0.1)), jpeg_share=jpeg_share, jpeg_quality=(98, 99))
    clean = torch.full((16, 2, 3, 32, 32), 0.5)
    noisy, sigma = noise(clean, 3)
    assert torch.equal(noisy, noise(clean, 3)[0])
    assert torch.allclose(noisy * 255, (noisy * 255).round(), atol=1e-3)
    assert torch.equal(sigma, torch.full((16,), 0.1))
    luma = (noisy * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(2)
    red = noisy[:, :, 0] - luma
    assert abs(neighbours_agree(luma)) < 0.1
    assert neighbours_agree(red) > 0.4
    assert not torch.equal(noisy[0], noisy[1])


def test_what_was_grey_stays_nearly_grey_when_its_colours_are_subsampled():
    clean = torch.rand(4, 1, 1, 16, 16, generator=torch.Generator().manual_seed(1)).expand(-1, -1, 3, -1, -1)
    noisy, _ = Subsampled(Gaussian((0.0, 0.0)), jpeg_share=0.0)(clean, 2)
    assert (noisy - clean).abs().max() < 1.5 / 255


def neighbours_agree(planes):
    """Correlation of pixels side by side."""
    centred = planes - planes.mean()
    return float((centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean())


@pytest.mark.parametrize("frames", [1, 5])
def test_a_codec_takes_noise_away_and_smooths_the_rest_the_more_the_less_it_may_keep(frames):
    waves = torch.sin(torch.arange(64) / 7)
    clean = (0.5 + 0.2 * waves[:, None] * waves).expand(4, frames, 3, -1, -1).contiguous()
    within = Gaussian((0.08, 0.08), recorded_share=1.0)
    left, agree = [], []
    for crf in (10.0, 36.0):
        noise = Compressed(within, crf=(crf, crf), still_share=0.5)
        noisy, sigma = noise(clean, 5)
        assert noisy.shape == clean.shape
        assert torch.equal(noisy, noise(clean, 5)[0])
        assert not torch.equal(noisy, noise(clean, 6)[0])
        assert torch.equal(sigma, torch.full((4,), 0.08))
        left.append(float((noisy - clean).square().mean().sqrt()))
        agree.append(neighbours_agree(noisy - clean))
    assert left[1] < 0.7 * left[0]
    assert left[0] < 0.085
    assert agree[1] > agree[0] + 0.2


def test_a_single_frame_comes_back_from_the_codec_where_it_was():
    ramp = torch.linspace(0.2, 0.8, 64)
    clean = (ramp[:, None] * ramp).expand(8, 1, 3, -1, -1).contiguous()
    noisy, _ = Compressed(Gaussian((0.0, 0.0)), crf=(4.0, 6.0), still_share=0.0)(clean, 3)
    assert (noisy - clean).abs().mean() < 1.5 / 255


def test_either_gives_each_kind_its_share_of_a_batch():
    weak, strong = Gaussian((0.01, 0.01)), Gaussian((0.3, 0.3))
    noisy, sigma = Either(((weak, 0.75), (strong, 0.25)))(GREY, 5)
    assert noisy.shape == GREY.shape
    torch.testing.assert_close(sigma, torch.tensor([0.01] * 36 + [0.3] * 12))
    torch.testing.assert_close((noisy - GREY).std((1, 2, 3, 4)), sigma, rtol=0.05, atol=0)


def test_camera_noise_is_coarser_in_colour_than_in_brightness():
    """As in real pairs, where over two pixels that of colours is correlated by 0.68, that of brightness by 0.14."""

    def over_four_pixels(noise):
        return float((noise[..., 4:] * noise[..., :-4]).mean() / noise.square().mean())

    for coarse_share, is_coarse in ((1.0, True), (0.0, False)):
        camera = Camera(shot=(1e-3, 2e-3), smoothed_share=1.0, jpeg_share=0.0, coarse_share=coarse_share)
        noise = camera(GREY, 3)[0] - GREY
        brightness = noise.mean(2, keepdim=True)
        assert over_four_pixels(brightness) < 0.2
        assert (over_four_pixels(noise - brightness) > 0.4) == is_coarse


@pytest.mark.parametrize("hd_share", [0.0, 1.0])
def test_a_film_is_as_bright_as_what_it_is_of(hd_share):
    """It was darker by 1 of 255, for the conversions to its colours and back rounded down."""
    colours = torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(4)) * 0.8 + 0.1
    clean = F.interpolate(colours, size=64, mode="bilinear", align_corners=True)[:, None]
    film = Compressed(Gaussian((0.0, 0.0)), crf=(5.0, 5.0), still_share=1.0, hd_share=hd_share)(clean, 2)[0]
    assert abs(float((film - clean).mean())) < 0.25 / 255
    assert (film - clean).square().mean().sqrt() < 3 / 255


@pytest.mark.parametrize("kept", [partial(Subsampled, jpeg_share=0.0), partial(Compressed, crf=(4.0, 4.0))])
def test_in_the_colours_of_hd_more_noise_is_in_luma(kept):
    """Whose shares of red, green and blue are less alike: 0.75 of white noise is in it, and not 0.67."""
    noise = Gaussian((20 / 255, 20 / 255))
    left = []
    for hd_share, shares in ((0.0, (0.299, 0.587, 0.114)), (1.0, (0.2126, 0.7152, 0.0722))):
        noisy = kept(noise, hd_share=hd_share)(GREY, 4)[0]
        left.append(float((noisy * torch.tensor(shares)[:, None, None]).sum(2).std()))
    assert left[1] / left[0] == pytest.approx(0.75 / 0.67, rel=0.03)


def test_films_are_made_by_either_preset():
    clean = torch.rand(1, 1, 3, 32, 32).expand(8, -1, -1, -1, -1)
    noise = Gaussian((20 / 255, 20 / 255), recorded_share=1.0)
    both, fast, medium = (
        Compressed(noise, **presets)(clean, 5)[0]
        for presets in ({}, {"presets": ("veryfast",)}, {"presets": ("medium",)})
    )
    made_by = [(torch.equal(one, a), torch.equal(one, b)) for one, a, b in zip(both, fast, medium, strict=True)]
    assert all(sum(which) == 1 for which in made_by)
    assert {(True, False), (False, True)} == set(made_by)


def test_camera_noise_makes_no_picture_brighter_or_darker():
    """The curve did, and clipping, which in deep shadow still does in part."""
    for shade in (0.15, 0.3, 0.6, 0.9):
        clean = torch.full((8, 1, 3, 96, 96), shade)
        noisy, _ = Camera(shot=(1e-2, 2e-2), jpeg_share=0.0)(clean, 4)
        assert abs(float((noisy - clean).mean())) < 0.003, shade


@pytest.fixture
def photographed_twice(tmp_path):
    """Thirteen scenes, taken noisy, which is striped, in more light, and clean; and a photograph taken once."""
    rng = np.random.default_rng(6)
    for scene in range(13):
        clean = rng.integers(40, 200, (170, 180, 3), np.uint8)
        Image.fromarray(clean).save(tmp_path / f"scene-{scene:02d}_mean.png")
        stripes = clean.astype(int) + scene * (-1) ** np.arange(180)[:, None]
        Image.fromarray((stripes + 3 * scene).astype(np.uint8)).save(tmp_path / f"scene-{scene:02d}_real.png")
    Image.fromarray(rng.integers(0, 255, (170, 180, 3), np.uint8)).save(tmp_path / "alone.png")
    return tmp_path


def test_pairs_are_cut_and_turned_alike_and_are_not_among_the_photographs(photographed_twice):
    material = read_material([photographed_twice], with_clips=False)
    assert (len(material.pairs), len(material.held_out_pairs)) == (12, 1)
    assert len(material.photographs) == 1
    noisy, clean = material.pair_crops(np.random.default_rng(7), 20, 64)
    assert noisy.shape == clean.shape == (20, 1, 3, 64, 64)
    # What is left is the stripes: the light is taken away, to the rounding where blocks cut a stripe off.
    offsets = (noisy - clean).flatten(1).abs() * 255
    torch.testing.assert_close(offsets, offsets[:, :1].expand_as(offsets), atol=1.5, rtol=0)
    assert len(offsets[:, 0].round().unique()) > 5  # of several scenes


def test_a_pair_is_shown_with_more_and_less_noise_and_colours_exchanged(photographed_twice):
    material = read_material([photographed_twice], with_clips=False)
    one = replace(material, pairs=material.pairs[-1:])
    as_taken, clean = one.pair_crops(np.random.default_rng(3), 1, 160)
    strength = float((as_taken - clean).abs().mean())
    shown, colours = one.varied_pair_crops(np.random.default_rng(7), 40, 160)
    shares = (shown - colours).abs().mean((1, 2, 3, 4)) / strength
    assert 0.55 < float(shares.min()) < 0.75
    assert 1.4 < float(shares.max()) < 1.7
    order = {tuple(np.argsort(one_.mean((0, 2, 3)).numpy()).tolist()) for one_ in colours}
    assert len(order) == 6  # each way to exchange three colours


def test_a_recipe_that_wants_pairs_says_so_when_there_are_none(photographed_twice, tmp_path):
    for path in photographed_twice.glob("*_real.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="recipe pridnet wants photographs taken noisy and clean"):
        train(RECIPES["pridnet"], [photographed_twice], tmp_path / "out.safetensors", minutes=0.01)
