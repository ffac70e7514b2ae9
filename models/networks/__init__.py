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


WIRINGS: dict[str, Wiring] = {
    "fitvnet": Wiring("models.networks.fitvnet", "FITVNet", {"fitvnet-spatial": "spatial"}),
    "fitvnet-spatial": Wiring("models.networks.fitvnet", "SpatialModule"),
    "dncnn": Wiring("models.networks.dncnn", "DnCNN"),
}
