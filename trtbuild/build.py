"""From a stage to an engine that has been checked: opened, or built first, or taken out of the store.

What comes out of here has been held against the float32 reference on this machine, with these versions and these
weights: just now, or earlier, and the store remembers.
"""

import hashlib
import importlib
import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from models.catalogue import DenoiserSpec, StageSpec
from models.errors import NeedsExtra, QuietframeError
from trtbuild.engine import Array, BackendUnavailable, Engine, Precision, PrecisionLost
from trtbuild.gpus import nvidia_gpus
from trtbuild.guard import Guard, Verdict
from trtbuild.open import open_engine
from trtbuild.store import JSON, Key, Store, Tampered
from trtbuild.tensorrt_plan import BuildOptions, GpuFacts, plan_key, profiles_for
from trtbuild.ways import Way

log = logging.getLogger(__name__)

OnProgress = Callable[[float, str], None]  # told the share that is done, and what runs; what it raises ends the build

SCHEMA = 1  # of how things other than plans are made and checked: raised when that changes
QUICK_SIDE_PX = 64  # of the tiles that an engine is checked on where a job waits for it; a build takes larger ones
_EQUAL_DB = 200.0  # what is told of no difference at all: infinity is no number in JSON
_DISTRIBUTIONS = {"openvino": ("openvino",), "torch": ("torch",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")}


class NotBuilt(BackendUnavailable):
    """It can be used here once it has been built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An engine and how it came to be."""

    engine: Engine
    was_stored: bool  # rather than built or checked just now
    facts: Mapping[str, JSON]  # how far it is from the reference, how long a build took, and what else is known
    size_bytes: int = 0  # of what is stored, 0 where the shipped graph or the weights are run as they are


@dataclass(slots=True)
class Workshop:
    """Opens and builds engines. Not for several threads at once, but for builds beside everything else."""

    store: Store | None = None  # without one nothing can be built, and what is opened is checked each time
    options: BuildOptions = field(default_factory=BuildOptions)
    threads: int = 0
    _guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self._guard = Guard(threads=self.threads)

    def open(self, spec: DenoiserSpec, stage: StageSpec, way: Way) -> Made:
        """An engine that is ready without a build.

        Raises:
            NotBuilt: it has to be built first.
            BackendUnavailable, NeedsExtra: not on this machine; the message says what would help.
            UnknownDenoiser: the weights are not there.
            PrecisionLost: it strays from the reference.
            EngineFailed, OutOfDeviceMemory: what was built does not load, or has no room.
        """
        return self._made(spec, stage, way, self._guard, None, ())

    def build(
        self,
        spec: DenoiserSpec,
        stage: StageSpec,
        way: Way,
        *,
        on_progress: OnProgress | None = None,
        calibration: Sequence[Array] = (),
        again: bool = False,
    ) -> Made:
        """An engine, built if the store has it not. Other threads may open others meanwhile.

        Args:
            spec: the denoiser.
            stage: one of its stages.
            way: backend and precision.
            on_progress: called several times a second; what it raises ends the build.
            calibration: [3, H, W] clean pictures in [0, 1], for int8 alone.
            again: build a plan even if one that was built of the same things has been refused.

        Raises:
            as `open`, but for NotBuilt.
        """
        guard = Guard(threads=self.threads)  # of its own: this may take minutes
        return self._made(spec, stage, way, guard, on_progress or _tell_nobody, calibration, again=again)

    def _made(
        self,
        spec: DenoiserSpec,
        stage: StageSpec,
        way: Way,
        guard: Guard,
        tell: OnProgress | None,
        calibration: Sequence[Array],
        *,
        again: bool = False,
    ) -> Made:
        if not spec.weights:
            return Made(engine=open_engine(spec, stage, threads=self.threads), was_stored=True, facts={})
        if not way.is_built:
            side = -(-QUICK_SIDE_PX // spec.multiple) * spec.multiple if tell is None else 0  # somebody waits for it
            return self._checked(spec, stage, self._opened(spec, stage, way), guard, side)
        if self.store is None:
            raise BackendUnavailable(f"{way} has to be built, and there is no store to keep it in")
        if way.backend == "tensorrt":
            return self._of_plan(self.store, spec, stage, way, guard, tell, again=again)
        return self._of_artifact(self.store, spec, stage, way, guard, tell, calibration)

    def _opened(self, spec: DenoiserSpec, stage: StageSpec, way: Way) -> Engine:
        return open_engine(
            spec,
            stage,
            backend=way.backend,
            precision=way.precision,
            threads=self.threads,
            graphs_dir=spec.home,
            weights_dir=spec.home,
        )

    def _checked(self, spec: DenoiserSpec, stage: StageSpec, engine: Engine, guard: Guard, side_px: int) -> Made:
        """What runs the shipped graph or weights as they are needs no build, but has been looked at once."""
        key = _key("check", spec, stage, engine.backend, engine.precision)
        if self.store and (found := _read(self.store, key)):
            return Made(engine=engine, was_stored=True, facts=found[1])
        if not all((spec.home / f"{one.name}.onnx").is_file() for one in spec.stages):
            guard = Guard("torch", threads=self.threads)  # weights alone, as a training run leaves them
        facts = _facts(guard.insist(engine, spec, stage, height=side_px, width=side_px))
        if self.store:
            self.store.write(key, b"", facts)
        return Made(engine=engine, was_stored=False, facts=facts)

    def _of_plan(
        self,
        store: Store,
        spec: DenoiserSpec,
        stage: StageSpec,
        way: Way,
        guard: Guard,
        tell: OnProgress | None,
        *,
        again: bool,
    ) -> Made:
        from trtbuild.tensorrt_probe import why_not

        if reason := why_not():
            raise BackendUnavailable(f"tensorrt: {reason}")
        # Only behind the probe: they import tensorrt and torch.
        from trtbuild.cuda_device import gpu_facts
        from trtbuild.tensorrt_build import build_plan
        from trtbuild.tensorrt_engine import open_plan

        precision = way.precision or "fp16"
        graph = _graph_for_plans(spec, stage, precision)
        gpu, version = gpu_facts(), str(importlib.import_module("tensorrt").__version__)

        def opened(content: bytes) -> Engine:
            return open_plan(spec, stage, content, precision=precision, contexts=self.options.contexts)

        key = self._plan_key(spec, stage, graph, precision, gpu, version)
        refusal = Key({**key.fields, "kind": "refusal"})  # or each start would build what it then refuses
        if not again and (refused := _read(store, refusal)):
            raise PrecisionLost(f"{refused[1]['reason']} (when it was built; quietframe build tries again)")
        if tell is None:
            found = _read(store, key)
            if found is None:
                raise NotBuilt(f"there is no plan of {stage.name} in {precision} yet; make it with: quietframe build")
            engine = opened(found[0])
            guard.insist(engine, spec, stage)  # the GPU, its driver and its temper may have changed since
            return Made(engine=engine, was_stored=True, facts=found[1], size_bytes=len(found[0]))
        new: list[Engine] = []

        def check(content: bytes) -> dict[str, JSON]:
            engine = opened(content)
            tile = self.options.tile_px // spec.multiple * spec.multiple
            try:
                verdicts = [
                    guard.insist(engine, spec, stage),
                    guard.insist(engine, spec, stage, height=tile, width=tile),  # has kernels of its own
                ]
            except PrecisionLost as err:
                store.write(refusal, b"", {"reason": str(err)})
                raise
            new.append(engine)
            store.remove(refusal)
            return _facts(min(verdicts, key=lambda verdict: verdict.psnr_db))

        plan = build_plan(
            graph,
            spec,
            stage,
            precision=precision,
            options=self.options,
            store=store,
            gpu=gpu,
            tensorrt=version,
            on_progress=tell,
            check=check,
        )
        engine = new[0] if new else opened(plan.content)
        return Made(engine=engine, was_stored=plan.was_stored, facts=plan.facts, size_bytes=len(plan.content))

    def _plan_key(
        self, spec: DenoiserSpec, stage: StageSpec, graph: bytes, precision: Precision, gpu: GpuFacts, version: str
    ) -> Key:
        return plan_key(
            graph,
            stage,
            precision=precision,
            profiles=profiles_for(spec, self.options.tile_px, self.options.batch),
            options=self.options,
            gpu=gpu,
            tensorrt=version,
        )

    def _of_artifact(
        self,
        store: Store,
        spec: DenoiserSpec,
        stage: StageSpec,
        way: Way,
        guard: Guard,
        tell: OnProgress | None,
        calibration: Sequence[Array],
    ) -> Made:
        """A graph in another precision, for a backend that runs graphs."""
        assert way.precision is not None, way
        key = _key("graph", spec, stage, way.backend, way.precision)
        module = importlib.import_module(f"trtbuild.{way.backend}_engine")

        def opened(graph: bytes) -> Engine:
            engine: Engine = module.open_graph(graph, spec, stage, precision=way.precision, threads=self.threads)
            return engine

        if (found := _read(store, key)) is None and tell is None:
            raise NotBuilt(f"{stage.name} has not been built for {way} yet; make it with: quietframe build")
        if found is None:
            assert tell is not None
            with store.lock(key, while_waiting=lambda: tell(0.0, "another process builds it")):
                if (found := _read(store, key)) is None:
                    started = time.monotonic()
                    graph = _graph_in(spec, stage, way.precision, calibration, tell)
                    made_s = round(time.monotonic() - started, 1)
                    tell(0.9, "checking")
                    engine = opened(graph)
                    facts = {"build_s": made_s, **_facts(guard.insist(engine, spec, stage))}
                    store.write(key, graph, facts)
                    return Made(engine=engine, was_stored=False, facts=facts, size_bytes=len(graph))
        return Made(engine=opened(found[0]), was_stored=True, facts=found[1], size_bytes=len(found[0]))


def is_of_this_machine(fields: Mapping[str, JSON]) -> bool:
    """Whether what was stored under a key could still be used here: versions and devices have not changed since."""
    backend = str(fields.get("backend"))
    if backend == "tensorrt":
        try:
            return fields.get("tensorrt") == importlib.metadata.version("tensorrt")
        except importlib.metadata.PackageNotFoundError:
            return False
    return fields.get("version") == _version(backend) and fields.get("device") == _device(backend)


def _graph(spec: DenoiserSpec, stage: StageSpec) -> bytes:
    """As it ships, in float32."""
    path = spec.home / f"{stage.name}.onnx"
    if not path.is_file():
        raise BackendUnavailable(
            f"there is no graph {path.name} in {spec.home}; make it with: python -m trtbuild.export"
        )
    return path.read_bytes()


def _graph_for_plans(spec: DenoiserSpec, stage: StageSpec, precision: Precision) -> bytes:
    """What TensorRT is given, once it has been looked through for what TensorRT refuses or changes."""
    graph = _graph(spec, stage)
    with _onnx_here():
        from trtbuild.half import in_half
        from trtbuild.opcheck import insist

        insist(graph)
        return in_half(graph) if precision == "fp16" else graph


def _graph_in(
    spec: DenoiserSpec, stage: StageSpec, precision: Precision, calibration: Sequence[Array], tell: OnProgress
) -> bytes:
    """What a backend that runs graphs is given in another precision."""
    graph = _graph(spec, stage)
    if precision == "int8":
        from trtbuild.quantise import calibration_tiles, quantise

        tell(0.1, "measuring what passes through it")
        exact = [
            open_engine(
                spec, earlier, backend="openvino", precision="fp32", graphs_dir=spec.home, weights_dir=spec.home
            )
            for earlier in spec.stages[: spec.stages.index(stage)]
        ]
        tiles = calibration_tiles(spec, stage, calibration, exact)
        tell(0.3, "choosing scales")
        return quantise(graph, tiles)
    tell(0.1, "rewriting")
    with _onnx_here():
        from trtbuild.half import in_half

        return in_half(graph)


@contextmanager
def _onnx_here() -> Iterator[None]:
    """Around what rewrites graphs.

    Raises:
        NeedsExtra: the package that does it is not installed.
        BackendUnavailable: the graph is none that can be rewritten, or that a backend would take.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        raise NeedsExtra(f"{err.name} is not installed; it comes with: pip install 'quietframe[torch]'") from err
    except QuietframeError as err:
        raise BackendUnavailable(str(err)) from err


def _key(kind: str, spec: DenoiserSpec, stage: StageSpec, backend: str, precision: Precision) -> Key:
    return Key(
        {
            "kind": kind,
            "stage": stage.name,
            "backend": backend,
            "precision": precision,
            "device": _device(backend),
            "version": _version(backend),
            "sha256": _sha256(_source_of(spec, stage)),
            "schema": SCHEMA,
        }
    )


def _source_of(spec: DenoiserSpec, stage: StageSpec) -> tuple[Path, ...]:
    """What is run: the graph, or the weights where there is none."""
    graph = spec.home / f"{stage.name}.onnx"
    return (graph,) if graph.is_file() else tuple(spec.home / f"{name}.safetensors" for name in spec.weights)


def _sha256(paths: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes() if path.is_file() else b"")
    return whole.hexdigest()


def _version(backend: str) -> str:
    for distribution in _DISTRIBUTIONS.get(backend, ()):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


@cache
def _device(backend: str) -> str:
    """What the backend runs on; another one rounds in another way."""
    if backend in ("torch", "onnxruntime") and (gpus := nvidia_gpus()):
        return gpus[0]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _read(store: Store, key: Key) -> tuple[bytes, Mapping[str, JSON]] | None:
    try:
        return store.read(key)
    except Tampered as err:
        log.error("%s; it is made anew", err)
        return None


def _facts(verdict: Verdict) -> dict[str, JSON]:
    return {
        "psnr_db": round(min(verdict.psnr_db, _EQUAL_DB), 1),
        "worst": verdict.worst,
        "reference": verdict.reference,
    }


def _tell_nobody(share: float, phase: str) -> None:
    pass
