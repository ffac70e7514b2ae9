"""Which denoisers there are, and all that is known of each before a weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from models.errors import UnknownDenoiser

Kind = Literal["image", "video"]
Taught = Literal["gaussian", "grey", "camera", "mixed", "signal-dependent", "poisson-gaussian"]

SHIPPED_DIR = Path(__file__).parent / "shipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One graph of a cascade: reads a window over what the stage before it gave, and gives one result a frame."""

    name: str  # of the weights' graph: `models/shipped/<name>.onnx`
    frames: int = 1  # length of the window over the previous stage's results
    planes_in: int = 3  # per frame of the window
    planes_out: int = 3
    multiple: int = 1  # height and width must be multiples of it
    halo_px: int  # context beyond which a pixel no longer feels its surroundings; measured, see docs/models.md
    averages_all: bool = False  # over whatever it is given, a tile or a picture: tiles differ by a shade from the whole
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
    aligned: bool = False  # in a window of three, the outer two are laid over the middle one first, along their motion
    sigma: tuple[float, float] | None = None  # levels it must be told, on the [0, 1] scale; None when blind
    trained_sigma: tuple[float, float]  # levels it was trained on, on the [0, 1] scale
    taught: tuple[Taught, ...] = ("gaussian",)  # the kinds of noise that it was trained on
    source: str
    weights: tuple[str, ...]  # the files it is made of, `models/shipped/<name>.safetensors`; none if it is no network
    shipped: bool = True  # its weights are; else it can be trained, and only then be served
    # Who restores grey pictures in its stead. Networks know noise by the colours' not agreeing: that of a grey picture,
    # the same in all three planes, they take for texture unless they were taught otherwise.
    for_grey: str | None = None
    home: Path = SHIPPED_DIR  # where its weights and graphs lie
    adapted_from: str | None = None  # the denoiser whose network it is, with weights of its own; see `models/own.py`

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
    title="FITVNet: a spatial U-Net, then two spatiotemporal ones over five frames, laid over the one in the middle",
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
    aligned=True,
    trained_sigma=_TRAINED_SIGMA,
    source=f"{_FITVNET_SOURCE}; motion: Kroeger et al. 2016, arXiv:1603.03590",
    weights=("fitvnet-spatial", "fitvnet"),
)
# As the paper has it: its blocks are to find what moved by themselves. They look a few pixels far.
FITVNET_PLAIN = replace(
    FITVNET,
    name="fitvnet.plain",
    title="FITVNet, neighbours where they are",
    aligned=False,
    source=_FITVNET_SOURCE,
)

FITVNET_SPATIAL = DenoiserSpec(
    name="fitvnet-spatial",
    kind="image",
    title="FITVNet's spatial module by itself",
    stages=(_FITVNET_SPATIAL,),
    trained_sigma=_TRAINED_SIGMA,
    source=_FITVNET_SOURCE,
    weights=("fitvnet-spatial",),
    for_grey="fitvnet-spatial.camera",
)
# What uploads have in them: noise of cameras, noise whose colours a file stored at half the resolution, grey films.
_IN_FILES: tuple[Taught, ...] = ("camera", "gaussian", "grey")
FITVNET_SPATIAL_CAMERA = replace(
    FITVNET_SPATIAL,
    name="fitvnet-spatial.camera",
    title="FITVNet's spatial module, for noise as files have it: of cameras, in 4:2:0 and JPEG, grey, and plain",
    stages=(replace(_FITVNET_SPATIAL, name="fitvnet-spatial.camera", halo_px=96),),
    taught=_IN_FILES,
    weights=("fitvnet-spatial.camera",),
    for_grey=None,
)

FITVNET_CAMERA = replace(
    FITVNET,
    name="fitvnet.camera",
    title="FITVNet over noise as files have it",
    stages=(*FITVNET_SPATIAL_CAMERA.stages, *FITVNET.stages[1:]),
    taught=_IN_FILES,
    weights=("fitvnet-spatial.camera", "fitvnet"),
)

