"""How the networks for noise of cameras are taught: on real pairs, on camera noise made up, and on Gaussian noise."""

from dataclasses import replace

from models.training.noise import Camera, Either
from models.training.recipe import (
    BLIND_GAUSSIAN,
    GAUSSIAN_LEVELS,
    Phase,
    Recipe,
    half_squared_error,
    l1_norm,
    restore_image,
    supervised,
)

CAMERA_OR_GAUSSIAN = Either(((Camera(), 0.6), (BLIND_GAUSSIAN, 0.4)))

PRIDNET = Recipe(
    name="pridnet",
    network="pridnet",
    restore=restore_image,
    objective=supervised(restore_image, l1_norm),  # section 3.2
    # The paper trains on 256x256 for 4000 epochs, with a rate that falls in steps from 1e-4.
    phases=(Phase(0.0, 64, 16), Phase(0.5, 128, 5)),
    noise=CAMERA_OR_GAUSSIAN,
    watched={"camera": Camera(), "25": GAUSSIAN_LEVELS["25"], "50": GAUSSIAN_LEVELS["50"]},
    pair_share=0.3,
    learning_rate=6e-4,
    source="PRIDNet section 3.2, L1",
)

PRIDNET_PAPER = replace(PRIDNET, name="pridnet.paper", network="pridnet.paper", phases=(Phase(0.0, 256, 2),))

MWCNN = replace(
    PRIDNET,  # but for the loss, taught alike, so that the three can be set side by side
    name="mwcnn",
    network="mwcnn",
    objective=supervised(restore_image, half_squared_error),
    # Behind normalisation over a batch of five, of several kinds of noise, what it learnt did not hold for one picture.
    phases=(Phase(0.0, 64, 16),),
    learning_rate=2e-3,
    source="MWCNN, half the squared error",
)

# The paper trains one network a noise level, on 240x240, batches of 24, for 40 epochs.
MWCNN_PAPER = replace(MWCNN, name="mwcnn.paper", network="mwcnn.paper", phases=(Phase(0.0, 240, 2),))

REDNET = replace(
    PRIDNET,
    name="rednet",
    network="rednet",
    objective=supervised(restore_image, half_squared_error),
    phases=(Phase(0.0, 50, 16),),  # the paper's patches
    learning_rate=1e-3,
    source="RED-Net, the mean squared error",
)

RECIPES = (PRIDNET, PRIDNET_PAPER, MWCNN, MWCNN_PAPER, REDNET)
