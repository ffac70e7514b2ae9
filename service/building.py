"""What `quietframe build` does: makes engines ready before a worker needs them, and looks after those there are."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models.catalogue import CATALOGUE, DenoiserSpec, StageSpec
from models.errors import NeedsExtra, QuietframeError
from models.own import Library
from service.errors import BadInput
from service.media.image import read_image
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import build_options
from service.settings import Settings
from trtbuild.build import Workshop, is_of_this_machine
from trtbuild.engine import Array, BackendUnavailable, EngineFailed, OutOfDeviceMemory, Precision, PrecisionLost
from trtbuild.gpus import nvidia_gpus
from trtbuild.store import Store, Stored
from trtbuild.ways import Way, ways

CALIBRATION_PX = 256
MOST_CALIBRATION_PICTURES = 64
OnStep = Callable[[str, str, float, str], None]  # told stage, way, share that is done, and what runs

_FAILS = (BackendUnavailable, NeedsExtra, PrecisionLost, EngineFailed, OutOfDeviceMemory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What came of one stage."""

    model: str
    stage: str
    backend: str
    precision: str
    state: str  # built, checked, stored (it was there already) or failed
    seconds: float
    size_bytes: int = 0
    psnr_db: float | None = None  # against the float32 reference
    error: str | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An entry of the store."""

    name: str
    digest: str
    size_bytes: int
    made_at: float  # seconds since 1970
    psnr_db: float | None
    usable: bool  # the versions and the device that it was made for are still those of this machine
    problem: str | None = None  # None if it is what was put in, or was not asked for

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def build_engines(
    names: Sequence[str],
    settings: Settings,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    calibration: Path | None = None,
    on_step: OnStep,
) -> Iterator[Step]:
    """Export, check, compile, verify and keep; what is there already is left as it is.

    Args:
        names: of models; none for the whole catalogue.
        settings: tile size, batch, where engines are kept.
        backend: one alone; `auto` for the best that can be used here.
        precision: one alone; None for the one that a worker would take first.
        calibration: folder of clean pictures, for int8.
        on_step: told of progress, several times a second; what it raises ends the build.

    Yields:
        what came of each stage, failures too: the others go on.

    Raises:
        UnknownDenoiser: no such model.
        BadInput: int8 without pictures.
        UnsafeStore: others can get at the folder of built engines.
    """
    library = Library(settings.own_models_dir)
    specs = [library.find(name) for name in names] if names else list(CATALOGUE.values())
    workshop = Workshop(Store(settings.own_engines_dir), options=build_options(settings), threads=settings.threads)
    candidates = ways(has_gpu=bool(nvidia_gpus()), backend=backend, precision=precision)
    if backend != "auto":
        candidates = [way for way in candidates if way.backend == backend]
    if precision is not None:
        candidates = [way for way in candidates if way.precision == precision]
    pictures: list[Array] = []
    if precision == "int8":
        if calibration is None:
            raise BadInput("int8 is calibrated on pictures: name a folder of clean ones with --calibrate")
        pictures = calibration_pictures(calibration, settings)
    for spec in (spec for spec in specs if spec.weights):  # the others are formulas: nothing to build
        for stage in spec.stages:
            yield _build(workshop, spec, stage, candidates, pictures, on_step)


def calibration_pictures(folder: Path, settings: Settings) -> list[Array]:
    """The middles of a folder's pictures: [3, H, W] in [0, 1], sides of up to `CALIBRATION_PX`.

    Raises:
        BadInput: there is none in it that can be read.
    """
    pictures: list[Array] = []
    for path in sorted(folder.rglob("*")):
        if len(pictures) == MOST_CALIBRATION_PICTURES:
            break
        if not path.is_file():
            continue
        try:
            planes = to_planes(read_image(path, settings).pixels)
        except BadInput:
            continue
        top, left = (max(0, (side - CALIBRATION_PX) // 2) for side in planes.shape[1:])
        pictures.append(planes[:, top : top + CALIBRATION_PX, left : left + CALIBRATION_PX])
    if not pictures:
        raise BadInput(f"there is no picture in {folder} that can be read")
    return pictures


def kept(settings: Settings, *, verify: bool = False) -> list[Kept]:
    """What is in the store; with `verify` all of it is read, and what is wrong with it is told.

    Raises:
        UnsafeStore: others can get at the folder.
    """
    if not settings.own_engines_dir.is_dir():
        return []
    store = Store(settings.own_engines_dir)
    if not verify:
        return [_kept(stored) for stored in store.entries()]
    found = []
    for check in store.verify():
        if check.stored:
            found.append(_kept(check.stored, check.problem))
        else:
            found.append(
                Kept(
                    name=check.name,
                    digest=check.digest,
                    size_bytes=0,
                    made_at=0,
                    psnr_db=None,
                    usable=False,
                    problem=check.problem,
                )
            )
    return found


def prune(settings: Settings) -> list[Kept]:
    """Remove what this machine, its software being what it is now, will not ask for again.

    Raises:
        UnsafeStore: others can get at the folder.
    """
    if not settings.own_engines_dir.is_dir():
        return []
    store = Store(settings.own_engines_dir)
    return [_kept(stored) for stored in store.prune(lambda stored: not is_of_this_machine(stored.key.fields))]


def _build(
    workshop: Workshop,
    spec: DenoiserSpec,
    stage: StageSpec,
    candidates: Sequence[Way],
    pictures: Sequence[Array],
    on_step: OnStep,
) -> Step:
    """By the first way that can be used here at all."""
    started = time.monotonic()
    problem: QuietframeError | None = None
    for way in candidates:
        on_step(stage.name, str(way), 0.0, "starting")
        try:
            made = workshop.build(
                spec,
                stage,
                way,
                on_progress=lambda share, phase, way=way: on_step(stage.name, str(way), share, phase),  # type: ignore[misc]
                calibration=pictures,
                again=True,
            )
        except _FAILS as err:
            problem = problem or err
            if isinstance(err, BackendUnavailable | NeedsExtra):
                continue
            break  # a refusal is an answer: it should be told, not passed over
        on_step(stage.name, str(way), 1.0, "done")
        psnr_db = made.facts.get("psnr_db")
        return Step(
            model=spec.name,
            stage=stage.name,
            backend=made.engine.backend,
            precision=made.engine.precision,
            state="stored" if made.was_stored else "built" if way.is_built else "checked",
            seconds=time.monotonic() - started,
            size_bytes=made.size_bytes,
            psnr_db=psnr_db if isinstance(psnr_db, float) else None,
        )
    return Step(
        model=spec.name,
        stage=stage.name,
        backend=candidates[0].backend,
        precision=candidates[0].precision or "auto",
        state="failed",
        seconds=time.monotonic() - started,
        error=str(problem),
    )


def _kept(stored: Stored, problem: str | None = None) -> Kept:
    psnr_db = stored.facts.get("psnr_db")
    return Kept(
        name=stored.key.name,
        digest=stored.key.digest,
        size_bytes=stored.size_bytes,
        made_at=stored.made_at,
        psnr_db=psnr_db if isinstance(psnr_db, float) else None,
        usable=is_of_this_machine(stored.key.fields),
        problem=problem,
    )
