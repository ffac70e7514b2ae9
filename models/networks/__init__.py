"""The networks, one a file, and which one each denoiser of the catalogue is.

They need torch; only training, export and the torch engine import them. This file itself does not.

Every network is `forward(noisy, sigma)`, the stages it is cut into as well: `noisy` [N, T*C, H, W], `sigma` [N] on the
scale of `noisy`, which a blind one ignores; [N, C, H, W] comes back, not clamped.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where a denoiser's network is written, and which part of it each weights file fills."""

    module: str
    build: str  # a class in that module, with `stages()` as the catalogue names them
    parts: dict[str, str] = field(default_factory=dict)  # weights file -> submodule; a file not named fills the rest
    options: dict[str, Any] = field(default_factory=dict)  # what the class is built with


def _deform(grid: tuple[int, int, int], **options: Any) -> Wiring:
    return Wiring("models.networks.deform", "DeformableKernels", options={"grid": grid, **options})


_DEFORM_PAPER: dict[str, Any] = {  # Table 1
    "linear": True,
    "plane_by_plane": True,
    "widths": ((64, 128, 256, 512, 512), (512, 256, 128, 128)),
    "weight_width": 64,
}


def _kpn(**options: Any) -> Wiring:
    return Wiring("models.networks.kpn", "KPN", options=options)


# The run that both end with has as many maps as there are weights.
_KPN_PAPER: dict[str, Any] = {
    "linear": True,
    "plane_by_plane": True,
    "down": (64, 128, 256, 512, 512),
    "up": (512, 256),
}

WIRINGS: dict[str, Wiring] = {
    "fitvnet": Wiring("models.networks.fitvnet", "FITVNet", {"fitvnet-spatial": "spatial"}),
    "fitvnet.plain": Wiring("models.networks.fitvnet", "FITVNet", {"fitvnet-spatial": "spatial"}),
    "fitvnet.camera": Wiring("models.networks.fitvnet", "FITVNet", {"fitvnet-spatial.camera": "spatial"}),
    "fitvnet.mixed": Wiring("models.networks.fitvnet", "FITVNet", {"fitvnet-spatial.mixed": "spatial"}),
    "fitvnet-spatial": Wiring("models.networks.fitvnet", "SpatialModule"),
    "fitvnet-spatial.camera": Wiring("models.networks.fitvnet", "SpatialModule"),
    "fitvnet-spatial.mixed": Wiring("models.networks.fitvnet", "SpatialModule"),
    "dncnn": Wiring("models.networks.dncnn", "DnCNN"),
    "drnn": Wiring("models.networks.drnn", "DRNN"),
    "drnn.poisson": Wiring("models.networks.drnn", "DRNN"),
    "toflow": Wiring("models.networks.toflow", "TOFlow"),
    "fastdvdnet": Wiring("models.networks.fastdvdnet", "FastDVDnet", options={"widths": (24, 24, 48, 96)}),
    "fastdvdnet.paper": Wiring("models.networks.fastdvdnet", "FastDVDnet"),
    "dncnn.known": Wiring("models.networks.dncnn", "DnCNN", options={"told": True}),
    "dsc": Wiring("models.networks.dsc", "DSC", options={"widths": (64, 64, 128, 256, 256)}),
    "dsc.plain": Wiring(
        "models.networks.dsc", "DSC", options={"widths": (64, 64, 128, 256, 256), "gates": (1.0, 1.0, 1.0, 1.0)}
    ),
    "dsc.paper": Wiring("models.networks.dsc", "DSC"),
    "mwcnn": Wiring("models.networks.mwcnn", "MWCNN", options={"widths": (80, 80, 64, 64)}),
    "mwcnn.paper": Wiring("models.networks.mwcnn", "MWCNN"),
    "pridnet": Wiring(
        "models.networks.pridnet", "PRIDNet", options={"widths": (16, 32, 48, 48, 48), "scales": (5, 5, 5, 4, 3)}
    ),
    "pridnet.paper": Wiring("models.networks.pridnet", "PRIDNet"),
    "unet.fast": Wiring("models.networks.unet", "SmallUNet"),
    "unet.video": Wiring("models.networks.unet", "SmallVideoUNet", parts={"unet.fast": "single"}),
    "rednet": Wiring("models.networks.rednet", "REDNet"),
    "deform3d": _deform((3, 3, 3), frames=5),
    "deform3d.known": _deform((3, 3, 3), frames=5, told=True),
    "deform3d.paper": _deform((3, 3, 3), frames=5, **_DEFORM_PAPER),
    "deform2d": _deform((1, 5, 5)),
    "deform2d.known": _deform((1, 5, 5), told=True),
    "deform2d.paper": _deform((1, 5, 5), **_DEFORM_PAPER),
    "kpn": _kpn(),
    "kpn.7x7": _kpn(side=7),
    "kpn.burst": _kpn(frames=5),
    "kpn.paper": _kpn(**_KPN_PAPER),
    "kpn.burst.paper": _kpn(frames=5, **_KPN_PAPER),
}
