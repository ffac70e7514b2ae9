"""Is PRIDNet wired as the paper draws it, and does it choose as it says?"""

import pytest
import torch
from seeded_networks import NO_SIGMA
from torch import nn
from torch.nn import functional as F

from models.catalogue import DESCRIBED
from models.networks.pridnet import KernelSelection, NoiseEstimation, PRIDNet, UNet
from models.weights import build_network

PAPER_WIDTHS = [32, 64, 128, 256, 512]


def maps_of(unet: UNet) -> list[tuple[str, int, int]]:
    """Kind, inputs and outputs of every convolution, in the order of the scales."""
    return [
        (type(layer).__name__, layer.in_channels, layer.out_channels)
        for layer in unet.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]


def test_the_papers_u_net_has_four_convolutions_down_and_three_up_at_each_of_five_scales():
    unet = UNet(6, 3, tuple(PAPER_WIDTHS))
    convolutions = maps_of(unet)
    assert len(convolutions) == 5 * 4 + 4 * (1 + 3) + 1
    down = [outputs for kind, _, outputs in convolutions[:20] if kind == "Conv2d"]
    assert down == [width for width in PAPER_WIDTHS for _ in range(4)]
    assert [one for one in convolutions if one[0] == "ConvTranspose2d"] == [
        ("ConvTranspose2d", deeper, width)
        for deeper, width in zip([512, 256, 128, 64], [256, 128, 64, 32], strict=True)
    ]
    assert convolutions[-1] == ("Conv2d", 32, 3)


def test_the_papers_network_has_74_million_parameters_in_five_u_nets_of_their_own():
    network = build_network(DESCRIBED["pridnet.paper"])
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(74.2e6, rel=0.001)
    assert [len(unet.down) for unet in network.pyramid] == [5] * 5
    assert network.multiple == DESCRIBED["pridnet.paper"].multiple == 256
    assert build_network(DESCRIBED["pridnet"]).multiple == DESCRIBED["pridnet"].multiple


def test_channel_attention_weighs_each_map_by_what_all_maps_are_in_the_mean():
    torch.manual_seed(1)
    estimation = NoiseEstimation(3)
    noisy = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        maps = noisy
        for layer in estimation.layers:
            maps = F.leaky_relu(layer(maps), 0.2)
        means = maps.mean((2, 3))
        squeeze, excite = estimation.squeeze, estimation.excite
        hidden = (means @ squeeze.weight[:, :, 0, 0].T + squeeze.bias).relu()
        attention = (hidden @ excite.weight[:, :, 0, 0].T + excite.bias).sigmoid()
        expected = estimation.last(maps * attention[:, :, None, None])
        torch.testing.assert_close(estimation(noisy), expected)
    assert hidden.shape == (2, 2)  # 32 to 2 to 32


def test_kernel_selection_gives_every_channel_shares_of_three_kernel_sizes_that_sum_to_one():
    torch.manual_seed(2)
    selection = KernelSelection(21)
    assert [branch.kernel_size for branch in selection.branches] == [(3, 3), (5, 5), (7, 7)]
    maps = torch.rand(1, 21, 12, 12)
    with torch.no_grad():
        same = selection.branches[0](maps)
        for branch in selection.branches:  # were all three alike, any shares that sum to one would give just that
            branch.forward = lambda _maps, same=same: same
        torch.testing.assert_close(selection(maps), same)


def test_before_training_pridnet_hands_its_input_on():
    torch.manual_seed(3)
    noisy = torch.rand(1, 3, 64, 64) * 1.4 - 0.2  # beyond [0, 1], as noise is
    network = PRIDNet((8, 8, 8, 8, 8), (5, 5, 5, 4, 3))
    with torch.no_grad():
        torch.testing.assert_close(network(noisy, NO_SIGMA), noisy, atol=1e-5, rtol=0)
