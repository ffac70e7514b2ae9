"""Runs a stage with torch: the float32 reference on the CPU, half precision on an NVIDIA GPU."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.catalogue import DenoiserSpec, StageSpec
from models.weights import stage_modules
from trtbuild.engine import Array, BackendUnavailable, Precision

_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """A stage's module on one device."""

    backend = "torch"
    batch = 1
    contexts = 1

    def __init__(self, module: nn.Module, device: str, precision: Precision) -> None:
        self._device, self._type = torch.device(device), _TYPES[precision]
        module = module.to(self._device, self._type)
        self._module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = precision

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        with torch.inference_mode():
            planes = self._moved(noisy).contiguous(memory_format=torch.channels_last)
            restored: torch.Tensor = self._module(planes, self._moved(sigma))
            # Planes one behind the other, in memory that is the caller's own.
            restored = restored.to("cpu", torch.float32).contiguous(memory_format=torch.contiguous_format)
        given: Array = restored.numpy()
        return given.copy() if np.shares_memory(given, noisy) else given

    def _moved(self, values: Array) -> torch.Tensor:
        # Nothing here writes, but torch warns of memory that it could not write to.
        return torch.from_numpy(values if values.flags.writeable else values.copy()).to(self._device, self._type)


def open_engine(
    spec: DenoiserSpec,
    stage: StageSpec,
    *,
    precision: Precision | None,
    threads: int,
    graphs_dir: Path,  # noqa: ARG001 - the network is built from its weights
    weights_dir: Path,
) -> TorchEngine:
    """See `trtbuild.open.open_engine`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs: tuple[Precision, ...] = ("fp16", "bf16", "fp32") if device == "cuda" else ("fp32",)
    if precision is None:
        precision = runs[0]
    if precision not in runs:
        raise BackendUnavailable(f"torch on {device} runs in {', '.join(runs)}; not in {precision}")
    if threads:
        torch.set_num_threads(threads)  # of the whole process: there is no other way
    module = stage_modules(spec, weights_dir)[stage.name]
    return TorchEngine(module, device, precision)


def open_reference(spec: DenoiserSpec, stage: StageSpec, *, threads: int, weights_dir: Path) -> TorchEngine:
    """The network in float32 on the CPU, whatever else is there: what every engine is held to.

    Args:
        spec: the denoiser.
        stage: one of its stages.
        threads: of the CPU; 0 for all that the process may use.
        weights_dir: where the weights lie.

    Raises:
        UnknownDenoiser: the weights are not there.
    """
    if threads:
        torch.set_num_threads(threads)  # of the whole process: there is no other way
    return TorchEngine(stage_modules(spec, weights_dir)[stage.name], "cpu", "fp32")
