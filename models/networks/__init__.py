"""The networks, one a file, and which one each denoiser of the catalogue is.

They need torch; only training, export and the torch engine import them. This file itself does not.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where a denoiser's network is written, and which part of it each weights file fills."""

    module: str
    build: str  # a class in that module: no arguments, and `stages()` as the catalogue names them
    parts: dict[str, str] = field(default_factory=dict)  # weights file -> submodule; a file not named fills the rest


WIRINGS: dict[str, Wiring] = {
    "fitvnet": Wiring("models.networks.fitvnet", "FITVNet", {"fitvnet-spatial": "spatial"}),
    "fitvnet-spatial": Wiring("models.networks.fitvnet", "SpatialModule"),
    "dncnn": Wiring("models.networks.dncnn", "DnCNN"),
}
