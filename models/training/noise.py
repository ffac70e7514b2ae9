"""Which noise a training run adds to clean material: batches on the device of the run, in torch.

Every noise is called with clean frames [N, T, 3, H, W] in [0, 1] and a seed, and gives the noisy ones and [N], the
standard deviation that a denoiser is told where it must be. Levels are drawn anew for every example, frames of one
example share theirs. `models/noise.py` has their like for measuring.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """[N, T, 3, H, W] clean to the same, noisy, and [N] sigma; the same for the same seed."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Additive white Gaussian noise.

    Levels are uniform over the range and stratified over the batch: every batch has its share of weak and of strong
    noise. Drawn freely, the mean power of a small batch would jump, and batch normalisation with it.
    """

    sigma: tuple[float, float]  # the range of levels, on the scale of the frames
    # Of the examples, at random, that are then clipped and rounded as 8-bit files are. Clipping lifts shadows and dims
    # lights: a network that has never seen it takes the shift for the picture.
    recorded_share: float = 0.0

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(clean.device).manual_seed(seed)
        share = stratified(len(clean), generator)
        level = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * share
        noisy = clean + per_example(level) * torch.randn(clean.shape, generator=generator, device=clean.device)
        return recorded(noisy, self.recorded_share, generator), level


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """[count] numbers in [0, 1), one in each of `count` equal steps, in random order."""
    order = torch.randperm(count, generator=generator, device=generator.device)
    return (order + torch.rand(count, generator=generator, device=generator.device)) / count


def per_example(values: Tensor) -> Tensor:
    """[N] so that it meets [N, T, 3, H, W]."""
    return values.view(-1, 1, 1, 1, 1)


def recorded(noisy: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """That share of the examples, at random, clipped to [0, 1] and rounded to 8 bits."""
    is_recorded = torch.rand(len(noisy), generator=generator, device=noisy.device) < share
    rounded = (noisy.clamp(0, 1) * 255).round() / 255
    return torch.where(per_example(is_recorded), rounded, noisy)
