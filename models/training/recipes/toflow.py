"""How TOFlow is taught: Xue et al. 2019, section 4: first the flow, then flow and processing together for the task."""

from torch import Tensor, nn

from models.networks.sampling import warped
from models.networks.toflow import WINDOW, TOFlow, apart
from models.training.recipe import Phase, Recipe, l1_norm, middle_of, restore_window

FLOW_ALONE = 0.25  # of the run


def joint_error(network: nn.Module, noisy: Tensor, _sigma: Tensor, clean: Tensor, progress: float) -> Tensor:
    """The paper's l1 of the restored frame; in the first quarter of the run that of the clean neighbours, moved.

    The paper trains its flow network on rendered scenes first, whose motion is known. Here the flow is found between
    noisy frames, and judged by how it lays the clean ones over each other.
    """
    assert isinstance(network, TOFlow)
    flows = network.flows(noisy.flatten(1, 2))
    if progress < FLOW_ALONE:
        frame, neighbours = apart(clean.flatten(1, 2))
        moved = warped(neighbours.flatten(0, 1), flows).view_as(neighbours)
        return l1_norm(moved, frame[:, None])
    restored = network.restored(noisy.flatten(1, 2), flows)
    return l1_norm(restored[:, None], middle_of(clean, 1))


TOFLOW = Recipe(
    name="toflow",
    network="toflow",
    restore=restore_window,
    objective=joint_error,
    phases=(Phase(0.0, 64, 4), Phase(0.5, 96, 2)),
    frames=WINDOW,
    footage_share=0.4,
    source="TOFlow, section 4",
)

RECIPES = (TOFLOW,)
