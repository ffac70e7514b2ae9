"""Which backends this machine has, and how one of them is made to run a stage."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from models.catalogue import DenoiserSpec, StageSpec
from models.weights import GRAPHS_DIR, WEIGHTS_DIR
from trtbuild.engine import BackendUnavailable, Engine, Precision


@dataclass(frozen=True, slots=True)
class _Backend:
    """A module with an `open_engine`, and what it cannot do without."""

    module: str
    needs: tuple[str, ...]
    install: str


_BACKENDS = {  # the best first: `auto` takes the first that loads
    "openvino": _Backend("trtbuild.openvino_engine", ("openvino",), "pip install openvino"),
    "onnxruntime": _Backend("trtbuild.onnxruntime_engine", ("onnxruntime",), "pip install 'quietframe[onnxruntime]'"),
    "torch": _Backend("trtbuild.torch_engine", ("torch", "safetensors"), "pip install 'quietframe[torch]'"),
}
_CLASSICAL = "trtbuild.classical_engine"  # of denoisers that are no networks, whatever backend is asked for


def backends() -> dict[str, str | None]:
    """Every backend, the best first, with the reason why it cannot be used here, or None if it can.

    Nothing heavy is imported: a package that is there but broken shows itself when an engine is opened.
    """
    return {name: _lacking(backend) for name, backend in _BACKENDS.items()}


def open_engine(
    spec: DenoiserSpec,
    stage: StageSpec,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    threads: int = 0,
    graphs_dir: Path = GRAPHS_DIR,
    weights_dir: Path = WEIGHTS_DIR,
) -> Engine:
    """Load a stage and make it ready to run.

    Args:
        spec: the denoiser.
        stage: one of its stages.
        backend: a name out of `backends()`, or `auto` for the best that loads; a denoiser without weights has its own.
        precision: of the inner layers; None for the fastest that holds the quality on this machine.
        threads: of the CPU; 0 for all that the process may use.
        graphs_dir: where the exported stages lie.
        weights_dir: where the weights lie, for a backend that runs the network itself.

    Raises:
        BackendUnavailable: no such backend, or not here, or not in this precision, or without its graph.
        UnknownDenoiser: the weights are not there.
    """
    if not spec.weights:
        module = importlib.import_module(_CLASSICAL)
    else:
        module = _best_module() if backend == "auto" else _module_of(backend)
    engine = module.open_engine(
        spec, stage, precision=precision, threads=threads, graphs_dir=graphs_dir, weights_dir=weights_dir
    )
    return cast("Engine", engine)


def _best_module() -> ModuleType:
    reasons = []
    for name in _BACKENDS:
        try:
            return _module_of(name)
        except BackendUnavailable as err:
            reasons.append(str(err))
    raise BackendUnavailable(f"no backend can be used here; {'; '.join(reasons)}")


def _module_of(backend: str) -> ModuleType:
    lacking = backends()
    if backend not in lacking:
        told = "; ".join(f"{name}: {why or 'usable'}" for name, why in lacking.items())
        raise BackendUnavailable(f"backend is {backend!r}; there are {told}")
    if lacking[backend] is not None:
        raise BackendUnavailable(f"{backend}: {lacking[backend]}")
    try:
        return importlib.import_module(_BACKENDS[backend].module)
    except (ImportError, OSError) as err:  # the latter of a shared library that is missing or broken
        raise BackendUnavailable(f"{backend} is installed but does not load: {err}") from err


def _lacking(backend: _Backend) -> str | None:
    for package in backend.needs:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; it comes with: {backend.install}"
    return None
