"""Which denoisers there are, and all that is known of each before a weight is read."""

from dataclasses import dataclass
from typing import Literal

from models.errors import UnknownDenoiser

Kind = Literal["image", "video"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One graph of a cascade: reads a window over what the stage before it gave, and gives one result a frame."""

    name: str  # of the weights' graph: `models/shipped/<name>.onnx`
    frames: int = 1  # length of the window over the previous stage's results
    planes_in: int = 3  # per frame of the window
    planes_out: int = 3
    multiple: int = 1  # height and width must be multiples of it
    halo_px: int  # context beyond which a pixel no longer feels its surroundings; measured, see docs/models.md
    parameters: int  # as trained
    macs_per_pixel: int  # multiply-accumulates for one output pixel of one frame


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserSpec:
    """All that is known of a denoiser before a single weight is read.

    A stream runs each stage once a frame. The last stage's first `channels` planes are the restored frame.
    """

    name: str
    kind: Kind
    title: str
    channels: int = 3  # planes per frame: 1 grey, 3 RGB
    stages: tuple[StageSpec, ...]
    sigma: tuple[float, float] | None = None  # levels it must be told, on the [0, 1] scale; None when blind
    trained_sigma: tuple[float, float]  # levels it was trained on, on the [0, 1] scale
    source: str
    weights: tuple[str, ...]  # the files it is made of, `models/shipped/<name>.safetensors`
    shipped: bool = True  # its weights are; else it can be trained, and only then be served

    @property
    def frames(self) -> int:
        """Length of the window that one restored frame depends on."""
        return 1 + sum(stage.frames - 1 for stage in self.stages)

    @property
    def multiple(self) -> int:
        """Height and width are padded, by reflection, until it divides them."""
        return max(stage.multiple for stage in self.stages)

    @property
    def halo_px(self) -> int:
        return sum(stage.halo_px for stage in self.stages)

    @property
    def parameters(self) -> int:
        return sum(stage.parameters for stage in self.stages)

    @property
    def macs_per_pixel(self) -> int:
        return sum(stage.macs_per_pixel for stage in self.stages)


_FITVNET_SPATIAL = StageSpec(
    name="fitvnet-spatial",
    planes_out=4,  # RGB and the noise map that the blocks behind it read
    multiple=16,
    halo_px=64,
    parameters=1_095_123,
    macs_per_pixel=238_077,
)
_FITVNET_SOURCE = "Wang, Zhou, Cheng 2020, First image then video, Tables 5 and 6"
_TRAINED_SIGMA = (0.0, 55 / 255)

FITVNET = DenoiserSpec(
    name="fitvnet",
    kind="video",
    title="FITVNet: a spatial U-Net, then two spatiotemporal U-Nets over five frames",
    stages=(
        _FITVNET_SPATIAL,
        StageSpec(
            name="fitvnet-first",
            frames=3,
            planes_in=4,
            planes_out=4,
            multiple=4,
            halo_px=24,
            parameters=1_238_821,
            macs_per_pixel=159_048,
        ),
        StageSpec(
            name="fitvnet-second",
            frames=3,
            planes_in=4,
            planes_out=3,
            multiple=4,
            halo_px=32,
            parameters=1_238_821,
            macs_per_pixel=159_048,
        ),
    ),
    trained_sigma=_TRAINED_SIGMA,
    source=_FITVNET_SOURCE,
    weights=("fitvnet-spatial", "fitvnet"),
)

FITVNET_SPATIAL = DenoiserSpec(
    name="fitvnet-spatial",
    kind="image",
    title="FITVNet's spatial module by itself",
    stages=(_FITVNET_SPATIAL,),
    trained_sigma=_TRAINED_SIGMA,
    source=_FITVNET_SOURCE,
    weights=("fitvnet-spatial",),
)

DNCNN = DenoiserSpec(
    name="dncnn",
    kind="image",
    title="DnCNN, blind, colour: twenty plain convolutions",
    stages=(
        StageSpec(name="dncnn", halo_px=20, parameters=669_379, macs_per_pixel=667_008),
    ),  # twenty 3x3 layers: exact
    trained_sigma=_TRAINED_SIGMA,
    source="Zhang et al. 2017, arXiv:1608.03981",
    weights=("dncnn",),
)

DESCRIBED: dict[str, DenoiserSpec] = {spec.name: spec for spec in (FITVNET, FITVNET_SPATIAL, DNCNN)}
CATALOGUE: dict[str, DenoiserSpec] = {name: spec for name, spec in DESCRIBED.items() if spec.shipped}  # can be served
AUTO: dict[Kind, str] = {"image": FITVNET_SPATIAL.name, "video": FITVNET.name}  # what `auto` stands for


def find(name: str, kind: Kind | None = None) -> DenoiserSpec:
    """Look a denoiser up by name; `auto` is the best for the kind of input.

    A denoiser for images also does videos, frame by frame; one that needs neighbouring frames does no images.

    Raises:
        UnknownDenoiser: no such name, or a video denoiser asked for an image.
    """
    if name == "auto" and kind is not None:
        return CATALOGUE[AUTO[kind]]
    if name not in CATALOGUE:
        known = [*(["auto"] if kind else []), *CATALOGUE]  # without a kind, `auto` stands for nothing
        raise UnknownDenoiser(f"model is {name!r}; known are {', '.join(known)}")
    spec = CATALOGUE[name]
    if kind == "image" and spec.kind == "video":
        images = [other.name for other in CATALOGUE.values() if other.kind == "image"]
        raise UnknownDenoiser(f"model {name!r} needs neighbouring frames; for one image take {', '.join(images)}")
    return spec
