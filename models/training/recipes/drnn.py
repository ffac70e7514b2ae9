"""How the deep recurrent network is taught: Chen, Song, Yang 2016, on Gaussian and on Poisson-Gaussian noise.

Kept: cubes of patches from an empty state, all of whose frames count, and normalisation. The paper's stochastic descent
took ten days (rate 0.03 to 0.0001, momentum 0.9 to 0.999); the trainer's own gets somewhere in minutes. Its loss is not
told; this is the root of the mean square of normalised pixels, example by example, or in a batch of all levels the
noisiest would drown the others. The memory is followed over seven frames.
"""

from dataclasses import replace

from torch import Tensor, nn

from models.networks import drnn
from models.training.noise import PoissonGaussian
from models.training.recipe import Phase, Recipe, l2_norm, restore_window


def cube_error(network: nn.Module, noisy: Tensor, _sigma: Tensor, clean: Tensor, _progress: float) -> Tensor:
    """Root of the mean square of each example, averaged; over the patches of all its frames, unplaced."""
    assert isinstance(network, drnn.DRNN)
    return l2_norm(network.cubes(noisy).flatten(1, 2), drnn.patches_of(clean).flatten(1, 2))


DRNN = Recipe(
    name="drnn",
    network="drnn",
    restore=restore_window,
    objective=cube_error,
    phases=(Phase(0.0, 63, 12),),
    frames=drnn.WINDOW,
    footage_share=0.4,
    source="Deep RNNs for video denoising",
)

_LOW_LIGHT = PoissonGaussian(photons=(12.0, 400.0), sigma=(0.0, 25 / 255))

# To be started from the finished weights of `drnn`: hence the low rate.
DRNN_POISSON = replace(
    DRNN,
    name="drnn.poisson",
    network="drnn.poisson",
    noise=_LOW_LIGHT,
    watched={
        f"{photons:g} photons": PoissonGaussian((photons, photons), (10 / 255, 10 / 255))
        for photons in (30.0, 100.0, 500.0)
    },
    learning_rate=3e-4,
)

RECIPES = (DRNN, DRNN_POISSON)
