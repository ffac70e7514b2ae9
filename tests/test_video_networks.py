"""Are FastDVDnet, the deep RNN and TOFlow wired as their papers say, and do they learn?"""

import math
from dataclasses import replace

import numpy as np
import openvino as ov
import pytest
import torch
from seeded_networks import NO_SIGMA, network_of
from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import DESCRIBED
from models.networks.blocks import TripletUNet
from models.networks.drnn import DRNN, patches_of, placed
from models.networks.fastdvdnet import DenoisingBlock, FastDVDnet
from models.networks.sampling import warped
from models.networks.toflow import FlowNetwork, TOFlow, apart
from models.quality import psnr_db
from models.training.noise import PoissonGaussian
from models.training.recipe import l1_norm
from models.training.recipes import RECIPES
from models.training.recipes.drnn import cube_error
from models.training.recipes.fastdvdnet import restore_clip
from models.training.recipes.toflow import joint_error
from models.weights import build_wired, cut_into_stages
from trtbuild.export import export_stage
from trtbuild.open import open_engine

# FastDVDnet's block at the paper's widths: layer, maps, how much smaller than the frame, what stands behind it.
FASTDVDNET_BLOCK = [
    ("enc_conv1a", 90, 1, "normalised"),
    ("enc_conv1b", 32, 1, "normalised"),
    ("enc_conv1c", 64, 2, "normalised"),
    ("enc_conv2a", 64, 2, "normalised"),
    ("enc_conv2b", 64, 2, "normalised"),
    ("enc_conv2c", 128, 4, "normalised"),
    ("enc_conv3a", 128, 4, "normalised"),
    ("enc_conv3b", 128, 4, "normalised"),
    ("dec_conv3a", 128, 4, "normalised"),
    ("dec_conv3b", 128, 4, "normalised"),
    ("dec_conv3c", 256, 4, "bare"),
    ("dec_conv2a", 64, 2, "normalised"),
    ("dec_conv2b", 64, 2, "normalised"),
    ("dec_conv2c", 128, 2, "bare"),
    ("dec_conv1a", 32, 1, "normalised"),
    ("dec_conv1b", 3, 1, "bare"),
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(7)


def losses_on_one_clip(network: nn.Module, noisy: Tensor, sigma: Tensor, clean: Tensor, steps: int) -> list[float]:
    """Of learning it by heart."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        loss = (network(noisy, sigma) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def checkers(count: int, size_px: int) -> Tensor:
    return torch.rand(count, 3, 2, 2).repeat_interleave(size_px // 2, 2).repeat_interleave(size_px // 2, 3)


# --- FastDVDnet


def test_every_layer_of_fastdvdnets_block_is_the_papers():
    block = FastDVDnet().first
    met: list[tuple[str, int, int, str]] = []
    for name, layer in block.named_children():
        kind = "normalised" if isinstance(layer, nn.Sequential) else "bare"
        layer.register_forward_hook(
            lambda _layer, _given, maps, name=name, kind=kind: met.append(
                (name, maps.shape[1], 64 // maps.shape[2], kind)
            )
        )
    block(torch.rand(1, 9, 64, 96), torch.full((1,), 0.1))
    assert met == FASTDVDNET_BLOCK
    assert all(layer.bias is None for layer in block.modules() if isinstance(layer, nn.Conv2d))


def test_fastdvdnet_has_the_papers_2_479_million_parameters():
    assert sum(parameter.numel() for parameter in FastDVDnet().parameters()) == 2_479_096
    for name in ("fastdvdnet", "fastdvdnet.paper"):
        network = build_wired(name)
        for stage, step in zip(DESCRIBED[name].stages, (network.first, network.second), strict=True):
            assert stage.parameters == sum(parameter.numel() for parameter in step.parameters())


def test_the_block_sees_each_frame_beside_the_level_and_takes_noise_off_the_middle_one():
    block = DenoisingBlock(2, 4, 4, 4).eval()
    noisy, sigma = torch.rand(2, 9, 8, 12), torch.tensor([0.1, 0.2])
    nn.init.normal_(block.dec_conv1b.weight)
    seen: list[Tensor] = []
    block.enc_conv1a.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    with torch.no_grad():
        restored = block(noisy, sigma)
        triplet = seen[0]
        for t in range(3):
            assert torch.equal(triplet[:, 4 * t : 4 * t + 3], noisy[:, 3 * t : 3 * t + 3])
            assert torch.equal(triplet[:, 4 * t + 3], sigma[:, None, None].expand(2, 8, 12))
        torch.testing.assert_close(restored, noisy[:, 3:6] - block.correction(triplet))


def test_before_training_fastdvdnet_gives_back_the_middle_frame():
    noisy = torch.rand(1, 15, 16, 16) * 1.4 - 0.2
    with torch.no_grad():
        assert torch.equal(FastDVDnet((2, 4, 4, 4)).eval()(noisy, torch.full((1,), 0.1)), noisy[:, 6:9])


def test_what_fastdvdnet_is_told_of_the_noise_changes_what_it_does_in_both_steps():
    network = network_of("fastdvdnet")
    noisy = torch.rand(1, 9, 16, 16)
    with torch.no_grad():
        for step in cut_into_stages(DESCRIBED["fastdvdnet"], network).values():
            weak, strong = (step(noisy, torch.full((1,), sigma)) for sigma in (0.02, 0.2))
            assert (weak - strong).abs().mean() > 1e-3


def test_a_clip_restored_step_by_step_is_each_of_its_windows_restored_at_once():
    network = network_of("fastdvdnet")
    clip, sigma = torch.rand(2, 7, 3, 16, 24), torch.tensor([0.05, 0.2])
    first, second = cut_into_stages(DESCRIBED["fastdvdnet"], network).values()
    assert not any(isinstance(layer, nn.BatchNorm2d) for step in (first, second) for layer in step.modules())
    with torch.no_grad():
        streamed = restore_clip(network, clip, sigma)
        middle = [first(clip[:, t : t + 3].flatten(1, 2), sigma) for t in range(5)]
        assert streamed.shape == (2, 3, 3, 16, 24)
        for t in range(3):
            at_once = network(clip[:, t : t + 5].flatten(1, 2), sigma)
            by_stages = second(torch.cat(middle[t : t + 3], 1), sigma)  # normalisations folded in
            torch.testing.assert_close(streamed[:, t], at_once, atol=1e-5, rtol=0)
            torch.testing.assert_close(by_stages, at_once, atol=1e-5, rtol=0)


def test_fitvnet_and_fastdvdnet_share_their_block():
    assert issubclass(DenoisingBlock, TripletUNet)
    plain, normalised = TripletUNet(), TripletUNet(normalised=True)
    assert [name for name, _ in plain.named_children()] == [name for name, _ in normalised.named_children()]
    assert all(layer.bias is not None for layer in plain.children())


def test_fastdvdnet_learns_one_clip_by_heart():
    clean, sigma = checkers(2, 16), torch.full((2,), 0.2)
    noisy = torch.cat([clean + 0.2 * torch.randn(clean.shape) for _ in range(5)], 1)
    losses = losses_on_one_clip(FastDVDnet((6, 8, 16, 24)), noisy, sigma, clean, 40)
    assert losses[-1] < losses[0] / 3


# --- deep RNN


def as_pixels(patch: Tensor) -> Tensor:
    """[243] of the network to [3, 9, 9]: blocks of 3x3 pixels, column by column."""
    return patch.view(3, 3, 3, 3, 3).permute(2, 1, 3, 0, 4).reshape(3, 9, 9)


def by_equations(network: DRNN, patches: list[np.ndarray]) -> np.ndarray:
    """Equations (1) and (2) and the stacked form, on one patch after the other, each [243] colour by colour."""
    weight = {key: value.detach().double().numpy() for key, value in network.state_dict().items()}
    size = network.output.in_channels
    below_first, first_before = weight["from_input.weight"].reshape(size, -1), weight["from_before.0.weight"][..., 0, 0]
    below_second, second_before = weight["from_below.0.weight"][..., 0, 0], weight["from_before.1.weight"][..., 0, 0]
    first, second = np.zeros(size), np.zeros(size)
    for patch in patches:
        first = np.tanh(below_first @ patch + first_before @ first + weight["from_input.bias"])
        second = np.tanh(below_second @ first + second_before @ second + weight["from_below.0.bias"])
    return weight["output.weight"][..., 0, 0] @ second + weight["output.bias"]


def small_drnn() -> DRNN:
    network = DRNN(width=12).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15)
    return network


def test_drnn_is_its_equations_on_every_patch_and_their_mean_where_they_overlap():
    network, noisy = small_drnn(), torch.rand(1, 21, 12, 15)
    frames = F.pad((noisy.view(7, 3, 12, 15) - 0.5) / 0.2, (3, 3, 3, 3), "replicate").double().numpy()
    total, count = np.zeros((3, 18, 21)), np.zeros((18, 21))
    for top in range(0, 10, 3):
        for left in range(0, 13, 3):
            cube = [frame[:, top : top + 9, left : left + 9].ravel() for frame in frames[:4]]
            restored = as_pixels(torch.from_numpy(by_equations(network, cube))).numpy()
            total[:, top : top + 9, left : left + 9] += restored
            count[top : top + 9, left : left + 9] += 1
    expected = (total / count)[:, 3:-3, 3:-3] * 0.2 + 0.5
    assert {int(number) for number in np.unique(count[3:-3, 3:-3])} == {4, 6, 9}
    with torch.no_grad():
        assert np.abs(network(noisy, NO_SIGMA)[0].numpy() - expected).max() < 1e-6


def test_a_stream_with_its_state_carried_gives_what_the_window_gives_and_then_knows_more():
    network, clip = small_drnn(), torch.rand(8, 1, 3, 12, 12)
    state, streamed = None, []
    with torch.no_grad():
        for frame in clip:
            restored, state = network.step(frame, state)
            streamed.append(restored)
        window = network(clip[:7].transpose(0, 1).flatten(1, 2), NO_SIGMA)
        torch.testing.assert_close(streamed[3], window, atol=1e-6, rtol=0)
        later = network(clip[1:].transpose(0, 1).flatten(1, 2), NO_SIGMA)
    assert (streamed[4] - later).abs().max() > 1e-4  # the stream remembers frame 0, which this window has not seen


def test_the_cubes_that_train_are_the_windows_that_serve():
    network, clip = small_drnn(), torch.rand(1, 7, 3, 9, 9)
    with torch.no_grad():
        cube = network.cubes(clip)
    assert cube.shape == (1, 7, 243, 1, 1)
    frames = ((clip[0] - 0.5) / 0.2).double().numpy()
    for t in range(7):
        expected = by_equations(network, [frame.ravel() for frame in frames[: t + 1]])
        assert np.abs(cube[0, t, :, 0, 0].numpy() - expected).max() < 1e-5


def test_a_picture_cut_into_patches_and_put_back_is_the_picture():
    clip = torch.rand(1, 1, 3, 27, 18)
    patches = patches_of(clip)
    assert patches.shape == (1, 1, 243, 3, 2)
    assert torch.allclose(as_pixels(patches[0, 0, :, 2, 1]) * 0.2 + 0.5, clip[0, 0, :, 18:27, 9:18], atol=1e-6)

    around = F.pad(clip[0], (3, 3, 3, 3), "replicate")
    windows = [
        patches_of(around[None, :, :, top : top + 9, left : left + 9])[0, 0, :, 0, 0]
        for top in range(0, 27, 3)
        for left in range(0, 18, 3)
    ]
    overlapping = torch.stack(windows, 1).view(1, 243, 9, 6)
    assert torch.allclose(placed(overlapping), clip[0], atol=1e-6)


def test_drnns_first_weights_are_uniform_within_the_root_of_the_layer_before():
    network = DRNN(width=48)
    for layer, size in ((network.from_input, 243), (network.from_before[1], 48), (network.output, 48)):
        assert 0.95 / math.sqrt(size) < float(layer.weight.detach().abs().max()) <= 1 / math.sqrt(size)


def test_drnns_loss_counts_every_frame_of_a_cube_and_every_cube_alike():
    network = small_drnn()
    nn.init.zeros_(network.output.weight)
    nn.init.zeros_(network.output.bias)  # it gives 0, which is a grey of 0.5
    clean = torch.full((1, 7, 3, 9, 9), 0.5)
    clean[:, 2] = 0.7  # one of normalised pixels, in one of seven frames
    of_one = cube_error(network, clean, NO_SIGMA, clean, 0.0).item()
    assert of_one == pytest.approx((1 / 7) ** 0.5, rel=1e-4)
    both = torch.cat([clean, torch.full_like(clean, 0.5)])
    assert cube_error(network, both, NO_SIGMA, both, 0.0).item() == pytest.approx(of_one / 2, rel=1e-3)


def test_drnn_learns_one_clip_by_heart():
    clean = checkers(2, 12)
    noisy = torch.cat([clean + 0.2 * torch.randn(clean.shape) for _ in range(7)], 1)
    losses = losses_on_one_clip(DRNN(width=48), noisy, NO_SIGMA, clean, 60)
    assert losses[-1] < losses[0] / 5


def test_photons_make_noise_that_grows_with_the_light():
    clean = torch.full((8, 2, 3, 48, 48), 0.2)
    clean[..., 24:] = 0.8
    noise = PoissonGaussian((50.0, 50.0), (0.04, 0.04), recorded_share=0.0)
    noisy, told = noise(clean, 3)
    for light, part in ((0.2, noisy[..., :24]), (0.8, noisy[..., 24:])):
        assert part.mean().item() == pytest.approx(light, abs=0.002)
        assert part.var().item() == pytest.approx(light / 50 + 0.04**2, rel=0.03)  # 55 thousand draws
    assert told.tolist() == pytest.approx([math.sqrt(0.5 / 50 + 0.04**2)] * 8)
    assert torch.equal(noisy, noise(clean, 3)[0])

    few, many = (PoissonGaussian((20.0, 1000.0), (0.0, 0.0))(clean, 1)[1].sort().values[index] for index in (-1, 0))
    assert 0.5 / 20 >= few**2 > 0.5 / 40  # stratified: one example in each eighth of the range, on a log scale
    assert 0.5 / 600 > many**2 >= 0.5 / 1001


# --- TOFlow


def read_between(picture: np.ndarray, row: float, column: float) -> np.ndarray:
    """[C, H, W] at one place, bilinear, the edge going on beyond the edge."""
    height, width = picture.shape[1:]
    top, left = math.floor(row), math.floor(column)
    total = np.zeros(len(picture))
    for down in (0, 1):
        for across in (0, 1):
            weight = (1 - abs(row - top - down)) * (1 - abs(column - left - across))
            near = picture[:, min(max(top + down, 0), height - 1), min(max(left + across, 0), width - 1)]
            total += weight * near
    return total


def test_a_neighbour_is_read_where_the_flow_says():
    neighbour, flow = torch.rand(2, 3, 6, 9), 4 * torch.randn(2, 2, 6, 9)
    got = warped(neighbour, flow).numpy()
    for index in range(2):
        for row in range(6):
            for column in range(9):
                across, down = flow[index, :, row, column].tolist()
                expected = read_between(neighbour[index].double().numpy(), row + down, column + across)
                assert np.abs(got[index, :, row, column] - expected).max() < 1e-5


def test_where_a_wide_frame_is_read_is_exact_even_if_the_layers_are_not():
    neighbour = torch.rand(1, 3, 2, 1920)
    with torch.autocast("cpu", torch.bfloat16):
        moved = warped(neighbour, torch.full((1, 2, 2, 1920), 0.0))
    torch.testing.assert_close(moved, neighbour, atol=1e-3, rtol=0)  # a thousandth of a pixel off, at most


@pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="needs a CPU with bfloat16"
)
def test_a_flow_is_followed_exactly_through_a_graph_in_bfloat16(tmp_path):
    class Follow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = nn.Conv2d(3, 2, 5, padding=2)

        def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
            return warped(noisy, self.flow(noisy))

    network, spec = Follow(), DESCRIBED["toflow"]
    stage = replace(spec.stages[0], name="follow", frames=1, multiple=1)
    spec = replace(spec, stages=(stage,))
    (tmp_path / "follow.onnx").write_bytes(export_stage(spec, stage, network))
    engine = open_engine(spec, stage, backend="openvino", precision="bf16", threads=1, graphs_dir=tmp_path)
    noisy = torch.rand(1, 3, 32, 848)
    with torch.no_grad():
        expected = network(noisy, NO_SIGMA).numpy()
    # The flow itself is rounded. Were the coordinates, too, it would be 20 dB for this picture, which is all grain.
    assert psnr_db(engine.denoise(noisy.numpy(), NO_SIGMA.numpy()), expected) > 45


def test_flow_is_found_from_coarse_to_fine_by_layers_of_5x5():
    network, met = FlowNetwork(), []
    for level in network.levels:
        for layer in level:
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(
                    lambda layer, given, maps: met.append((given[0].shape[1], maps.shape[1], 64 // maps.shape[2]))
                )
                assert layer.kernel_size == (5, 5)
    with torch.no_grad():
        flow = network(torch.rand(1, 3, 64, 96), torch.rand(1, 3, 64, 96))
    assert flow.shape == (1, 2, 64, 96)
    widths = [(8, 16), (16, 32), (32, 16), (16, 2)]
    assert met == [(*pair, shrunk) for shrunk in (16, 8, 4, 2) for pair in widths]


def test_each_scale_doubles_the_flow_of_the_coarser_one():
    network = FlowNetwork()
    for index, level in enumerate(network.levels):
        last = level[-1]
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([1.0, -1.0]) if index == 0 else torch.zeros(2)
    with torch.no_grad():
        flow = network(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(flow, torch.tensor([16.0, -16.0]).view(1, 2, 1, 1).expand(1, 2, 32, 32))


def test_the_flow_network_learns_how_far_a_picture_has_moved():
    picture = F.interpolate(torch.rand(1, 3, 9, 9), size=(40, 40), mode="bicubic")
    frame, neighbour = picture[:, :, :32, :32], picture[:, :, 2:34, 3:35]  # three to the left, two up
    network = FlowNetwork()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(60):
        loss = l1_norm(warped(neighbour, network(frame, neighbour)), frame)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_before_training_toflow_gives_back_the_middle_frame():
    noisy = torch.rand(1, 21, 32, 48) * 1.4 - 0.2
    with torch.no_grad():
        assert torch.equal(TOFlow()(noisy, NO_SIGMA), noisy[:, 9:12])


def test_toflow_reads_how_each_neighbour_in_its_order_differs_from_the_frame():
    network, noisy = TOFlow(), torch.rand(1, 21, 16, 16)
    seen: list[Tensor] = []
    network.processing.register_forward_pre_hook(lambda _layers, given: seen.append(given[0]))
    with torch.no_grad():
        network.restored(noisy, torch.zeros(6, 2, 16, 16))
    frame, neighbours = apart(noisy)
    assert torch.equal(frame, noisy[:, 9:12])
    assert torch.equal(neighbours[:, 3], noisy[:, 12:15])
    for index in range(6):
        difference = 0.2 * seen[0][:, 3 * index + 3 : 3 * index + 6]
        torch.testing.assert_close(difference, neighbours[:, index] - frame, atol=1e-5, rtol=0)


def test_toflows_loss_judges_the_flow_at_first_and_then_the_frame():
    network = TOFlow()
    for level in network.flow.levels:
        nn.init.zeros_(level[-1].weight)  # nothing moves
    clean = torch.zeros(1, 7, 3, 16, 16)
    clean[:, 5] = 0.6  # one neighbour of six differs by 0.6: a mean of 0.1
    noisy = clean + 0.05
    losses = [joint_error(network, noisy, NO_SIGMA, clean, progress).item() for progress in (0.0, 0.2, 0.25, 1.0)]
    assert losses == pytest.approx([0.10, 0.10, 0.05, 0.05], abs=1e-4)


def test_toflow_learns_one_clip_by_heart():
    clean = checkers(1, 16)
    noisy = torch.cat([clean + 0.2 * torch.randn(clean.shape) for _ in range(7)], 1)
    losses = losses_on_one_clip(TOFlow(), noisy, NO_SIGMA, clean, 30)
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("name", ["fastdvdnet", "drnn", "drnn.poisson", "toflow"])
def test_a_recipe_shows_its_network_windows_of_its_own_length(name):
    recipe, spec = RECIPES[name], DESCRIBED[name]
    assert recipe.frames >= spec.frames
    size_px = -(-32 // spec.multiple) * spec.multiple
    with torch.no_grad():
        restored = recipe.restore(
            network_of(name), torch.rand(1, recipe.frames, 3, size_px, size_px), torch.full((1,), 0.1)
        )
    assert restored.shape == (1, recipe.frames - spec.frames + 1, 3, size_px, size_px)
