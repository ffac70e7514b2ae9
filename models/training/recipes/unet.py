"""How the fast denoisers are taught: as `fitvnet-spatial.camera` is, on noise as files have it.

That of images from fresh weights; that of video over its finished weights.
"""

from dataclasses import replace

from models.training.recipe import Phase
from models.training.recipes.fitvnet import FITVNET_CAMERA, FITVNET_SPATIAL_CAMERA

UNET_FAST = replace(
    FITVNET_SPATIAL_CAMERA,
    name="unet.fast",
    network="unet.fast",
    phases=(Phase(0.0, 96, 16), Phase(0.8, 128, 8)),
    learning_rate=1e-3,
    source="as FITVNet equation (7), clean targets",
)
# Motion is found by OpenCV, as for `fitvnet.camera`. What restores single frames stays as it is: image and video share
# it.
UNET_VIDEO = replace(
    FITVNET_CAMERA,
    name="unet.video",
    network="unet.video",
    phases=(Phase(0.0, 96, 4), Phase(0.8, 128, 3)),
    frames=5,
    learning_rate=4e-4,
    warmup_steps=100,
    gradient_clip=0.1,
    starts_from={"single": "unet.fast"},
    frozen=("single",),
    source="as FITVNet equation (9), on neighbours laid over the frame",
)

RECIPES = (UNET_FAST, UNET_VIDEO)
