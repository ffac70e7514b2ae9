"""Which denoisers a process has loaded; each stage's engine is opened once, whoever shares it."""

from threading import Lock

import numpy as np

from models.catalogue import CATALOGUE, DESCRIBED, DenoiserSpec, StageSpec
from models.errors import UnknownDenoiser
from models.own import Library
from service.pipeline.denoiser import Denoiser
from service.pipeline.turns import Turns
from service.settings import Settings
from trtbuild.engine import Engine
from trtbuild.open import open_engine

WARM_UP_PX = 64


class Shelf:
    """Opens denoisers on first use and keeps them. Any thread may ask."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.library = Library(settings.own_models_dir)
        self._turns = Turns()
        self._lock = Lock()
        self._engines: dict[StageSpec, Engine] = {}
        self._denoisers: dict[str, Denoiser] = {}

    def denoiser(self, name: str) -> Denoiser:
        """The denoiser of this name, loaded; one that is not served too, if its weights are there.

        An adapted one that has been replaced since is loaded anew.

        Raises:
            NeedsExtra, BackendUnavailable: this machine cannot run it; the message says what would help.
            UnknownDenoiser: there is none of this name, or it is damaged.
        """
        with self._lock:
            spec = DESCRIBED.get(name) or self._own(name)
            loaded = self._denoisers.get(name)
            if loaded is None or loaded.spec != spec:
                self._denoisers[name] = self._load(spec)
                for stage in loaded.spec.stages if loaded else ():
                    del self._engines[stage]
            return self._denoisers[name]

    def warm_up(self) -> dict[str, Denoiser]:
        """Load the whole catalogue and run each engine once, so that the first job is as fast as the next."""
        for name in CATALOGUE:
            for stage, engine in zip(CATALOGUE[name].stages, self.denoiser(name).engines, strict=True):
                planes = np.zeros((1, stage.frames * stage.planes_in, WARM_UP_PX, WARM_UP_PX), np.float32)
                engine.denoise(planes, np.zeros(1, np.float32))
        return self.loaded()

    def loaded(self) -> dict[str, Denoiser]:
        """What is loaded by now, by name."""
        return dict(self._denoisers)

    def _own(self, name: str) -> DenoiserSpec:
        own = self.library.own(name)
        if own is None:
            raise UnknownDenoiser(f"model is {name!r}; there is none of this name in {self.library.folder}")
        spec = own.spec_in(self.library.folder)
        if name not in self._denoisers or self._denoisers[name].spec != spec:
            self.library.check_files(own)
        return spec

    def _load(self, spec: DenoiserSpec) -> Denoiser:
        for stage in spec.stages:
            if stage not in self._engines:
                self._engines[stage] = open_engine(
                    spec,
                    stage,
                    backend=self._settings.backend,
                    threads=self._settings.threads,
                    graphs_dir=spec.home,
                    weights_dir=spec.home,
                )
        return Denoiser(spec, [self._engines[stage] for stage in spec.stages], self._settings.tile_px, self._turns)
