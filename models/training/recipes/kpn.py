"""How KPN is taught: Mildenhall et al. 2018, its basic and its annealed loss; the noise is that of `deform.py`."""

from dataclasses import replace

from torch import Tensor

from models.training.recipe import Phase, Recipe, restore_image, restore_window
from models.training.recipes.deform import PHASES, SENSOR_OR_GAUSSIAN, WATCHED, annealed


def values_and_gradients(restored: Tensor, clean: Tensor) -> Tensor:
    """The squared error of encoded pixels, and the absolute error of their differences to the next, halved."""
    error = restored.float() - clean
    down, across = error[..., 1:, :] - error[..., :-1, :], error[..., :, 1:] - error[..., :, :-1]
    gradient: Tensor = 0.5 * (down.abs().mean() + across.abs().mean()) / 2
    return error.square().mean() + gradient


KPN = Recipe(
    name="kpn",
    network="kpn",
    restore=restore_image,
    objective=annealed(values_and_gradients, eta=0.0),  # one frame: nothing to anneal
    phases=PHASES,
    noise=SENSOR_OR_GAUSSIAN,
    watched=WATCHED,
    source="KPN, its basic loss",
)
KPN_7X7 = replace(KPN, name="kpn.7x7", network="kpn.7x7")
# Not the paper's, to be started beside the finished weights of `kpn`: what those have learnt need not be learnt twice.
KPN_7X7_GROWN = replace(KPN_7X7, name="kpn.7x7-grown", learning_rate=5e-4, grows_from="kpn")
KPN_BURST = replace(
    KPN,
    name="kpn.burst",
    network="kpn.burst",
    restore=restore_window,
    objective=annealed(values_and_gradients),
    frames=5,
    footage_share=0.4,
    source="KPN, its annealed loss",
)
# Not the paper's: in the minutes that a core has, kernels for five frames fall behind what those for one learnt in as
# many. To be started beside the finished weights of `kpn`; to anneal would be to unlearn them.
KPN_BURST_GROWN = replace(
    KPN_BURST,
    name="kpn.burst-grown",
    objective=annealed(values_and_gradients, eta=0.0),
    learning_rate=5e-4,
    grows_from="kpn",
    source="KPN, its basic loss, from the weights for one frame",
)
# The paper: batches of 4, a million steps.
KPN_PAPER = replace(KPN, name="kpn.paper", network="kpn.paper", phases=(Phase(0.0, 128, 4),), learning_rate=1e-4)
KPN_BURST_PAPER = replace(
    KPN_BURST, name="kpn.burst.paper", network="kpn.burst.paper", phases=(Phase(0.0, 128, 4),), learning_rate=1e-4
)

RECIPES = (KPN, KPN_7X7, KPN_7X7_GROWN, KPN_BURST, KPN_BURST_GROWN, KPN_PAPER, KPN_BURST_PAPER)
