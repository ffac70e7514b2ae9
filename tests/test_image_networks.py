"""Are MWCNN, RED-Net, the gated network (DSC) and the DnCNN that is told the level what their papers describe?"""

import pytest
import torch
from seeded_networks import NO_SIGMA, network_of
from torch import nn
from torch.nn import functional as F

from models.catalogue import DESCRIBED
from models.networks.dncnn import DnCNN
from models.networks.dsc import DSC
from models.networks.mwcnn import MWCNN, Haar, InverseHaar
from models.networks.rednet import REDNet
from models.networks.unet import SmallUNet, SmallVideoUNet
from models.training.noise import Gaussian, Mixed, PartialPatch
from models.training.recipes.dsc import PIXEL_WEIGHT, early_maps, perceptual_error, squared_error
from models.weights import build_network, cut_into_stages

# Zhao 2016, Table 1, for a picture of 64x64: maps and side of what each layer yields.
TABLE_1 = [(64, 64), (64, 32), (128, 16), (256, 8), (518, 4), (256, 8), (128, 16), (64, 32), (64, 64), (3, 64)]


def layers_met(network: nn.Module, noisy: torch.Tensor) -> list[torch.Tensor]:
    """What came of each convolution, of either kind, in the order they ran."""
    met: list[torch.Tensor] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _layer, _given, maps: met.append(maps))
    with torch.no_grad():
        network(noisy, NO_SIGMA)
    return met


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_what_the_wavelets_take_apart_they_join_again():
    torch.manual_seed(1)
    picture = torch.randn(2, 5, 12, 20)
    torch.testing.assert_close(InverseHaar(5)(Haar(5)(picture)), picture, atol=1e-6, rtol=0)
    bands = torch.randn(2, 20, 6, 10)
    torch.testing.assert_close(Haar(5)(InverseHaar(5)(bands)), bands, atol=1e-6, rtol=0)


def test_the_wavelets_keep_the_energy():
    torch.manual_seed(2)
    picture = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(Haar(3)(picture).square().sum(), picture.square().sum())


def test_the_four_bands_are_average_and_change_across_down_and_along_the_diagonal():
    square = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    assert Haar(1)(square).flatten().tolist() == [15 / 2, (5 - 10) / 2, (3 - 12) / 2, (9 - 6) / 2]
    assert Haar(3)(torch.full((1, 3, 2, 2), 0.5)).flatten().tolist() == [1, 0, 0, 0] * 3


