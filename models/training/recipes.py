"""What each shipped network was taught, on what, and how: recipes as data."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from models.networks.dncnn import DnCNN
from models.networks.fitvnet import FITVNet, SpatialModule


@dataclass(frozen=True, slots=True)
class Phase:
    """From `start` of the run (0 to 1) on, batches are of this shape."""

    start: float
    size_px: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that is known of a training run before it starts."""

    name: str
    build: Callable[[], nn.Module]
    restore: Callable[[nn.Module, Tensor], Tensor]  # [N, T, 3, H, W] noisy to [N, M, 3, H, W], the middle M frames
    objective: Callable[[nn.Module, Tensor, Tensor, float], Tensor]  # network, noisy, clean, progress 0 to 1 -> loss
    phases: tuple[Phase, ...]
    frames: int = 1
    footage_share: float = 0.0  # the rest is motion made up over photographs
    sigma: tuple[float, float] = (0.0, 55 / 255)  # uniform; the range DnCNN's blind network set
    recorded_share: float = 0.5  # of the examples, clipped and rounded to 8 bits as every file is; tables do neither
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    gradient_clip: float = 0.5
    ema_decay: float = 0.998
    seed: int = 2026
    starts_from: dict[str, str] = field(default_factory=dict)  # part of the network -> finished weights it starts from
    frozen: tuple[str, ...] = ()  # parts that stay as they start; they have a weights file of their own
    source: str = ""


def l2_norm(restored: Tensor, clean: Tensor) -> Tensor:
    """Root of the mean square of each frame, averaged: FITVNet's equations (7) and (9), whose norm is not squared.

    Unlike the mean square it does not let the noisiest examples of a blind batch drown the rest.
    """
    return ((restored.float() - clean).square().mean((-3, -2, -1)) + 1e-8).sqrt().mean()


def half_squared_error(restored: Tensor, clean: Tensor) -> Tensor:
    """DnCNN's equation (1), a mean over pixels instead of a sum so that the learning rate is free of the crop size."""
    return 0.5 * (restored.float() - clean).square().mean()


def restore_image(network: nn.Module, noisy: Tensor) -> Tensor:
    restored: Tensor = network(noisy[:, 0])
    return restored[:, None]


def restore_clip(network: nn.Module, noisy: Tensor) -> Tensor:
    """Run FITVNet's cascade over T frames, every stage once a frame; yields the middle T - 4."""
    return _cascade(network, noisy)[1]


def image_error(network: nn.Module, noisy: Tensor, clean: Tensor, _progress: float) -> Tensor:
    """FITVNet's equation (7): the spatial module against clean frames (jsc)."""
    return l2_norm(restore_image(network, noisy), clean)


def image_squared_error(network: nn.Module, noisy: Tensor, clean: Tensor, _progress: float) -> Tensor:
    return half_squared_error(restore_image(network, noisy), clean)


def clip_error(network: nn.Module, noisy: Tensor, clean: Tensor, _progress: float) -> Tensor:
    """FITVNet's equation (9): the blocks' error, as at the end of equation (10), where the spatial one has decayed."""
    return l2_norm(restore_clip(network, noisy), clean[:, 2:-2])


def joint_error(network: nn.Module, noisy: Tensor, clean: Tensor, progress: float) -> Tensor:
    """FITVNet's equation (10): the blocks' error, and the spatial module's in a share that falls as 1 / epochs.

    Alpha is 1; the paper's 40 epochs are spread over the run.
    """
    epochs = 1 + 40 * progress
    frames, restored = _cascade(network, noisy)
    return l2_norm(frames, clean) / epochs + l2_norm(restored, clean[:, 2:-2])


def _cascade(network: nn.Module, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """[N, T, 3, H, W] noisy to what the spatial module makes of T frames, and the blocks of the middle T - 4."""
    assert isinstance(network, FITVNet)
    spatial, first, second = network.stages()
    count, length = noisy.shape[:2]
    frames: Tensor = spatial(noisy.flatten(0, 1)).unflatten(0, (count, length))
    spatial_only = frames[:, :, :3]
    for stage in (first, second):
        triplets = torch.stack([frames[:, t : t + 3].flatten(1, 2) for t in range(frames.shape[1] - 2)], 1)
        frames = stage(triplets.flatten(0, 1)).unflatten(0, (count, triplets.shape[1]))
    return spatial_only, frames


FITVNET_SPATIAL = Recipe(
    name="fitvnet-spatial",
    build=SpatialModule,
    restore=restore_image,
    objective=image_error,
    phases=(Phase(0.0, 64, 16), Phase(0.45, 96, 8), Phase(0.8, 128, 6)),
    source="FITVNet equation (7), clean targets (jsc)",
)

FITVNET = Recipe(
    name="fitvnet",
    build=FITVNet,
    restore=restore_clip,
    objective=clip_error,
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

DNCNN = Recipe(
    name="dncnn",
    build=DnCNN,
    restore=restore_image,
    objective=image_squared_error,
    phases=(Phase(0.0, 40, 32),),  # the paper's patches are 50x50, its batches 128
    sigma=(0.0, 55 / 255),
    source="DnCNN equation (1)",
)

RECIPES = {recipe.name: recipe for recipe in (FITVNET_SPATIAL, FITVNET, FITVNET_JOINT, DNCNN)}
