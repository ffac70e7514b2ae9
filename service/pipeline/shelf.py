"""Which denoisers a process has loaded, on what each runs, and what it will run on once that has been built.

A denoiser is opened when it is first asked for, by the first way that is ready on this machine. Better ways that have
to be built first are built beside the work and take over from job to job: whoever has the earlier engine in hand ends
with it.
"""

import logging
import queue
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock

import numpy as np

from models.catalogue import DESCRIBED, DenoiserSpec, StageSpec
from models.errors import NeedsExtra, QuietframeError, UnknownDenoiser
from models.own import Library
from service.pipeline.denoiser import Denoiser
from service.pipeline.turns import Turns
from service.settings import Settings
from service.telemetry.figures import WorkerFigures
from trtbuild.build import NotBuilt, Workshop
from trtbuild.engine import BackendUnavailable, Engine, EngineFailed, OutOfDeviceMemory, PrecisionLost
from trtbuild.gpus import nvidia_gpus
from trtbuild.store import Store, UnsafeStore
from trtbuild.tensorrt_plan import BuildOptions
from trtbuild.ways import SPARE, Way, ways

log = logging.getLogger(__name__)

WARM_UP_PX = 64
_LOOK_EVERY_S = 0.5
# What one way may fail of where another may not.
_FAILS = (BackendUnavailable, NeedsExtra, PrecisionLost, EngineFailed, OutOfDeviceMemory)


