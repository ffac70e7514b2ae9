"""Are the networks wired as the papers print them, and do they learn?"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded_networks import DENOISERS, NO_SIGMA, network_of, write_weights
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from models.catalogue import CATALOGUE, DESCRIBED, DNCNN, FITVNET, FITVNET_SPATIAL, DenoiserSpec
from models.errors import UnknownDenoiser
from models.networks import WIRINGS
from models.networks.dncnn import DnCNN
from models.networks.fitvnet import FITVNet, SpatialModule, SpatiotemporalBlock, noise_map
from models.training.recipes.fitvnet import restore_aligned_clip, restore_clip
from models.weights import build_network, cut_into_stages, load_network, stage_modules
from service.pipeline.cascade import align, restore_stream

# FITVNet, Table 5: layer, N_out, how much smaller than the input its output is.
TABLE_5 = [
    ("enc_conv1a", 90, 1),
    ("enc_conv1b", 32, 1),
    ("enc_conv1c", 64, 2),
    ("enc_conv2a", 64, 2),
    ("enc_conv2b", 64, 2),
    ("enc_conv2c", 128, 4),
    ("enc_conv3a", 128, 4),
    ("enc_conv3b", 128, 4),
    ("dec_conv3a", 128, 4),
    ("dec_conv3b", 128, 4),
    ("dec_conv3c", 256, 4),
    ("dec_conv2a", 64, 2),
    ("dec_conv2b", 64, 2),
    ("dec_conv2c", 128, 2),
    ("dec_conv1a", 32, 1),
    ("dec_conv1b", 3, 1),
]
# Table 6. Its two rows "Dec_Conv11" are 1a and 1b here.
TABLE_6 = [
    ("enc_conv0", 48, 1),
    ("enc_conv1a", 48, 1),
    ("enc_conv1b", 48, 2),
    ("enc_conv2a", 48, 2),
    ("enc_conv2b", 48, 2),
    ("enc_conv3a", 48, 4),
    ("enc_conv3b", 48, 4),
    ("enc_conv4a", 48, 4),
    ("enc_conv4b", 48, 8),
    ("enc_conv5a", 48, 8),
    ("enc_conv5b", 48, 8),
    ("enc_conv6", 48, 16),
    ("dec_conv5a", 96, 8),
    ("dec_conv5b", 96, 8),
    ("dec_conv4a", 96, 4),
    ("dec_conv4b", 96, 4),
    ("dec_conv3a", 96, 2),
    ("dec_conv3b", 96, 2),
    ("dec_conv2a", 96, 2),
    ("dec_conv2b", 96, 2),
    ("dec_conv1a", 64, 1),
    ("dec_conv1b", 32, 1),
    ("dec_conv0", 3, 1),
]
# N_out of the concatenations of Table 6, which the convolution behind each reads.
TABLE_6_JOINED = {"dec_conv5a": 96, "dec_conv4a": 144, "dec_conv3a": 144, "dec_conv2a": 144, "dec_conv1a": 96 + 3}


def input_of(spec: DenoiserSpec) -> tuple[int, int, int]:
    """What a network takes in a test: planes, height and width."""
    height, width = (-(-side // spec.multiple) * spec.multiple for side in (32, 48))
    return spec.frames * spec.channels, height, width


def macs_of(module: nn.Module, noisy: torch.Tensor) -> float:
    """Multiply-accumulates of convolutions and matrix products; additions and sampling are not counted."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        module(noisy, torch.full((len(noisy),), 0.1))
    return counted.get_total_flops() / 2


