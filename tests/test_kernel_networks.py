"""Do the networks that average pixels choose, read and weigh them as the papers' equations say?"""

import math
from dataclasses import replace

import pytest
import torch
from seeded_networks import NO_SIGMA, network_of
from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import DESCRIBED
from models.networks.deform import DeformableKernels
from models.networks.kpn import KPN
from models.networks.light import from_opponent, linear_slope, to_linear, to_opponent, to_srgb
from models.networks.sampling import sample_clip, sample_picture
from models.training.noise import HIGH, LOW, SignalDependent
from models.training.recipe import l1_norm
from models.training.recipes import RECIPES
from models.training.recipes.deform import ToldPerPixel, annealed
from models.training.recipes.kpn import values_and_gradients
from models.weights import build_network

# Deformable kernels, Table 1: maps, and how much smaller than the input, of C1-3 ... C25-26; C27 and the three of the
# "conv layers" by the number of samples.
TABLE_1 = [
    *[(64, 1)] * 3,
    *[(128, 2)] * 3,
    *[(256, 4)] * 3,
    *[(512, 8)] * 3,
    *[(512, 16)] * 3,
    *[(512, 8)] * 3,
    *[(256, 4)] * 3,
    *[(128, 2)] * 3,
    *[(128, 1)] * 2,
]
FRAMES, HEIGHT, WIDTH = 3, 4, 5


def convolutions_met(network: nn.Module, noisy: Tensor) -> list[tuple[int, int]]:
    """Maps of each convolution in the order it ran, and how much smaller than the input they are."""
    met: list[tuple[int, int]] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _layer, _given, maps: met.append((maps.shape[1], noisy.shape[2] // maps.shape[2]))
            )
    with torch.no_grad():
        network(noisy, torch.full((len(noisy),), 0.1))
    return met


@pytest.mark.parametrize(("name", "samples", "axes"), [("deform3d.paper", 27, 3), ("deform2d.paper", 25, 2)])
def test_every_layer_of_table_1_yields_the_printed_maps_for_each_colour(name, samples, axes):
    spec = DESCRIBED[name]
    met = convolutions_met(build_network(spec), torch.rand(1, 3 * spec.frames, 16, 32))
    assert met == [*TABLE_1, (samples * axes, 1), (64, 1), (64, 1), (samples, 1)] * 3


def test_kpn_ends_in_a_weight_for_every_pixel_around_in_every_frame():
    for name, weights in (("kpn", 25 * 3), ("kpn.7x7", 49 * 3), ("kpn.burst", 25 * 3 * 5)):
        spec = DESCRIBED[name]
        assert convolutions_met(build_network(spec), torch.rand(1, 3 * spec.frames, 16, 32))[-1] == (weights, 1)
    down = [(64, 1), (128, 2), (256, 4), (512, 8), (512, 16)]
    up = [(512, 8), (256, 4), (25, 2)]
    met = convolutions_met(build_network(DESCRIBED["kpn.paper"]), torch.rand(1, 3, 16, 32))
    assert met == [*[run for run in [*down, *up] for _ in range(3)], (25, 1)] * 3


def hat(coordinate: Tensor, length: int) -> Tensor:
    """max(0, 1 - |coordinate - i|) for every i: [..., length]."""
    return (1 - (coordinate[..., None] - torch.arange(length)).abs()).clamp(min=0)


def slope(coordinate: Tensor, length: int) -> Tensor:
    """The case distinction of equations (13) to (15) for every i: [..., length]."""
    apart = coordinate[..., None] - torch.arange(length)
    return torch.where(apart.abs() >= 1, 0.0, torch.where((apart > -1) & (apart < 0), 1.0, -1.0))


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(1, FRAMES, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def places() -> tuple[Tensor, Tensor, Tensor]:
    """Times, rows and columns of 40 samples for each of 2x3 places, some of them outside of the clip."""
    draw = torch.Generator().manual_seed(2)
    return tuple(
        (torch.rand(1, 40, 2, 3, generator=draw) * (length + 3) - 2).requires_grad_()
        for length in (FRAMES, HEIGHT, WIDTH)
    )


def test_a_trilinear_sample_is_the_sum_of_equation_7(clip, places):
    times, rows, columns = places
    sampled = sample_clip(clip, times, rows, columns)
    expected = torch.zeros_like(sampled)
    for t in range(FRAMES):
        for i in range(HEIGHT):
            for j in range(WIDTH):
                share = (1 - (rows - i).abs()).clamp(min=0) * (1 - (columns - j).abs()).clamp(min=0)
                share = share * (1 - (times - t).abs()).clamp(min=0)
                expected = expected + clip[:, t, :, i, j][:, :, None, None, None] * share[:, None]
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)


def test_a_bilinear_sample_is_a_trilinear_one_of_a_clip_of_one_frame(clip, places):
    _times, rows, columns = places
    sampled = sample_picture(clip[:, 0], rows, columns)
    torch.testing.assert_close(sampled, sample_clip(clip[:, :1], torch.zeros_like(rows), rows, columns))
    expected = torch.einsum("ncij,nkhwi,nkhwj->nckhw", clip[:, 0], hat(rows, HEIGHT), hat(columns, WIDTH))
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)


