"""What a training run is before it starts: which network, on what noise, by which objective, in which phases."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.training.noise import Gaussian, Noise

# [N, T, 3, H, W] noisy and [N] sigma to [N, M, 3, H, W], the middle M frames
Restore = Callable[[nn.Module, Tensor, Tensor], Tensor]
# network, noisy, sigma, clean, progress from 0 to 1 -> loss
Objective = Callable[[nn.Module, Tensor, Tensor, Tensor, float], Tensor]

BLIND_GAUSSIAN = Gaussian((0.0, 55 / 255), recorded_share=0.5)  # the range that DnCNN's blind network set
GAUSSIAN_LEVELS: Mapping[str, Noise] = {f"{level}": Gaussian((level / 255, level / 255)) for level in (15, 25, 50)}


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
    network: str  # as `models.networks.WIRINGS` names it
    restore: Restore
    objective: Objective
    phases: tuple[Phase, ...]
    frames: int = 1
    footage_share: float = 0.0  # of clips; the rest is motion made up over photographs
    pair_share: float = 0.0  # of images, crops of photographs that were taken noisy and clean
    # Of the others, grey ones: one noise in all three planes. A network for colours alone takes it for texture, for it
    # knows noise by the planes' not agreeing.
    grey_share: float = 0.0
    noise: Noise = BLIND_GAUSSIAN
    watched: Mapping[str, Noise] = field(default_factory=lambda: GAUSSIAN_LEVELS)  # what held-out pictures get
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    gradient_clip: float = 0.5
    ema_decay: float = 0.998
    seed: int = 2026
    starts_from: dict[str, str] = field(default_factory=dict)  # part of the network -> finished weights it starts from
    # A denoiser of single frames whose finished weights it begins with, as that network, and learns to see the others.
    grows_from: str | None = None
    frozen: tuple[str, ...] = ()  # parts that stay as they start; they have a weights file of their own
    # How finished weights are adapted to noisy footage that has no clean frames, see `unsupervised.py`: its `noise` is
    # that of the footage, and its objective is given recorrupted frames for clean ones. None where nobody has tried.
    unsupervised: "Recipe | None" = None
    source: str = ""


def restore_image(network: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Of a denoiser that reads one frame: [N, 1, 3, H, W] to the same."""
    restored: Tensor = network(noisy[:, 0], sigma)
    return restored[:, None]


def restore_window(network: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Of a denoiser whose window is as long as the clip: [N, T, 3, H, W] to [N, 1, 3, H, W], the middle frame."""
    restored: Tensor = network(noisy.flatten(1, 2), sigma)
    return restored[:, None]


def l2_norm(restored: Tensor, clean: Tensor) -> Tensor:
    """Root of the mean square of each frame, averaged: FITVNet's equations (7) and (9), whose norm is not squared.

    Unlike the mean square it does not let the noisiest examples of a blind batch drown the rest.
    """
    return ((restored.float() - clean).square().mean((-3, -2, -1)) + 1e-8).sqrt().mean()


def l2_norm_of_known(restored: Tensor, target: Tensor) -> Tensor:
    """As `l2_norm`, over the values whose target is known; where it is not, it is not a number."""
    known = target.isfinite()
    error = torch.where(known, restored.float() - target.nan_to_num(), 0.0)
    power = error.square().sum((-3, -2, -1)) / known.sum((-3, -2, -1)).clamp(min=1)
    return (power + 1e-8).sqrt().mean()


def half_squared_error(restored: Tensor, clean: Tensor) -> Tensor:
    """DnCNN's equation (1), a mean over pixels instead of a sum so that the learning rate is free of the crop size."""
    return 0.5 * (restored.float() - clean).square().mean()


def l1_norm(restored: Tensor, clean: Tensor) -> Tensor:
    return (restored.float() - clean).abs().mean()


def middle_of(clean: Tensor, frames: int) -> Tensor:
    """The middle `frames` of [N, T, ...]."""
    skipped = (clean.shape[1] - frames) // 2
    return clean[:, skipped : skipped + frames]


def supervised(restore: Restore, loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """The plain objective: what comes back against the clean frames it stands for."""

    def objective(network: nn.Module, noisy: Tensor, sigma: Tensor, clean: Tensor, _progress: float) -> Tensor:
        restored = restore(network, noisy, sigma)
        return loss(restored, middle_of(clean, restored.shape[1]))

    return objective
