"""Where a denoiser's trained weights lie, and how they become a network ready to run.

Needs the `torch` extra, but only once a network is asked for.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from models.catalogue import SHIPPED_DIR, DenoiserSpec
from models.errors import NeedsExtra, UnknownDenoiser
from models.networks import WIRINGS

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_DIR = SHIPPED_DIR  # one file a training run
GRAPHS_DIR = WEIGHTS_DIR  # what the weights export to, one file a stage


class _Staged(Protocol):
    def stages(self) -> "tuple[nn.Module, ...]":
        """The network, cut as its catalogue entry says."""


def build_network(spec: DenoiserSpec) -> "nn.Module":
    """The denoiser's network, as `build_wired`."""
    return build_wired(spec.adapted_from or spec.name)


def build_wired(name: str) -> "nn.Module":
    """The network that is wired under a name, freshly initialised, in training mode.

    Raises:
        UnknownDenoiser: no network is wired under this name.
        NeedsExtra: torch is not installed.
    """
    if name not in WIRINGS:
        raise UnknownDenoiser(f"no network goes by {name!r}; known are {', '.join(WIRINGS)}")
    wiring = WIRINGS[name]
    try:
        module = importlib.import_module(wiring.module)
    except ModuleNotFoundError as err:
        raise _needs_torch(err) from err
    return cast("nn.Module", getattr(module, wiring.build)(**wiring.options))


def load_network(spec: DenoiserSpec, weights_dir: Path = WEIGHTS_DIR) -> "nn.Module":
    """The denoiser's network with its trained weights, in evaluation mode, on the CPU in float32.

    Raises:
        UnknownDenoiser: no such network, or one of its weights files is not there.
        NeedsExtra: torch or safetensors is not installed.
        RuntimeError: the weights are of another network; the message names the first that does not fit.
    """
    network = build_network(spec)
    parts = WIRINGS[spec.adapted_from or spec.name].parts
    state: dict[str, Tensor] = {}
    for name in spec.weights:
        prefix = f"{parts[name]}." if name in parts else ""
        state |= {f"{prefix}{key}": value for key, value in _read(weights_dir / f"{name}.safetensors").items()}
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def stage_modules(spec: DenoiserSpec, weights_dir: Path = WEIGHTS_DIR) -> "dict[str, nn.Module]":
    """The stages of a denoiser, by the catalogue's names, each ready to run on its own.

    Each takes `noisy` [N, T*planes_in, H, W] and `sigma` [N] and returns [N, planes_out, H, W]. Stages of one denoiser
    may share parameters.

    Raises:
        as `load_network`.
    """
    return cut_into_stages(spec, load_network(spec, weights_dir))


def cut_into_stages(spec: DenoiserSpec, network: "nn.Module") -> "dict[str, nn.Module]":
    """As `stage_modules`, of a network at hand."""
    modules = cast("_Staged", network.eval()).stages()
    return {stage.name: module.eval() for stage, module in zip(spec.stages, modules, strict=True)}


def _read(path: Path) -> "dict[str, Tensor]":
    """In float32; in bfloat16 where training multiplied by them in that; in float16 where no figure changed by it."""
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as err:
        raise _needs_torch(err) from err
    if not path.is_file():
        raise UnknownDenoiser(f"there are no weights {path.name} in {path.parent}")
    return load_file(path)


def _needs_torch(err: ModuleNotFoundError) -> NeedsExtra:
    return NeedsExtra(f"{err.name} is not installed; it comes with: pip install 'quietframe[torch]'")