def test_the_derivatives_of_a_kernel_are_equations_12_to_15(clip, places):
    times, rows, columns = places
    kernel = torch.rand(1, 40, 2, 3, generator=torch.Generator().manual_seed(3), requires_grad=True)
    sampled = sample_clip(clip, times, rows, columns)[:, 0]
    (sampled * kernel).sum().backward()
    picture = clip[0, :, 0]
    with torch.no_grad():
        at = {"t": hat(times, FRAMES), "i": hat(rows, HEIGHT), "j": hat(columns, WIDTH)}
        to = {"t": slope(times, FRAMES), "i": slope(rows, HEIGHT), "j": slope(columns, WIDTH)}
        total = "tij,nkhwt,nkhwi,nkhwj->nkhw"
        torch.testing.assert_close(kernel.grad, torch.einsum(total, picture, *at.values()), atol=1e-5, rtol=0)
        for axis, coordinate in zip("tij", places, strict=True):
            factors = [to[other] if other == axis else at[other] for other in "tij"]
            expected = kernel * torch.einsum(total, picture, *factors)
            torch.testing.assert_close(coordinate.grad, expected, atol=1e-5, rtol=0)


def test_coordinates_are_as_fine_in_bfloat16_as_in_float32():
    """bfloat16 cannot tell 300 from 301; a ramp read by it would be a staircase."""
    ramp = torch.arange(640.0).expand(1, 1, 4, 640)
    columns = torch.arange(0.25, 639)[None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        sampled = sample_picture(ramp, torch.ones_like(columns), columns)
    assert sampled.dtype == torch.float32
    torch.testing.assert_close(sampled.flatten(), columns.flatten(), atol=1e-3, rtol=0)  # 640 * 2^-23, some of it twice


def test_before_training_a_kernel_is_the_mean_of_the_regular_grid():
    torch.manual_seed(4)
    noisy = torch.rand(1, 15, 32, 48)
    clip = noisy.unflatten(1, (5, 3))
    picture = noisy[:, 6:9]

    def restored(name: str, frames: Tensor) -> Tensor:
        with torch.no_grad():
            return build_network(DESCRIBED[name])(frames, NO_SIGMA)

    close = {"atol": 1e-4, "rtol": 0}
    mean = F.avg_pool3d(clip.transpose(1, 2), 3, 1, padding=1)[:, :, 2]
    torch.testing.assert_close(restored("deform3d", noisy), mean, **close)
    for name in ("deform2d", "kpn"):
        torch.testing.assert_close(restored(name, picture), F.avg_pool2d(picture, 5, 1, padding=2), **close)
    mean = F.avg_pool2d(clip.mean(1), 5, 1, padding=2)
    torch.testing.assert_close(restored("kpn.burst", noisy), mean, **close)
    in_linear_light = to_srgb(F.avg_pool2d(to_linear(picture), 5, 1, padding=2))
    torch.testing.assert_close(restored("deform2d.paper", picture), in_linear_light, **close)


def test_the_whole_kernel_is_equation_6_and_each_group_equation_10():
    """Of a grey clip in linear light, by the network's own samples and weights."""
    torch.manual_seed(5)
    network = DeformableKernels(grid=(3, 3, 3), frames=5, linear=True, plane_by_plane=True)
    nn.init.normal_(network.offsets.weight, std=0.5)
    last = network.weights[-1]
    nn.init.normal_(last.weight, std=0.02)
    met: dict[str, Tensor] = {}
    network.offsets.register_forward_hook(lambda _layer, _given, maps: met.update(offsets=maps))
    last.register_forward_hook(lambda _layer, _given, maps: met.update(weights=maps))
    clip = torch.rand(1, 5, 1, 16, 16)
    noisy = clip.expand(-1, -1, 3, -1, -1).flatten(1, 2)
    with torch.no_grad():
        restored, groups = network.by_group(noisy, NO_SIGMA)
        along, down, later = met["offsets"].unflatten(1, (3, 27)).unbind(1)
        grid = [(t, y, x) for t in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        light = to_linear(clip)
        samples = []
        for n, (t, y, x) in enumerate(grid):
            times = 2 + t + 2 * (later[:, n] / 2).tanh()
            rows = torch.arange(16.0)[:, None] + y + 15 * (down[:, n] / 15).tanh()
            columns = torch.arange(16.0) + x + 15 * (along[:, n] / 15).tanh()
            hats = hat(times, 5), hat(rows, 16), hat(columns, 16)
            samples.append(torch.einsum("ntij,nhwt,nhwi,nhwj->nhw", light[:, :, 0], *hats))
        assert down.abs().max() > 1  # they do leave the grid
        weighted = torch.stack(samples, 1) * (1 / 27 + met["weights"] / 27**0.5)
    torch.testing.assert_close(restored[:, 0], to_srgb(weighted.sum(1)), atol=1e-4, rtol=0)
    for group, first in enumerate((0, 9, 18)):
        expected = to_srgb(3 * weighted[:, first : first + 9].sum(1))
        torch.testing.assert_close(groups[:, group, 0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [3, 5])
def test_kpn_sums_what_is_around_a_pixel_by_its_weights(side):
    torch.manual_seed(6)
    network = KPN(side=side, frames=2, linear=True, plane_by_plane=True)
    nn.init.normal_(network.weights.weight, std=0.02)
    met: dict[str, Tensor] = {}
    network.weights.register_forward_hook(lambda _layer, _given, maps: met.update(weights=maps))
    clip = torch.rand(1, 2, 1, 16, 32)
    with torch.no_grad():
        restored, frames = network.by_group(clip.expand(-1, -1, 3, -1, -1).flatten(1, 2), NO_SIGMA)
        around = F.unfold(to_linear(clip)[:, :, 0], side, padding=side // 2).view(2, side**2, 16, 32)
        weights = met["weights"].view(side**2, 2, 16, 32).transpose(0, 1)
        sums = (around * (1 / (2 * side**2) + weights / (2 * side**2) ** 0.5)).sum(1)
    torch.testing.assert_close(restored[0, 0], to_srgb(sums.sum(0)), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames[0, :, 0], to_srgb(2 * sums), atol=1e-4, rtol=0)


def test_a_fixed_grid_is_not_taught_and_stays_regular():
    network = build_network(DESCRIBED["deform2d"])
    clean = torch.rand(1, 1, 3, 16, 16)
    RECIPES["deform2d-fixed"].objective(network, clean, NO_SIGMA, clean.flip(3), 0.0).backward()
    assert network.offsets.weight.grad is None
    assert network.weights[-1].weight.grad.any()
    RECIPES["deform2d"].objective(network, clean, NO_SIGMA, clean.flip(3), 0.0).backward()
    assert network.offsets.weight.grad.any()


@pytest.mark.parametrize(("side", "frames"), [(5, 5), (7, 1), (9, 3)])
def test_kpn_of_frames_and_of_larger_kernels_begins_as_that_of_one(side, frames):
    torch.manual_seed(5)
    one, many = KPN(), KPN(side=side, frames=frames)
    for parameter in one.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    many.begin_as(one.state_dict())
    noisy, sigma, middle = torch.rand(2, 3 * frames, 32, 48), torch.zeros(2), 3 * (frames // 2)
    with torch.no_grad():
        torch.testing.assert_close(many(noisy, sigma), one(noisy[:, middle : middle + 3], sigma), atol=3e-6, rtol=0)
    with pytest.raises(ValueError, match=r"weights.weight is \(363, 48, 3, 3\) of one frame; .* was wanted"):
        many.begin_as(KPN(side=11).state_dict())


@pytest.mark.parametrize("name", ["deform2d", "deform3d"])
def test_a_network_that_is_told_the_level_begins_as_the_blind_one_and_can_learn_to_listen(name):
    blind, told = network_of(name), build_network(DESCRIBED[f"{name}.known"])
    told.begin_as(blind.state_dict())
    noisy, sigma = torch.rand(1, 3 * DESCRIBED[name].frames, 32, 48), torch.full((1,), 0.2)
    with torch.no_grad():
        torch.testing.assert_close(told(noisy, sigma), blind(noisy, sigma), atol=3e-6, rtol=0)
        assert torch.equal(told(noisy, sigma), told(noisy, 2 * sigma))
    told(noisy, sigma).square().mean().backward()
    assert told.weights[0].weight.grad[:, :-32][:, -3:].any()  # what is told comes before the 32 maps of the U-Net
    with pytest.raises(ValueError, match=r"the weights of the blind network have no features"):
        told.begin_as({})
    with pytest.raises(
        ValueError, match=r"features.down.0.0.0.weight is \(16, \d+, 3, 3\) with what is told; .* was wanted"
    ):
        told.begin_as(network_of({"deform2d": "deform3d", "deform3d": "deform2d"}[name]).state_dict())


@pytest.mark.parametrize("name", ["deform2d", "deform3d", "kpn"])
def test_a_kernel_learns_one_patch_by_heart(name):
    torch.manual_seed(7)
    spec = DESCRIBED[name]
    network, objective = build_network(spec), RECIPES[name].objective
    patch = torch.rand(1, 1, 3, 4, 4).repeat_interleave(8, 3).repeat_interleave(8, 4)
    clean = patch.expand(-1, spec.frames, -1, -1, -1)
    noisy = clean + 0.2 * torch.randn(clean.shape)
    optimizer = torch.optim.Adam(network.parameters(), 4e-4)
    losses = []
    for _ in range(40):
        loss = objective(network, noisy, NO_SIGMA, clean, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]  # averages keep their noise longer than corrections would


def test_in_linear_light_the_told_level_is_what_the_paper_feeds():
    torch.manual_seed(11)
    network = DeformableKernels(grid=(1, 3, 3), told=True, linear=True)
    given: list[Tensor] = []
    network.features.register_forward_pre_hook(lambda _network, planes: given.append(planes[0]))
    noise = SignalDependent((6.4e-3, 6.4e-3), (2e-2, 2e-2), per_pixel=True)
    noisy, told = noise(torch.rand(2, 1, 3, 16, 16), 2)
    with torch.no_grad():
        network(noisy[:, 0], told)
    expected = (2e-2**2 + 6.4e-3 * to_linear(noisy[:, 0]).clamp(min=0)).sqrt()
    torch.testing.assert_close(given[0][:, 3:], expected)


@pytest.mark.parametrize("name", ["deform2d.known", "deform3d.known"])
def test_a_network_that_is_told_the_level_heeds_it_for_every_pixel(name):
    network = network_of(name)
    torch.manual_seed(8)
    noisy = torch.rand(1, 3 * DESCRIBED[name].frames, 16, 32)
    with torch.no_grad():
        weak, strong = network(noisy, torch.tensor([0.02])), network(noisy, torch.tensor([0.2]))
        assert (weak - strong).abs().mean() > 1e-3
        everywhere = network(noisy, torch.full((1, 3, 16, 32), 0.2))
    torch.testing.assert_close(everywhere, strong, atol=1e-5, rtol=0)


class _Given(nn.Module):
    """Restores everything to one value, with groups that have theirs."""

    def by_group(self, noisy: Tensor, sigma: Tensor, *, fixed: bool = False) -> tuple[Tensor, Tensor]:
        groups = torch.tensor([0.6, 0.7, 0.8]).view(1, 3, 1, 1, 1)
        return torch.full((1, 3, 2, 2), 0.55), groups.expand(1, 3, 3, 2, 2)


def test_the_annealed_loss_is_equation_11_over_the_sum_of_its_shares():
    clean = torch.full((1, 5, 3, 2, 2), 0.5)
    objective = annealed(l1_norm)
    # 0.05 of the whole kernel; 0.1, 0.2 and 0.3 of the groups, which count a hundredfold at first.
    at_first = objective(_Given(), clean, NO_SIGMA, clean, 0.0)
    assert at_first.item() == pytest.approx((0.05 + 100 * (0.1 + 0.2 + 0.3)) / 101)
    share = 100 * 0.9998**20_000
    at_a_tenth = objective(_Given(), clean, NO_SIGMA, clean, 0.1)
    assert at_a_tenth.item() == pytest.approx((0.05 + share * 0.6) / (1 + share))
    assert objective(_Given(), clean, NO_SIGMA, clean, 1.0).item() == pytest.approx(0.05)
    assert annealed(l1_norm, eta=0.0)(_Given(), clean, NO_SIGMA, clean, 0.0).item() == pytest.approx(0.05)


def test_kpns_loss_is_the_squared_error_and_half_the_error_of_differences():
    clean = torch.zeros(1, 1, 1, 2, 2)
    restored = torch.tensor([[0.1, 0.3], [0.1, 0.7]]).view(1, 1, 1, 2, 2)
    squares = (0.01 + 0.09 + 0.01 + 0.49) / 4
    down, across = (0.0 + 0.4) / 2, (0.2 + 0.6) / 2
    assert values_and_gradients(restored, clean).item() == pytest.approx(squares + 0.5 * (down + across) / 2)


def test_the_curve_is_equation_8_and_its_inverse_and_slope():
    assert to_srgb(torch.tensor([-0.01, 0.001, 0.5])).tolist() == pytest.approx(
        [-0.1292, 0.01292, 1.055 * 0.5 ** (1 / 2.4) - 0.055]
    )
    encoded = torch.linspace(-0.2, 1.2, 57, requires_grad=True)
    torch.testing.assert_close(to_srgb(to_linear(encoded)), encoded, atol=1e-5, rtol=0)
    to_linear(encoded).sum().backward()
    torch.testing.assert_close(linear_slope(encoded).detach(), encoded.grad, atol=1e-5, rtol=0)
    black = torch.full((3,), -0.1, requires_grad=True)
    to_srgb(black).sum().backward()
    assert torch.isfinite(black.grad).all()


def test_planes_of_brightness_and_colour_are_rgb_turned():
    torch.manual_seed(9)
    rgb = torch.randn(2, 5, 3, 8, 8)
    torch.testing.assert_close(from_opponent(to_opponent(rgb)), rgb, atol=1e-5, rtol=0)
    torch.testing.assert_close(to_opponent(rgb).square().sum(2), rgb.square().sum(2), atol=1e-4, rtol=0)
    grey = to_opponent(torch.ones(1, 3, 1, 1))
    assert grey.flatten().tolist() == pytest.approx([math.sqrt(3), 0, 0], abs=1e-6)


@pytest.mark.parametrize("noise", [LOW, HIGH], ids=["low", "high"])
def test_in_linear_light_the_variance_of_noise_grows_with_the_pixel(noise):
    shot, read = noise.shot[0], noise.read[0]
    for linear in (0.05, 0.5):
        clean = to_srgb(torch.full((1, 1, 3, 128, 128), linear))
        noisy, sigma = noise(clean, 1)
        variance = (to_linear(noisy) - linear).square().mean()
        assert variance.item() == pytest.approx(shot * linear + read**2, rel=0.03)  # of 49 152 draws: 0.6 %
        assert sigma.item() == pytest.approx((noisy - clean).square().mean().sqrt().item(), rel=1e-3)


def test_noise_tells_the_deviation_of_every_pixel_of_the_middle_frame():
    torch.manual_seed(10)
    clean = torch.rand(3, 5, 3, 16, 16)
    noise = SignalDependent((6.4e-3, 6.4e-3), (2e-2, 2e-2), per_pixel=True)
    noisy, told = noise(clean, 2)
    reference = noisy[:, 2]
    assert told.shape == reference.shape
    expected = (2e-2**2 + 6.4e-3 * to_linear(reference).clamp(min=0)).sqrt()
    torch.testing.assert_close(told * linear_slope(reference.clamp(0, 1)), expected)
    assert torch.equal(noisy, replace(noise, per_pixel=False)(clean, 2)[0])


def test_those_who_are_told_see_both_kinds_of_noise_with_the_level_of_every_pixel():
    clean = torch.full((8, 1, 3, 32, 32), 0.4)
    noisy, told = ToldPerPixel()(clean, 3)
    assert told.shape == (8, 3, 32, 32)
    measured = (noisy - clean).square().mean((1, 2, 3, 4)).sqrt()
    torch.testing.assert_close(told.square().mean((1, 2, 3)).sqrt(), measured, rtol=0.25, atol=0.01)
    assert all(float(told[index].std()) < 1e-6 for index in range(4, 8))  # white noise
