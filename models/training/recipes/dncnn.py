"""How DnCNN is taught: Zhang et al. 2017, section III and equation (1)."""

from dataclasses import replace

from models.training.recipe import Phase, Recipe, half_squared_error, restore_image, supervised

DNCNN = Recipe(
    name="dncnn",
    network="dncnn",
    restore=restore_image,
    objective=supervised(restore_image, half_squared_error),
    phases=(Phase(0.0, 40, 32),),  # the paper's patches are 50x50, its batches 128
    source="DnCNN equation (1)",
)

DNCNN_KNOWN = replace(DNCNN, name="dncnn.known", network="dncnn.known")

RECIPES = (DNCNN, DNCNN_KNOWN)
