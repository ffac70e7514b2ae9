"""How FastDVDnet is taught: Tassano, Delon, Veit 2020, section 4.

Kept: the loss (half a square error), levels from 5 to 55 drawn for each clip, the two steps trained at once from the
second's result alone. Left out: the orthogonal filters that the paper restores every ten steps for most of the run.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.networks.fastdvdnet import FastDVDnet
from models.training.noise import Gaussian
from models.training.recipe import Phase, Recipe, half_squared_error, supervised


def restore_clip(network: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Run both steps over T frames, each once a frame: [N, T, 3, H, W] to the middle T - 4."""
    assert isinstance(network, FastDVDnet)
    frames = noisy
    for step in (network.first, network.second):
        triplets = torch.stack([frames[:, t : t + 3].flatten(1, 2) for t in range(frames.shape[1] - 2)], 1)
        levels = sigma[:, None].expand(triplets.shape[:2])
        frames = step(triplets.flatten(0, 1), levels.flatten()).unflatten(0, triplets.shape[:2])
    return frames


FASTDVDNET = Recipe(
    name="fastdvdnet",
    network="fastdvdnet",
    restore=restore_clip,
    objective=supervised(restore_clip, half_squared_error),
    phases=(Phase(0.0, 64, 6), Phase(0.6, 96, 3)),  # the paper's crops are 96x96, its batches 96
    frames=7,
    footage_share=0.4,
    noise=Gaussian((5 / 255, 55 / 255), recorded_share=0.5),
    source="FastDVDnet, section 4",
)

FASTDVDNET_PAPER = replace(
    FASTDVDNET, name="fastdvdnet.paper", network="fastdvdnet.paper", phases=(Phase(0.0, 96, 96),), frames=5
)

RECIPES = (FASTDVDNET, FASTDVDNET_PAPER)