def test_the_published_mwcnn_of_three_levels_has_24_layers_and_its_published_parameters():
    widths = (160, 256, 256)
    assert parameters_of(MWCNN(widths, channels=1)) == pytest.approx(16.15e6, abs=0.005e6)
    colour = MWCNN(widths)
    assert parameters_of(colour) == pytest.approx(16.18e6, abs=0.005e6)
    met = [(maps.shape[1], 64 // maps.shape[2]) for maps in layers_met(colour, torch.rand(1, 3, 64, 64))]
    down = [(160, 2)] * 4 + [(256, 4)] * 4 + [(256, 8)] * 4
    up = [(256, 8)] * 3 + [(1024, 8)] + [(256, 4)] * 3 + [(640, 4)] + [(160, 2)] * 3 + [(12, 2)]
    assert met == down + up


def test_with_its_fourth_level_mwcnn_is_32_layers_deep():
    for name in ("mwcnn", "mwcnn.paper"):
        network = build_network(DESCRIBED[name])
        assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 32
        assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) == 31


def test_ten_layers_of_red_net_have_the_published_parameters_and_keep_the_size():
    assert parameters_of(REDNet(channels=1)) == pytest.approx(0.297e6, abs=0.0005e6)
    met = layers_met(REDNet(), torch.rand(1, 3, 17, 23))
    assert [maps.shape for maps in met] == [(1, 64, 17, 23)] * 9 + [(1, 3, 17, 23)]


def test_red_net_is_five_convolutions_and_five_transposed_ones_with_every_second_pair_joined():
    network = network_of("rednet")
    noisy = torch.rand(1, 3, 12, 15)
    with torch.no_grad():
        c, maps = [], noisy
        for layer in network.convolutions:
            maps = F.conv2d(maps, layer.weight, layer.bias, padding=1).relu()
            c.append(maps)

        def deconvolution(index: int, maps: torch.Tensor) -> torch.Tensor:
            layer = network.deconvolutions[index - 1]
            turned = layer.weight.flip(2, 3).transpose(0, 1)  # [inputs, outputs, 3, 3]
            return F.conv_transpose2d(maps, turned, layer.bias, padding=1)

        d = (deconvolution(1, c[5 - 1]).relu() + c[4 - 1]).relu()
        d = deconvolution(2, d).relu()
        d = (deconvolution(3, d).relu() + c[2 - 1]).relu()
        expected = deconvolution(5, deconvolution(4, d).relu())
        torch.testing.assert_close(network(noisy, NO_SIGMA), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("network", "planes", "widest"),
    [(SmallUNet(), 3, 32), (SmallVideoUNet().over, 18, 48)],
    ids=["one", "three frames"],
)
def test_the_fast_networks_never_work_at_full_size(network, planes, widest):
    met = layers_met(network, torch.rand(1, planes, 64, 96))
    half, quarter, eighth = (32, 48), (16, 24), (8, 12)
    assert [(maps.shape[1], tuple(maps.shape[2:])) for maps in met] == [
        *[(widest, half)] * 3,
        *[(64, quarter)] * 3,
        *[(128, eighth)] * 5,
        (256, eighth),
        *[(64, quarter)] * 2,
        (4 * widest, quarter),
        *[(widest, half)] * 2,
        (12, half),
    ]


def test_over_three_frames_the_middle_one_is_corrected_and_all_are_seen_as_they_were_too():
    network = network_of("unet.video")
    single, over = cut_into_stages(DESCRIBED["unet.video"], network).values()
    frames = torch.rand(1, 9, 32, 48)
    with torch.no_grad():
        each = [single(frame, NO_SIGMA) for frame in frames.split(3, 1)]
        for frame, both in zip(frames.split(3, 1), each, strict=True):
            assert torch.equal(both[:, 3:], frame)
            assert torch.equal(both[:, :3], network_of("unet.fast")(frame, NO_SIGMA))
        window = torch.cat(each, 1)
        restored = over(window, NO_SIGMA)
        assert torch.equal(network(frames, NO_SIGMA), restored)
        assert (restored - each[1][:, :3]).square().mean() < (restored - frames[:, 3:6]).square().mean()
        for plane in range(18):
            changed = window.clone()
            changed[:, plane] += 0.1
            assert not torch.equal(over(changed, NO_SIGMA), restored)


def test_the_gated_networks_layers_are_those_of_table_1():
    met = layers_met(build_network(DESCRIBED["dsc.paper"]), torch.rand(1, 3, 64, 64))
    assert [(maps.shape[1], maps.shape[2]) for maps in met] == TABLE_1


def test_a_gate_parts_what_goes_on_from_what_goes_across():
    network = network_of("dsc")
    noisy = torch.rand(1, 3, 32, 48)
    delta = [0.1, 0.2, 0.3, 0.4]
    with torch.no_grad():
        conv, deconv = network.convolutions, network.deconvolutions
        x1 = conv[0](noisy).relu()
        x2 = conv[1](delta[0] * x1).relu()
        x3 = conv[2](delta[1] * x2).relu()
        x4 = conv[3](delta[2] * x3).relu()
        x5 = conv[4](delta[3] * x4).relu()
        up = deconv[0](x5).relu()
        up = deconv[1](up + (1 - delta[3]) * x4).relu()
        up = deconv[2](up + (1 - delta[2]) * x3).relu()
        up = deconv[3](up + (1 - delta[1]) * x2).relu()
        up = deconv[4](up + (1 - delta[0]) * x1).relu()
        torch.testing.assert_close(network(noisy, NO_SIGMA), up, atol=1e-5, rtol=0)


def test_without_connections_all_the_picture_passes_through_the_middle():
    noisy = torch.rand(1, 3, 32, 32)
    gated, plain = network_of("dsc"), network_of("dsc.plain")
    assert {key: value.shape for key, value in gated.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    for network, is_blocked in ((gated, False), (plain, True)):
        deaf = network.convolutions[-1].register_forward_hook(lambda _layer, _given, maps: maps * 0)
        with torch.no_grad():
            one, other = network(noisy, NO_SIGMA), network(1 - noisy, NO_SIGMA)
        deaf.remove()
        assert torch.equal(one, other) == is_blocked


@pytest.mark.parametrize(
    "network",
    [MWCNN((32, 16, 8, 8)), REDNet(16), DSC((16, 16, 16, 16, 16)), SmallUNet()],
    ids=["mwcnn", "rednet", "dsc", "unet.fast"],
)
def test_training_starts_close_to_the_noisy_picture(network):
    noisy = torch.rand(2, 3, 32, 32) * 1.4 - 0.2  # beyond [0, 1], as noise is
    with torch.no_grad():
        restored = network(noisy, NO_SIGMA)
    floor = 0 if isinstance(network, DSC) else -1  # its last ReLU
    assert (restored - noisy.clamp(min=floor)).abs().mean() < 0.05


@pytest.mark.parametrize(
    "build",
    [
        lambda: MWCNN((32, 24, 16, 16)),
        REDNet,
        lambda: DSC((64, 64, 64, 64, 64)),
        lambda: DSC((64, 64, 64, 64, 64), (1.0, 1.0, 1.0, 1.0)),
        lambda: DnCNN(8, told=True),
        SmallUNet,
    ],
    ids=["mwcnn", "rednet", "dsc", "dsc.plain", "dncnn.known", "unet.fast"],
)
def test_a_network_learns_one_patch_by_heart(build):
    torch.manual_seed(3)
    network = build()
    clean = torch.rand(2, 3, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noisy, sigma = clean + 0.2 * torch.randn(clean.shape), torch.full((2,), 0.2)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        loss = (network(noisy, sigma) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_the_told_dncnn_is_the_blind_one_with_a_plane_that_holds_the_level():
    blind, told = DnCNN(), network_of("dncnn.known")
    assert [(key, value.shape) for key, value in told.state_dict().items() if key != "layers.0.weight"] == [
        (key, value.shape) for key, value in blind.state_dict().items() if key != "layers.0.weight"
    ]
    assert told.layers[0].weight.shape == (64, 4, 3, 3)
    noisy = torch.rand(2, 3, 16, 20)
    sigma = torch.tensor([0.05, 0.2])
    level = torch.stack([torch.full((1, 16, 20), 0.05), torch.full((1, 16, 20), 0.2)])
    with torch.no_grad():
        expected = noisy - told.layers(torch.cat([noisy, level], 1))
        torch.testing.assert_close(told(noisy, sigma), expected)
        assert not torch.allclose(told(noisy, sigma.flip(0)), expected)


def test_mixed_noise_strikes_its_share_of_values_half_of_them_black_half_white():
    clean = torch.full((8, 2, 3, 40, 40), 0.5)
    noise = Mixed(Gaussian((0.1, 0.1)), (0.1, 0.1))
    noisy, sigma = noise(clean, seed=4)
    black, white = (noisy == 0).float().mean(), (noisy == 1).float().mean()
    assert black == pytest.approx(0.05, abs=0.005)  # 76800 values: one sigma is 0.0008
    assert white == pytest.approx(0.05, abs=0.005)
    spared = (noisy != 0) & (noisy != 1)
    assert (noisy - clean)[spared].std() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(sigma, torch.full((8,), 0.1))
    assert torch.equal(noise(clean, seed=4)[0], noisy)
    assert not torch.equal(noise(clean, seed=5)[0], noisy)


def test_a_range_of_shares_is_spread_over_the_batch():
    clean = torch.full((20, 1, 3, 40, 40), 0.5)
    noisy, _ = Mixed(Gaussian((0.0, 0.0)), (0.0, 0.2))(clean, seed=6)
    shares = (noisy != clean).float().mean((1, 2, 3, 4)).sort().values
    assert torch.allclose(shares, (torch.arange(20) + 0.5) / 100, atol=0.015)


def test_partial_noise_stays_inside_one_square_patch_of_each_example():
    torch.manual_seed(7)
    clean = torch.rand(6, 2, 3, 40, 48)
    noise = PartialPatch(Gaussian((0.2, 0.2)), (0.5, 0.5))
    noisy, sigma = noise(clean, seed=8)
    assert torch.equal(sigma, torch.full((6,), 0.2))
    changed = (noisy != clean).flatten(1, 2).any(1)  # [N, H, W]
    places = set()
    for one in changed:
        rows, columns = one.any(1).nonzero()[:, 0], one.any(0).nonzero()[:, 0]
        assert rows.tolist() == list(range(int(rows[0]), int(rows[0]) + 20))
        assert columns.tolist() == list(range(int(columns[0]), int(columns[0]) + 20))
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 1
    assert torch.equal(noise(clean, seed=8)[0], noisy)


def test_the_squared_error_is_the_papers():
    restored, clean = torch.zeros(2, 1, 3, 8, 8), torch.zeros(2, 1, 3, 8, 8)
    restored[0] += 0.1
    restored[1] += 0.3
    assert squared_error(restored, clean).item() == pytest.approx((0.01 + 0.09) / 2, abs=1e-7)


def test_a_perceptual_error_is_a_distance_between_features_and_between_pixels():
    restored = torch.full((1, 1, 3, 4, 4), 0.5, requires_grad=True)
    clean = torch.full((1, 1, 3, 4, 4), 0.25)
    loss = perceptual_error(lambda pictures: 2 * pictures.mean(1, keepdim=True))(restored, clean)
    assert loss.item() == pytest.approx((1.0 - 0.5) ** 2 + PIXEL_WEIGHT * 0.25**2)
    loss.backward()
    assert restored.grad is not None
    assert restored.grad.sum().item() == pytest.approx(2 * (1.0 - 0.5) * 2 + PIXEL_WEIGHT * 2 * 0.25)


def test_features_are_what_five_layers_of_our_own_network_see():
    torch.manual_seed(9)
    picture = torch.rand(1, 3, 24, 24, requires_grad=True)
    maps = early_maps(picture)
    assert maps.shape == (1, 64, 24, 24)
    maps[0, :, 12, 12].sum().backward()
    assert picture.grad is not None
    reached = picture.grad[0].abs().sum(0).nonzero()
    assert reached.min(0).values.tolist() == [12 - 5, 12 - 5]
    assert reached.max(0).values.tolist() == [12 + 5, 12 + 5]