FITVNET_SPATIAL_MIXED = replace(
    FITVNET_SPATIAL_CAMERA,
    name="fitvnet-spatial.mixed",
    title="FITVNet's spatial module, for Gaussian noise with salt and pepper",
    stages=(replace(_FITVNET_SPATIAL, name="fitvnet-spatial.mixed", halo_px=96),),
    taught=("gaussian", "mixed", "grey"),
    weights=("fitvnet-spatial.mixed",),
)
FITVNET_MIXED = replace(
    FITVNET,
    name="fitvnet.mixed",
    title="FITVNet over Gaussian noise with salt and pepper",
    stages=(*FITVNET_SPATIAL_MIXED.stages, *FITVNET.stages[1:]),
    taught=FITVNET_SPATIAL_MIXED.taught,
    weights=("fitvnet-spatial.mixed", "fitvnet"),
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

_PRIDNET_SOURCE = "Zhao et al. 2019, arXiv:1908.00273"
# Channel attention and kernel selection average over all that they see, a tile or a picture: there is no distance
# beyond which a pixel has no say, only one beyond which it has little.
_PRIDNET_HALO_PX = 64

PRIDNET = DenoiserSpec(
    name="pridnet",
    kind="image",
    title="PRIDNet, narrow: channel attention, a pyramid of U-Nets, kernel selection; for noise of cameras",
    stages=(
        StageSpec(
            name="pridnet",
            multiple=64,
            halo_px=_PRIDNET_HALO_PX,
            averages_all=True,
            parameters=2_150_539,
            macs_per_pixel=130_756,
        ),
    ),
    trained_sigma=_TRAINED_SIGMA,
    taught=("camera", "gaussian"),
    source=_PRIDNET_SOURCE,
    weights=("pridnet",),
)

PRIDNET_PAPER = DenoiserSpec(
    name="pridnet.paper",
    kind="image",
    title="PRIDNet at the paper's widths",
    stages=(
        StageSpec(
            name="pridnet.paper",
            multiple=256,
            halo_px=_PRIDNET_HALO_PX,
            averages_all=True,
            parameters=74_228_123,
            macs_per_pixel=484_996,
        ),
    ),
    trained_sigma=_TRAINED_SIGMA,
    taught=("camera", "gaussian"),
    source=_PRIDNET_SOURCE,
    weights=("pridnet.paper",),
    shipped=False,
)

_FASTDVDNET_SOURCE = "Tassano, Delon, Veit 2020, arXiv:1907.01361"
_FASTDVDNET_SIGMA = (5 / 255, 55 / 255)
_FASTDVDNET_HALO_PX = 40  # how far a block reaches at all: 37 pixels, and the phase of its strides


def _fastdvdnet(name: str, title: str, *, parameters: int, macs_per_pixel: int, shipped: bool = False) -> DenoiserSpec:
    """Two steps of one make; the figures are one step's."""
    first, second = (
        StageSpec(
            name=f"{name}-{step}",
            frames=3,
            multiple=4,
            halo_px=_FASTDVDNET_HALO_PX,
            parameters=parameters,
            macs_per_pixel=macs_per_pixel,
        )
        for step in ("first", "second")
    )
    return DenoiserSpec(
        name=name,
        kind="video",
        title=title,
        stages=(first, second),
        sigma=_FASTDVDNET_SIGMA,
        trained_sigma=_FASTDVDNET_SIGMA,
        source=_FASTDVDNET_SOURCE,
        weights=(name,),
        shipped=shipped,
    )


FASTDVDNET = _fastdvdnet(
    "fastdvdnet",
    "FastDVDnet, narrow: one small U-Net twice over five frames, told the noise level",
    parameters=699_576,
    macs_per_pixel=91_368,
    shipped=True,
)
FASTDVDNET_PAPER = _fastdvdnet(
    "fastdvdnet.paper", "FastDVDnet at the paper's widths", parameters=1_239_548, macs_per_pixel=159_048
)


def _for_images(
    name: str,
    title: str,
    source: str,
    *,
    multiple: int = 1,
    halo_px: int,
    parameters: int,
    macs_per_pixel: int,
    sigma: tuple[float, float] | None = None,
    taught: tuple[Taught, ...] = ("gaussian",),
    shipped: bool = False,
) -> DenoiserSpec:
    """A denoiser of one stage that reads one frame."""
    stage = StageSpec(
        name=name, multiple=multiple, halo_px=halo_px, parameters=parameters, macs_per_pixel=macs_per_pixel
    )
    return DenoiserSpec(
        name=name,
        kind="image",
        title=title,
        stages=(stage,),
        sigma=sigma,
        trained_sigma=_TRAINED_SIGMA,
        taught=taught,
        source=source,
        weights=(name,),
        shipped=shipped,
    )


_MWCNN_SOURCE = "Liu et al. 2018, arXiv:1805.07071"

MWCNN = _for_images(
    "mwcnn",
    "MWCNN, narrow: a U-Net that goes down and up by four levels of Haar wavelets; for noise of cameras",
    _MWCNN_SOURCE,
    multiple=16,
    halo_px=80,
    parameters=2_281_036,
    macs_per_pixel=152_584,
    taught=("camera", "gaussian"),
    shipped=True,
)
MWCNN_PAPER = _for_images(
    "mwcnn.paper",
    "MWCNN at the paper's widths, with a fourth level",
    _MWCNN_SOURCE,
    multiple=16,
    halo_px=80,
    parameters=24_438_476,
    macs_per_pixel=921_528,
    taught=("camera", "gaussian"),
)

_UNET_SOURCE = "no paper's; parts of FFDNet, arXiv:1710.04026, and FastDVDnet, arXiv:1907.01361"

UNET_FAST = _for_images(
    "unet.fast",
    "A small U-Net at half size and below, for noise as files have it, where time counts",
    _UNET_SOURCE,
    multiple=8,
    halo_px=64,
    parameters=864_492,
    macs_per_pixel=31_424,
    taught=_IN_FILES,
    shipped=True,
)

UNET_VIDEO = DenoiserSpec(
    name="unet.video",
    kind="video",
    title="Small U-Nets over a frame and over three, for noise as files have it, where time counts",
    stages=(
        replace(UNET_FAST.stages[0], name="unet.video-single", planes_out=6),
        StageSpec(
            name="unet.video-over",
            frames=3,
            planes_in=6,
            multiple=8,
            halo_px=48,
            parameters=948_284,
            macs_per_pixel=50_800,
        ),
    ),
    aligned=True,
    trained_sigma=_TRAINED_SIGMA,
    taught=_IN_FILES,
    source=f"{_UNET_SOURCE}, and FITVNet; motion: Kroeger et al. 2016, arXiv:1603.03590",
    weights=("unet.fast", "unet.video"),
)

_CLASSICAL_SIGMA = (0.0, 100 / 255)  # nothing was trained; beyond it there is hardly a picture left

NLM = DenoiserSpec(
    name="nlm",
    kind="image",
    title="Non-local means: no network, but a mean of pixels with like neighbourhoods",
    stages=(StageSpec(name="nlm", halo_px=7, parameters=0, macs_per_pixel=0),),  # half the window, half a patch: exact
    sigma=_CLASSICAL_SIGMA,
    trained_sigma=_CLASSICAL_SIGMA,
    source="Buades, Coll, Morel 2005, A non-local algorithm for image denoising; computed by OpenCV",
    weights=(),
)
BM3D = DenoiserSpec(
    name="bm3d",
    kind="image",
    title="BM3D for colour: no network, but like blocks filtered together in a transform domain",
    stages=(StageSpec(name="bm3d", halo_px=48, parameters=0, macs_per_pixel=0),),  # two steps, each half 39 and 8
    sigma=_CLASSICAL_SIGMA,
    trained_sigma=_CLASSICAL_SIGMA,
    source="Dabov et al. 2007, doi:10.1109/TIP.2007.901238; computed by its authors' package",
    weights=(),
    shipped=False,  # for good: the package's licence forbids commercial use; `quietframe eval` can measure it
)

REDNET = _for_images(
    "rednet",
    "RED-Net: five convolutions and five deconvolutions with skips; for noise of cameras",
    "Mao, Shen, Yang 2016, arXiv:1603.09056",
    halo_px=10,  # ten 3x3 layers: exact
    parameters=298_947,
    macs_per_pixel=298_368,
    taught=("camera", "gaussian"),
    shipped=True,
)

_DSC_SOURCE = "Zhao 2016, Image denoising with deep convolutional neural networks, Table 1"
_DSC_HALO_PX = 48  # its five 3x3 layers down and five up reach 47 pixels

DSC = _for_images(
    "dsc",
    "Five convolutions and five deconvolutions with direct symmetric connections; also for salt and pepper",
    _DSC_SOURCE,
    multiple=16,
    halo_px=_DSC_HALO_PX,
    parameters=1_995_395,
    macs_per_pixel=44_928,
    taught=("gaussian", "mixed"),
    shipped=True,
)
DSC_PLAIN = _for_images(
    "dsc.plain",
    "Five convolutions and five deconvolutions without the connections",
    _DSC_SOURCE,
    multiple=16,
    halo_px=_DSC_HALO_PX,
    parameters=1_995_395,
    macs_per_pixel=44_928,
    taught=("gaussian", "mixed"),
)
DSC_PAPER = _for_images(
    "dsc.paper",
    "Direct symmetric connections at the paper's widths",
    _DSC_SOURCE,
    multiple=16,
    halo_px=_DSC_HALO_PX,
    parameters=3_202_953,
    macs_per_pixel=49_644,
    taught=("gaussian", "mixed"),
)

DNCNN_KNOWN = _for_images(
    "dncnn.known",
    "DnCNN, told the noise level, colour",
    DNCNN.source,
    halo_px=20,
    parameters=669_955,
    macs_per_pixel=667_584,
    sigma=_TRAINED_SIGMA,
    shipped=True,
)

_DRNN_STAGE = StageSpec(
    name="drnn",
    frames=7,
    multiple=3,
    halo_px=9,  # a pixel is in patches that begin up to eight pixels before it: exact
    parameters=389_619,
    macs_per_pixel=131_040,
)
_DRNN_SOURCE = "Chen, Song, Yang 2016, Deep RNNs for video denoising"

DRNN = DenoiserSpec(
    name="drnn",
    kind="video",
    title="Deep RNN: two tanh layers with a memory over patches of 9x9, three frames back",
    stages=(_DRNN_STAGE,),
    trained_sigma=_TRAINED_SIGMA,
    source=_DRNN_SOURCE,
    weights=("drnn",),
)
DRNN_POISSON = DenoiserSpec(
    name="drnn.poisson",
    kind="video",
    title="Deep RNN, for Poisson-Gaussian noise",
    stages=(replace(_DRNN_STAGE, name="drnn.poisson"),),
    trained_sigma=_TRAINED_SIGMA,  # of photons and electronics together
    taught=("poisson-gaussian",),
    source=_DRNN_SOURCE,
    weights=("drnn.poisson",),
)


def _kernels(
    name: str,
    title: str,
    source: str,
    *,
    frames: int = 1,
    halo_px: int,
    parameters: int,
    macs_per_pixel: int,
    sigma: tuple[float, float] | None = None,
    shipped: bool = False,
) -> DenoiserSpec:
    """A denoiser that averages pixels of one frame or several, with weights of its own for every pixel."""
    stage = StageSpec(
        name=name,
        frames=frames,
        multiple=16,
        halo_px=halo_px,
        parameters=parameters,
        macs_per_pixel=macs_per_pixel,
    )
    return DenoiserSpec(
        name=name,
        kind="image" if frames == 1 else "video",
        title=title,
        stages=(stage,),
        sigma=sigma,
        trained_sigma=_TRAINED_SIGMA,
        taught=("signal-dependent", "gaussian"),
        source=source,
        weights=(name,),
        shipped=shipped,
    )


_DEFORM_SOURCE = "Xu, Li, Sun 2019, Learning deformable kernels for image and video denoising"

DEFORM3D = _kernels(
    "deform3d",
    "Deformable 3D kernels, narrow: for every pixel a mean of 27 others, wherever in five frames they lie",
    _DEFORM_SOURCE,
    frames=5,
    halo_px=64,
    parameters=1_119_650,
    macs_per_pixel=155_052,
    shipped=True,
)
DEFORM3D_KNOWN = _kernels(
    "deform3d.known",
    "Deformable 3D kernels, narrow, told the noise level",
    _DEFORM_SOURCE,
    frames=5,
    halo_px=64,
    parameters=1_120_946,
    macs_per_pixel=156_348,
    sigma=_TRAINED_SIGMA,
    shipped=True,
)
DEFORM3D_PAPER = _kernels(
    "deform3d.paper",
    "Deformable 3D kernels at the paper's widths, colour by colour",
    _DEFORM_SOURCE,
    frames=5,
    halo_px=64,
    parameters=25_463_340,
    macs_per_pixel=3_957_120,
)
DEFORM2D = _kernels(
    "deform2d",
    "Deformable 2D kernels, narrow: for every pixel a mean of 25 others, wherever around it they lie",
    _DEFORM_SOURCE,
    halo_px=64,
    parameters=1_102_045,
    macs_per_pixel=137_484,
    shipped=True,
)
DEFORM2D_KNOWN = _kernels(
    "deform2d.known",
    "Deformable 2D kernels, narrow, told the noise level",
    _DEFORM_SOURCE,
    halo_px=64,
    parameters=1_103_341,
    macs_per_pixel=138_780,
    sigma=_TRAINED_SIGMA,
    shipped=True,
)
DEFORM2D_PAPER = _kernels(
    "deform2d.paper",
    "Deformable 2D kernels at the paper's widths, colour by colour",
    _DEFORM_SOURCE,
    halo_px=64,
    parameters=25_420_683,
    macs_per_pixel=3_829_248,
)


_KPN_SOURCE = "Mildenhall et al. 2018, arXiv:1712.02327; for one picture as in Xu, Li, Sun 2019"

KPN = _kernels(
    "kpn",
    "KPN, narrow: for every pixel a mean of the 5x5 around it",
    _KPN_SOURCE,
    halo_px=64,
    parameters=1_204_875,
    macs_per_pixel=89_676,
    shipped=True,
)
KPN_7X7 = _kernels(
    "kpn.7x7",
    "KPN, narrow: for every pixel a mean of the 7x7 around it",
    _KPN_SOURCE,
    halo_px=64,
    parameters=1_236_051,
    macs_per_pixel=120_780,
    shipped=True,
)
KPN_BURST = _kernels(
    "kpn.burst",
    "KPN, narrow: for every pixel a mean of the 5x5 around it in each of five frames",
    _KPN_SOURCE,
    frames=5,
    halo_px=64,
    parameters=1_336_503,
    macs_per_pixel=221_004,
    shipped=True,
)
KPN_PAPER = _kernels(
    "kpn.paper",
    "KPN at the paper's widths, colour by colour",
    _KPN_SOURCE,
    halo_px=64,
    parameters=27_390_031,
    macs_per_pixel=2_220_736,
)
KPN_BURST_PAPER = _kernels(
    "kpn.burst.paper",
    "KPN for five frames at the paper's widths, colour by colour",
    _KPN_SOURCE,
    frames=5,
    halo_px=64,
    parameters=28_143_335,
    macs_per_pixel=3_094_348,
)

TOFLOW = DenoiserSpec(
    name="toflow",
    kind="video",
    title="TOFlow, narrow: seven frames laid over each other along their motion, then cleaned",
    stages=(StageSpec(name="toflow", frames=7, multiple=16, halo_px=64, parameters=257_259, macs_per_pixel=197_465),),
    trained_sigma=_TRAINED_SIGMA,
    source="Xue et al. 2019, arXiv:1711.09078",
    weights=("toflow",),
)

_ALL = (
    FITVNET,
    FITVNET_PLAIN,
    FITVNET_CAMERA,
    FITVNET_MIXED,
    FITVNET_SPATIAL,
    FITVNET_SPATIAL_CAMERA,
    FITVNET_SPATIAL_MIXED,
    DNCNN,
    PRIDNET,
    PRIDNET_PAPER,
    DRNN,
    DRNN_POISSON,
    TOFLOW,
    FASTDVDNET,
    FASTDVDNET_PAPER,
    MWCNN,
    MWCNN_PAPER,
    UNET_FAST,
    UNET_VIDEO,
    NLM,
    BM3D,
    REDNET,
    DSC,
    DSC_PLAIN,
    DSC_PAPER,
    DNCNN_KNOWN,
    DEFORM3D,
    DEFORM3D_KNOWN,
    DEFORM3D_PAPER,
    DEFORM2D,
    DEFORM2D_KNOWN,
    DEFORM2D_PAPER,
    KPN,
    KPN_7X7,
    KPN_BURST,
    KPN_PAPER,
    KPN_BURST_PAPER,
)
DESCRIBED: dict[str, DenoiserSpec] = {spec.name: spec for spec in _ALL}
CATALOGUE: dict[str, DenoiserSpec] = {name: spec for name, spec in DESCRIBED.items() if spec.shipped}  # can be served
AUTO: dict[Kind, str] = {"image": FITVNET_SPATIAL_CAMERA.name, "video": FITVNET_CAMERA.name}  # what `auto` stands for


def find(name: str, kind: Kind | None = None, own: Mapping[str, DenoiserSpec] | None = None) -> DenoiserSpec:
    """Look a denoiser up by name; `auto` is the best for the kind of input.

    A denoiser for images also does videos, frame by frame; one that needs neighbouring frames does no images.

    Args:
        name: as the catalogue has it, or `own`.
        kind: of the input; None where only the denoiser itself is wanted.
        own: denoisers beside the catalogue's.

    Raises:
        UnknownDenoiser: no such name, or a video denoiser asked for an image.
    """
    if name == "auto" and kind is not None:
        return CATALOGUE[AUTO[kind]]
    all_known = {**(own or {}), **CATALOGUE}
    if name not in all_known:
        known = [*(["auto"] if kind else []), *CATALOGUE, *(own or {})]  # without a kind, `auto` stands for nothing
        raise UnknownDenoiser(f"model is {name!r}; known are {', '.join(known)}")
    spec = all_known[name]
    if kind == "image" and spec.kind == "video":
        images = [other.name for other in CATALOGUE.values() if other.kind == "image"]
        raise UnknownDenoiser(f"model {name!r} needs neighbouring frames; for one image take {', '.join(images)}")
    return spec
