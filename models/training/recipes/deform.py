"""How the deformable kernels are taught: Xu, Li, Sun 2019, equations (9) to (11), and without their annealing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from models.training.noise import HIGH, LOW, Either, SignalDependent
from models.training.recipe import (
    BLIND_GAUSSIAN,
    GAUSSIAN_LEVELS,
    Objective,
    Phase,
    Recipe,
    l1_norm,
    middle_of,
    restore_image,
    restore_window,
    supervised,
)

Loss = Callable[[Tensor, Tensor], Tensor]

ETA, GAMMA = 100.0, 0.9998  # of equation (11)
ITERATIONS = 200_000  # of the paper's run, spread over ours


class Grouped(Protocol):
    """A network whose result is a sum over groups of samples that can be looked at alone."""

    def by_group(self, noisy: Tensor, sigma: Tensor, *, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """[N, T*3, H, W] to [N, 3, H, W] and [N, s, 3, H, W]."""


@dataclass(frozen=True, slots=True)
class ToldPerPixel:
    """Half of the examples with the paper's noise, half with Gaussian noise, the level of each told of every pixel."""

    def __call__(self, clean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        half = len(clean) // 2
        signal, per_pixel = SignalDependent(recorded_share=0.5, per_pixel=True)(clean[:half], seed)
        gaussian, level = BLIND_GAUSSIAN(clean[half:], seed + 1)
        everywhere = level[:, None, None, None].expand(-1, *per_pixel.shape[1:])
        return torch.cat([signal, gaussian]), torch.cat([per_pixel, everywhere])


def annealed(loss: Loss, *, eta: float = ETA, fixed: bool = False) -> Objective:
    """Equation (11): the loss of the whole kernel, and, less and less, of each group of its samples by itself.

    Divided by the two terms' shares: one such factor for all is nothing to Adam, but the gradient's clip would bite for
    as long as it is large.

    Args:
        loss: of a restored picture against the clean one.
        eta: how much the groups count at first; 0 for no annealing.
        fixed: leave the samples on their regular grid.
    """

    def objective(network: nn.Module, noisy: Tensor, sigma: Tensor, clean: Tensor, progress: float) -> Tensor:
        restored, groups = cast("Grouped", network).by_group(noisy.flatten(1, 2), sigma, fixed=fixed)
        middle = middle_of(clean, 1)
        whole = loss(restored[:, None], middle)
        share: float = eta * GAMMA ** (ITERATIONS * progress)
        if not share:
            return whole
        apart = torch.stack([loss(group[:, None], middle) for group in groups.unbind(1)]).sum()
        return (whole + share * apart) / (1 + share)

    return objective


# The paper's noise, and what the service is asked for most.
SENSOR_OR_GAUSSIAN = Either(((SignalDependent(recorded_share=0.5), 0.5), (BLIND_GAUSSIAN, 0.5)))
WATCHED = {"25": GAUSSIAN_LEVELS["25"], "50": GAUSSIAN_LEVELS["50"], "low": LOW, "high": HIGH}
PHASES = Phase(0.0, 64, 8), Phase(0.5, 96, 4)

DEFORM3D = Recipe(
    name="deform3d",
    network="deform3d",
    restore=restore_window,
    objective=annealed(l1_norm),
    phases=PHASES,
    frames=5,
    footage_share=0.4,
    noise=SENSOR_OR_GAUSSIAN,
    watched=WATCHED,
    source="Deformable kernels, equation (11); s = 3, eta = 100, gamma = 0.9998",
)
DEFORM3D_KNOWN = replace(DEFORM3D, name="deform3d.known", network="deform3d.known", noise=ToldPerPixel())
# The paper: Adam from 2e-4 down to 1e-4, batches of 32, 50 hours.
DEFORM3D_PAPER = replace(
    DEFORM3D,
    name="deform3d.paper",
    network="deform3d.paper",
    phases=(Phase(0.0, 128, 32),),
    noise=SignalDependent(),
    learning_rate=2e-4,
)
# Table 4's "w/o annealing term" and "fixed kernel 3x3x3", to be set beside `deform3d`; both give weights for it.
DEFORM3D_UNANNEALED = replace(DEFORM3D, name="deform3d-unannealed", objective=annealed(l1_norm, eta=0.0))
DEFORM3D_FIXED = replace(DEFORM3D, name="deform3d-fixed", objective=annealed(l1_norm, fixed=True))

DEFORM2D = Recipe(
    name="deform2d",
    network="deform2d",
    restore=restore_image,
    objective=supervised(restore_image, l1_norm),  # equation (9)
    phases=PHASES,
    noise=SENSOR_OR_GAUSSIAN,
    watched=WATCHED,
    source="Deformable kernels, equation (9)",
)
DEFORM2D_KNOWN = replace(DEFORM2D, name="deform2d.known", network="deform2d.known", noise=ToldPerPixel())
DEFORM2D_PAPER = replace(
    DEFORM2D,
    name="deform2d.paper",
    network="deform2d.paper",
    phases=(Phase(0.0, 128, 32),),
    noise=SignalDependent(),
    learning_rate=2e-4,
)
DEFORM2D_FIXED = replace(DEFORM2D, name="deform2d-fixed", objective=annealed(l1_norm, eta=0.0, fixed=True))

# Not the paper's: beside the finished weights of the network that is not told the level, whose kernels need not be
# found twice. To anneal would be to unlearn them.
DEFORM3D_KNOWN_GROWN = replace(
    DEFORM3D_KNOWN,
    name="deform3d.known-grown",
    objective=annealed(l1_norm, eta=0.0),
    learning_rate=5e-4,
    grows_from="deform3d",
    source="Deformable kernels, equation (9), from the weights that are not told the level",
)
DEFORM2D_KNOWN_GROWN = replace(
    DEFORM2D_KNOWN,
    name="deform2d.known-grown",
    learning_rate=5e-4,
    grows_from="deform2d",
    source=DEFORM3D_KNOWN_GROWN.source,
)

RECIPES = (
    DEFORM3D,
    DEFORM3D_KNOWN,
    DEFORM3D_KNOWN_GROWN,
    DEFORM3D_PAPER,
    DEFORM3D_UNANNEALED,
    DEFORM3D_FIXED,
    DEFORM2D,
    DEFORM2D_KNOWN,
    DEFORM2D_KNOWN_GROWN,
    DEFORM2D_PAPER,
    DEFORM2D_FIXED,
)