def convolutions_met(network: nn.Module, noisy: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Each convolution in the order it ran, with what came of it."""
    met: list[tuple[str, torch.Tensor]] = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _layer, _given, maps, name=name: met.append((name, maps)))
    with torch.no_grad():
        network(noisy, torch.full((len(noisy),), 0.1))
    return met


@pytest.mark.parametrize(
    ("network", "planes", "table"), [(SpatiotemporalBlock(), 12, TABLE_5), (SpatialModule(), 3, TABLE_6)]
)
def test_every_layer_of_the_papers_table_yields_the_printed_maps(network, planes, table):
    met = convolutions_met(network, torch.rand(1, planes, 64, 96))
    assert [(name, maps.shape[1], 64 // maps.shape[2], 96 // maps.shape[3]) for name, maps in met] == [
        (name, outputs, shrunk, shrunk) for name, outputs, shrunk in table
    ]


def test_table_6_joins_what_it_says():
    layers = dict(SpatialModule().named_modules())
    assert {name: layers[name].in_channels for name in TABLE_6_JOINED} == TABLE_6_JOINED


def test_dncnn_has_twenty_layers_of_64_maps():
    met = convolutions_met(DnCNN(), torch.rand(1, 3, 17, 23))
    assert [maps.shape for _name, maps in met] == [(1, 64, 17, 23)] * 19 + [(1, 3, 17, 23)]


@pytest.mark.parametrize("spec", [DESCRIBED[name] for name in WIRINGS], ids=lambda spec: spec.name)
def test_the_catalogue_counts_what_the_network_has(spec):
    network = build_network(spec)
    assert spec.parameters == sum(parameter.numel() for parameter in network.parameters())
    for stage, module in zip(spec.stages, cut_into_stages(spec, network).values(), strict=True):
        _, height, width = input_of(spec)
        macs = macs_of(module, torch.rand(1, stage.frames * stage.planes_in, height, width))
        # What is done once a picture, as attention is, weighs a little more in a small one.
        assert macs / (height * width) == pytest.approx(stage.macs_per_pixel, abs=1)
        has_normalisation = any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
        if len(spec.stages) > 1 and not has_normalisation:  # folded in, it leaves fewer than were trained
            assert stage.parameters == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("spec", DENOISERS.values(), ids=lambda spec: spec.name)
def test_every_parameter_learns(spec):
    torch.manual_seed(1)
    network = build_network(spec)
    shape = input_of(spec)
    noisy, clean = torch.rand(2, *shape), torch.rand(2, 3, *shape[1:])
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):  # the correction may start at zero, and then only its last layer learns from the first step
        optimizer.zero_grad()
        (network(noisy, torch.full((2,), 0.1)) - clean).square().mean().backward()
        optimizer.step()
    idle = [key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@pytest.mark.parametrize(
    ("build", "planes"),
    [(SpatialModule, [3]), (SpatiotemporalBlock, [3, 1] * 3), (DnCNN, [3])],
    ids=["spatial", "block", "dncnn"],
)
def test_a_network_learns_one_patch_by_heart(build, planes):
    torch.manual_seed(2)
    network = build()
    clean = torch.rand(2, 3, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    sigma = 0.2
    noisy = torch.cat(
        [
            clean + sigma * torch.randn(clean.shape) if count == 3 else torch.full_like(clean[:, :1], sigma)
            for count in planes
        ],
        1,
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(50):
        loss = (network(noisy, torch.full((2,), sigma)) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("network", [SpatialModule(), FITVNet()], ids=["spatial", "fitvnet"])
def test_before_training_fitvnet_gives_back_its_input_but_for_a_small_correction(network):
    planes = 3 if isinstance(network, SpatialModule) else 15
    noisy = torch.rand(1, planes, 32, 32) * 1.4 - 0.2  # beyond [0, 1], as noise is
    middle = noisy[:, planes // 2 - 1 : planes // 2 + 2]
    with torch.no_grad():
        assert (network(noisy, NO_SIGMA) - middle).abs().mean() < 0.05


def test_a_window_restored_at_once_is_the_window_restored_by_stages():
    network = network_of("fitvnet")
    torch.manual_seed(3)
    clip = torch.rand(1, 7, 3, 32, 48)
    with torch.no_grad():
        streamed = restore_clip(network, clip, NO_SIGMA)
        for t in range(3):
            window = clip[:, t : t + 5].flatten(1, 2)
            # Batches of other sizes are summed in another order: float32 noise, no more.
            torch.testing.assert_close(streamed[:, t], network(window, NO_SIGMA), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "reach"), [("fitvnet", 2), ("unet.video", 1)])
def test_an_aligned_network_is_taught_on_what_a_stream_makes_of_its_windows(name, reach):
    """Neighbours are laid over each other twice: in torch, where gradients pass, and by OpenCV."""
    network, spec = network_of(name), DENOISERS[name]
    modules = dict(zip(spec.stages, network.stages(), strict=True))
    torch.manual_seed(5)
    wide = functional.interpolate(torch.rand(1, 3, 15, 25), scale_factor=8, mode="bicubic").clamp(0, 1)
    clip = torch.stack([wide[:, :, :112, 7 * t : 7 * t + 128] for t in range(7)], 1)

    def run(stage, planes):
        restored = modules[stage](torch.from_numpy(planes)[None], NO_SIGMA)
        return restored[0].numpy()

    with torch.no_grad():
        taught = restore_aligned_clip(network, clip, NO_SIGMA)[0]
        streamed = list(restore_stream(spec.stages, run, list(clip[0].numpy()), align=align))[reach:-reach]
        unaligned = restore_clip(network, clip, NO_SIGMA)[0]
    # OpenCV reads at steps of 1/32 pixel.
    torch.testing.assert_close(taught, torch.from_numpy(np.stack(streamed)), atol=5e-3, rtol=0)
    assert (taught - unaligned).abs().max() > 0.05


def test_the_noise_map_is_what_was_taken_out_as_a_mean_over_the_colours():
    torch.manual_seed(4)
    clean, noise = torch.rand(1, 3, 64, 64), 0.1 * torch.randn(1, 3, 64, 64)
    measured = noise_map(clean + noise, clean)
    assert measured.shape == (1, 1, 64, 64)
    torch.testing.assert_close(measured[0, 0], noise[0].mean(0))


def test_dncnn_with_its_normalisations_folded_in_gives_the_same():
    network = network_of("dncnn")
    folded = cut_into_stages(DNCNN, network)["dncnn"]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert not is_parametrized(folded)
    noisy = torch.rand(1, 3, 40, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(noisy, NO_SIGMA), network(noisy, NO_SIGMA), atol=1e-5, rtol=0)


def test_weights_are_read_from_the_files_that_the_catalogue_names(tmp_path):
    weights_dir = write_weights(tmp_path)
    for spec in (FITVNET, FITVNET_SPATIAL, DNCNN):
        loaded, expected = load_network(spec, weights_dir), network_of(spec.name).state_dict()
        assert not loaded.training
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
        modules = stage_modules(spec, weights_dir)
        assert list(modules) == [stage.name for stage in spec.stages]
        for stage, module in zip(spec.stages, modules.values(), strict=True):
            with torch.no_grad():
                assert module(torch.rand(1, stage.frames * stage.planes_in, 16, 32), NO_SIGMA).shape == (
                    1,
                    stage.planes_out,
                    16,
                    32,
                )


def test_missing_weights_are_told_by_name(tmp_path):
    with pytest.raises(UnknownDenoiser, match=r"no weights fitvnet-spatial\.safetensors"):
        load_network(FITVNET, tmp_path)


def test_every_denoiser_is_wired_to_a_network():
    assert set(WIRINGS) == {name for name, spec in DESCRIBED.items() if spec.weights}
    assert set(CATALOGUE) <= set(DESCRIBED)


def test_without_torch_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from models.catalogue import DNCNN; from models.errors import NeedsExtra\n"
        "from models.weights import load_network\n"
        "try: load_network(DNCNN)\n"
        "except NeedsExtra as err: print(err)\n"
    )
    root = Path(__file__).parent.parent
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert said == "torch is not installed; it comes with: pip install 'quietframe[torch]'\n"
