"""How FITVNet is taught: Wang, Zhou, Cheng 2020, equations (7), (9) and (10)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.networks.fitvnet import FITVNet
from models.training.recipe import Phase, Recipe, l2_norm, middle_of, restore_image, supervised


def restore_clip(network: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Run the cascade over T frames, every stage once a frame; yields the middle T - 4."""
    return _cascade(network, noisy, sigma)[1]


def joint_error(network: nn.Module, noisy: Tensor, sigma: Tensor, clean: Tensor, progress: float) -> Tensor:
    """Equation (10): the blocks' error, and the spatial module's in a share that falls as 1 / epochs.

    Alpha is 1; the paper's 40 epochs are spread over the run.
    """
    epochs = 1 + 40 * progress
    frames, restored = _cascade(network, noisy, sigma)
    return l2_norm(frames, clean) / epochs + l2_norm(restored, middle_of(clean, restored.shape[1]))


def _cascade(network: nn.Module, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """[N, T, 3, H, W] noisy to what the spatial module makes of T frames, and the blocks of the middle T - 4."""
    assert isinstance(network, FITVNet)
    spatial, first, second = network.stages()
    count, length = noisy.shape[:2]
    frames: Tensor = spatial(noisy.flatten(0, 1), sigma).unflatten(0, (count, length))
    spatial_only = frames[:, :, :3]
    for stage in (first, second):
        triplets = torch.stack([frames[:, t : t + 3].flatten(1, 2) for t in range(frames.shape[1] - 2)], 1)
        frames = stage(triplets.flatten(0, 1), sigma).unflatten(0, (count, triplets.shape[1]))
    return spatial_only, frames


FITVNET_SPATIAL = Recipe(
    name="fitvnet-spatial",
    network="fitvnet-spatial",
    restore=restore_image,
    objective=supervised(restore_image, l2_norm),
    phases=(Phase(0.0, 64, 16), Phase(0.45, 96, 8), Phase(0.8, 128, 6)),
    source="FITVNet equation (7), clean targets (jsc)",
)

FITVNET = Recipe(
    name="fitvnet",
    network="fitvnet",
    restore=restore_clip,
    objective=supervised(restore_clip, l2_norm),  # as at the end of equation (10), where the other term has decayed
    phases=(Phase(0.0, 64, 6), Phase(0.5, 96, 3)),
    frames=7,
    footage_share=0.4,
    learning_rate=4e-4,  # at 1e-3 the second block's last layers died after a thousand steps
    warmup_steps=200,
    gradient_clip=0.05,  # norms are 0.01 to 0.04; a spike is what kills
    starts_from={"spatial": "fitvnet-spatial"},
    frozen=("spatial",),  # so that image and video denoiser share it
    source="FITVNet equation (9), after equation (7)",
)

FITVNET_JOINT = replace(  # gives one file, the spatial module in it
    FITVNET,
    name="fitvnet-joint",
    objective=joint_error,
    phases=(Phase(0.0, 96, 3), Phase(0.6, 128, 2)),
    gradient_clip=0.1,
    frozen=(),
    source="FITVNet equation (10), clean targets (jsc)",
)

RECIPES = (FITVNET_SPATIAL, FITVNET, FITVNET_JOINT)
