"""How the fast denoiser is taught: as `fitvnet-spatial.camera` is, on noise as files have it, from fresh weights."""

from dataclasses import replace

from models.training.recipe import Phase
from models.training.recipes.fitvnet import FITVNET_SPATIAL_CAMERA

UNET_FAST = replace(
    FITVNET_SPATIAL_CAMERA,
    name="unet.fast",
    network="unet.fast",
    phases=(Phase(0.0, 96, 16), Phase(0.8, 128, 8)),
    learning_rate=1e-3,
    source="as FITVNet equation (7), clean targets",
)

RECIPES = (UNET_FAST,)
