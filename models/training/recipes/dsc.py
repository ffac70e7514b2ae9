"""How the network with direct symmetric connections is taught: Zhao 2016, sections 3.2 and 4."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from models.catalogue import DNCNN
from models.networks.dncnn import DnCNN
from models.training.noise import Gaussian, Mixed, PartialPatch
from models.training.recipe import BLIND_GAUSSIAN, GAUSSIAN_LEVELS, Phase, Recipe, restore_image, supervised
from models.weights import load_network

PIXEL_WEIGHT = 10  # brings the error of pixels to half of the distance between maps, for pictures that are still noisy
FEATURE_DEPTH = 5  # convolutions: as many as the classifier of Table 2 has

# The paper names Gaussian noise with salt and pepper and no figures: DnCNN's range of levels, none to 10 % struck.
MIXED = Mixed(BLIND_GAUSSIAN, (0.0, 0.1))
VIMEO_MIXED = Mixed(Gaussian((25.5 / 255, 25.5 / 255)), (0.1, 0.1))


def squared_error(restored: Tensor, clean: Tensor) -> Tensor:
    """Section 3.2, as a mean over pixels instead of a sum."""
    return (restored.float() - clean).square().mean()


def perceptual_error(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Section 4.2: the squared distance between what another network makes of the restored and of the clean picture.

    With it goes the error of the pixels, weighed. The distance alone let the picture go black in less than a hundred
    steps, behind the last ReLU from where there is no way back, as in the paper ("black squares"): what tells noise
    from no noise hardly tells dark from bright.

    Args:
        features: [N, 3, H, W] to maps of any shape.
    """

    def loss(restored: Tensor, clean: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = features(clean.flatten(0, 1)).float()
        distance = squared_error(features(restored.flatten(0, 1)), wanted)
        return distance + PIXEL_WEIGHT * squared_error(restored, clean)

    return loss


def early_maps(pictures: Tensor) -> Tensor:
    """What the shipped DnCNN's first five convolutions make of pictures, in place of the paper's classifier.

    The classifier's weights were never published, and it had hardly learnt to tell its classes apart. Maps behind five
    3x3 convolutions describe 11x11 pixels: edges and texture, with no say of what they belong to.
    """
    maps: Tensor = _early_layers(pictures.device)(pictures)
    return maps


@cache
def _early_layers(device: torch.device) -> nn.Sequential:
    network = load_network(DNCNN)
    assert isinstance(network, DnCNN)
    folded = network.stages()[0]
    assert isinstance(folded, DnCNN)
    with_relu = list(folded.layers)[: 2 * FEATURE_DEPTH]
    return nn.Sequential(*with_relu).requires_grad_(False).to(device)


DSC = Recipe(
    name="dsc",
    network="dsc",
    restore=restore_image,
    objective=supervised(restore_image, squared_error),
    phases=(Phase(0.0, 64, 10),),  # section 4.2, for 10 000 iterations; by plain descent there
    noise=MIXED,
    watched={
        "25": GAUSSIAN_LEVELS["25"],
        "mixed": VIMEO_MIXED,
        "patch": PartialPatch(VIMEO_MIXED, (0.5, 0.5)),  # section 4.3
    },
    source="Zhao 2016 section 3.2, the mean squared error",
)

DSC_PLAIN = replace(DSC, name="dsc.plain", network="dsc.plain")

DSC_PAPER = replace(DSC, name="dsc.paper", network="dsc.paper")

DSC_PERCEPTUAL = replace(
    DSC,
    name="dsc-perceptual",
    objective=supervised(restore_image, perceptual_error(early_maps)),
    phases=(Phase(0.0, 64, 5),),  # the maps cost six times what the network does
    source="Zhao 2016 section 4.2, distance in the maps of a network",
)

RECIPES = (DSC, DSC_PLAIN, DSC_PAPER, DSC_PERCEPTUAL)