class _Stopped(Exception):
    """The process ends, and with it what it builds."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    denoiser: Denoiser
    way: Way


@dataclass(frozen=True, slots=True)
class _Wish:
    """A denoiser that could run better than it does."""

    spec: DenoiserSpec
    better: tuple[Way, ...]  # the best first


class Shelf:
    """Opens denoisers on first use and keeps them. Any thread may ask."""

    def __init__(self, settings: Settings, *, makes_store: bool = False, figures: WorkerFigures | None = None) -> None:
        """Nothing is loaded yet.

        Args:
            settings: what to run denoisers on, and how many to keep.
            makes_store: whether the folder of built engines is made if it is not there.
            figures: told what is loaded, and what came of each engine.
        """
        self._settings = settings
        self._figures = figures or WorkerFigures()
        self.library = Library(settings.own_models_dir)
        self.workshop = workshop_of(settings, makes_store=makes_store)
        self._ways = ways(
            has_gpu=bool(nvidia_gpus()),
            backend=settings.backend,
            precision=None if settings.precision == "auto" else settings.precision,
        )
        self._turns = Turns()
        self._lock = Lock()
        self._engines: dict[tuple[StageSpec, Way], Engine] = {}
        self._spares: dict[StageSpec, Engine] = {}
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # the one used last at the end
        self._wishes: queue.SimpleQueue[_Wish] = queue.SimpleQueue()

    def denoiser(self, name: str) -> Denoiser:
        """The denoiser of this name, loaded; one that is not served too, if its weights are there.

        An adapted one that has been replaced since is loaded anew.

        Raises:
            NeedsExtra, BackendUnavailable: this machine cannot run it; the message says what would help.
            UnknownDenoiser: there is none of this name, or it is damaged.
        """
        with self._lock:
            spec = DESCRIBED.get(name) or self._own(name)
            if name not in self._loaded or self._loaded[name].denoiser.spec != spec:
                self._loaded[name] = self._load(spec)
                self._loaded.move_to_end(name)
                self._let_go()
            self._loaded.move_to_end(name)
            return self._loaded[name].denoiser

    def warm_up(self, names: Iterable[str]) -> dict[str, Denoiser]:
        """Load these and run each engine once, so that the first job is as fast as the next.

        Raises:
            as `denoiser`.
        """
        for name in names:
            denoiser = self.denoiser(name)
            for stage, engine in zip(denoiser.spec.stages, denoiser.engines, strict=True):
                planes = np.zeros((1, stage.frames * stage.planes_in, WARM_UP_PX, WARM_UP_PX), np.float32)
                engine.denoise(planes, np.zeros(1, np.float32))
        return self.loaded()

    def loaded(self) -> dict[str, Denoiser]:
        """What is loaded by now, by name."""
        with self._lock:
            return {name: loaded.denoiser for name, loaded in self._loaded.items()}

    def improve(self, stop: Event) -> None:
        """Build what loaded denoisers would run better on, and let it take over, until asked to stop."""
        while not stop.is_set():
            with suppress(queue.Empty):
                self._improve(self._wishes.get(timeout=_LOOK_EVERY_S), stop)

    def _improve(self, wish: _Wish, stop: Event) -> None:
        def heed(_share: float, _phase: str) -> None:
            if stop.is_set():
                raise _Stopped

        for way in wish.better:
            began = time.monotonic()
            try:
                made = {
                    (stage, way): self.workshop.build(wish.spec, stage, way, on_progress=heed)
                    for stage in wish.spec.stages
                }
            except _Stopped:
                return
            except (*_FAILS, OSError) as err:
                log.warning("%s stays as it is: %s: %s", wish.spec.name, way, err)
                self._count_failure(way, err)
                continue
            built = sum(not one.was_stored for one in made.values())
            if built:
                self._figures.built(time.monotonic() - began)
            self._figures.engine(way.backend, _precision(way), "built" if built else "opened", count=len(made))
            with self._lock:
                current = self._loaded.get(wish.spec.name)
                if current is None or current.denoiser.spec != wish.spec:
                    return  # it was put away, or replaced by another meanwhile
                self._engines |= {place: one.engine for place, one in made.items()}
                self._loaded[wish.spec.name] = self._with(wish.spec, way)
                self._let_go()
            log.info("%s runs on %s from now on", wish.spec.name, way)
            return

    def _own(self, name: str) -> DenoiserSpec:
        own = self.library.own(name)
        if own is None:
            raise UnknownDenoiser(f"model is {name!r}; there is none of this name in {self.library.folder}")
        spec = own.spec_in(self.library.folder)
        if name not in self._loaded or self._loaded[name].denoiser.spec != spec:
            self.library.check_files(own)
        return spec

    def _load(self, spec: DenoiserSpec) -> _Loaded:
        """By the first way that is ready."""
        reasons: list[QuietframeError] = []
        better: list[Way] = []
        for way in self._ways:
            try:
                self._engines |= {(stage, way): self._engine(spec, stage, way) for stage in spec.stages}
            except NotBuilt as err:
                better.append(way)
                reasons.append(err)
            except (*_FAILS, UnknownDenoiser) as err:  # the latter where weights are missing but a graph is there
                # What is not installed is no news; what is, and fails, is.
                log.log(
                    logging.DEBUG if isinstance(err, BackendUnavailable | UnknownDenoiser) else logging.WARNING,
                    "%s: %s",
                    way,
                    err,
                )
                self._count_failure(way, err)
                reasons.append(err)
            else:
                if better and self._settings.build_engines:
                    self._wishes.put(_Wish(spec, tuple(better)))
                return self._with(spec, way)
        unknown = [reason for reason in reasons if isinstance(reason, UnknownDenoiser)]
        told = list(dict.fromkeys(str(reason) for reason in reasons))
        if unknown or len(told) == 1:
            raise [*unknown, *reasons][0]
        raise BackendUnavailable(f"{spec.name} cannot run on this machine: {'; '.join(told)}")

    def _count_failure(self, way: Way, err: Exception) -> None:
        """What is not installed, or not built yet, has not failed."""
        if isinstance(err, PrecisionLost):
            self._figures.engine(way.backend, _precision(way), "refused")
        elif isinstance(err, EngineFailed | OutOfDeviceMemory):
            self._figures.engine(way.backend, _precision(way), "failed")

    def _with(self, spec: DenoiserSpec, way: Way) -> _Loaded:
        engines = [self._engines[stage, way] for stage in spec.stages]
        spare = partial(self._spare, spec) if way.backend != SPARE.backend else None
        grey = partial(self.denoiser, spec.for_grey) if spec.for_grey else None
        return _Loaded(Denoiser(spec, engines, self._settings.tile_px, self._turns, spare, grey, self._figures), way)

    def _spare(self, spec: DenoiserSpec, stage: StageSpec) -> Engine:
        """For a job whose device has no memory left. Kept: that may happen again."""
        with self._lock:
            if stage not in self._spares:
                self._spares[stage] = self.workshop.open(spec, stage, SPARE).engine
            return self._spares[stage]

    def _engine(self, spec: DenoiserSpec, stage: StageSpec, way: Way) -> Engine:
        if (stage, way) not in self._engines:
            engine = self.workshop.open(spec, stage, way).engine
            self._figures.engine(engine.backend, engine.precision, "opened")
            return engine
        return self._engines[stage, way]

    def _let_go(self) -> None:
        """Forget what was used longest ago, and engines that nothing loaded runs on."""
        while len(self._loaded) > self._settings.loaded_models:
            self._loaded.popitem(last=False)
        used = {(stage, one.way) for one in self._loaded.values() for stage in one.denoiser.spec.stages}
        self._engines = {place: engine for place, engine in self._engines.items() if place in used}
        self._figures.loaded(
            {name: (one.denoiser.backend, one.denoiser.precision) for name, one in self._loaded.items()}
        )


def _precision(way: Way) -> str:
    """As it is asked for: what did not open has no other."""
    return way.precision or "auto"


def workshop_of(settings: Settings, *, makes_store: bool) -> Workshop:
    """Where this machine's engines come from; without a store if there is none, or none that can be trusted."""
    store = None
    folder = settings.own_engines_dir
    if makes_store or folder.is_dir():
        try:
            store = Store(folder)
        except (UnsafeStore, OSError) as err:
            log.warning("no engine is built or taken from %s: %s", folder, err)
    return Workshop(store, options=build_options(settings), threads=settings.threads)


def build_options(settings: Settings) -> BuildOptions:
    """What TensorRT engines are built for."""
    return BuildOptions(
        tile_px=settings.tile_px,
        batch=settings.gpu_batch,
        workspace_bytes=settings.gpu_workspace_bytes,
        contexts=settings.gpu_contexts,
    )
