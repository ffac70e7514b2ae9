"""Runs a stage with torch: the float32 reference on the CPU, half precision on an NVIDIA GPU.

In half precision convolutions and matrix products are float16 or bfloat16; autocast leaves in float32 what the networks
keep there in training too: coordinates, sums over many values, the picture that a correction is added to.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.catalogue import DenoiserSpec, StageSpec
from models.weights import stage_modules
from trtbuild.cuda_device import CudaDevice, Device
from trtbuild.engine import Array, BackendUnavailable, EngineFailed, OutOfDeviceMemory, Precision

log = logging.getLogger(__name__)

_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PRODUCTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
GPU_BATCH = 4  # as plans are built for by default; nobody has measured it
SHAPES = 4  # that a GPU keeps memory and a graph of: tiles of one size, the smaller ones of one picture, and two more


class TorchEngine:
    """A stage's module in float32 on the CPU."""

    backend = "torch"
    precision: Precision = "fp32"
    batch = 1
    contexts = 1

    def __init__(self, module: nn.Module) -> None:
        self._module = _channels_last(module)

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        with torch.inference_mode():
            planes = _tensor(noisy).contiguous(memory_format=torch.channels_last)
            restored: Tensor = self._module(planes, _tensor(sigma))
            # Planes one behind the other, in memory that is the caller's own.
            restored = restored.contiguous(memory_format=torch.contiguous_format)
        given: Array = restored.numpy()
        return given.copy() if np.shares_memory(given, noisy) else given


class GpuTorchEngine:
    """A stage's module on a GPU, with memory and a CUDA graph for each of the last few shapes.

    A shape is run as it comes twice; then what the GPU did is noted down, and from there on done again without Python.
    A module that cannot be noted down goes on being run as it comes.
    """

    backend = "torch"
    batch = GPU_BATCH
    contexts = 1

    def __init__(
        self,
        module: nn.Module,
        stage: StageSpec,
        precision: Precision,
        device: Device,
        *,
        kind: str = "cuda",
        compiled: bool = False,
    ) -> None:
        """Move the module to the GPU.

        Args:
            module: the stage's; it is changed.
            stage: says how many planes come out.
            precision: of its products.
            device: where memory and streams come from.
            kind: of that device, by torch's name.
            compiled: by torch.compile, which takes minutes when a shape is first met.

        Raises:
            OutOfDeviceMemory: the GPU has no room for the weights.
        """
        self.precision = precision
        self._stage, self._kind, self._device = stage, kind, device
        with self._as_ours(f"the weights of {stage.name}"):
            module = _channels_last(module.to(kind))
            if precision != "fp32":
                for layer in module.modules():
                    if isinstance(layer, _PRODUCTS):
                        layer.to(_TYPES[precision])
        self._module: Callable[[Tensor, Tensor], Tensor] = torch.compile(module) if compiled else module
        self._stream = device.stream()
        self._shapes: OrderedDict[tuple[int, ...], _Shape] = OrderedDict()
        self._notes_down = True

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        with self._as_ours(f"{self._stage.name}: {len(noisy)} windows of {noisy.shape[2]} x {noisy.shape[3]}"):
            shape = self._shape(noisy.shape)
            with self._stream.work():
                shape.noisy.put(noisy)
                shape.sigma.put(sigma)
                if shape.replay:
                    shape.replay()
                else:
                    shape.restored.on_gpu.copy_(self._computed(shape))
                shape.restored.fetch()
            self._stream.synchronize()
            restored = shape.restored.taken()
            shape.runs += 1
            if shape.runs == 2 and self._notes_down:
                self._note_down(shape)
            return restored

    def _shape(self, dimensions: tuple[int, ...]) -> "_Shape":
        if dimensions in self._shapes:
            self._shapes.move_to_end(dimensions)
            return self._shapes[dimensions]
        while len(self._shapes) >= SHAPES:
            self._shapes.popitem(last=False)
        batch, _planes, height, width = dimensions
        made = _Shape(
            noisy=_Staged.on(self._device, dimensions),
            sigma=_Staged.on(self._device, (batch,)),
            restored=_Staged.on(self._device, (batch, self._stage.planes_out, height, width)),
        )
        self._shapes[dimensions] = made
        return made

    def _computed(self, shape: "_Shape") -> Tensor:
        half = self.precision != "fp32"
        # TF32 has the 11 bits of float16: what is called float32 does without. In float16 autocast need not keep the
        # weights it has cast, for there are none: they are float16 already.
        with (
            torch.inference_mode(),
            torch.autocast(self._kind, _TYPES[self.precision] if half else None, enabled=half, cache_enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            planes = shape.noisy.on_gpu.contiguous(memory_format=torch.channels_last)
            return self._module(planes, shape.sigma.on_gpu)

    def _note_down(self, shape: "_Shape") -> None:
        def run() -> None:
            shape.restored.on_gpu.copy_(self._computed(shape))

        try:
            shape.replay = self._stream.capture(run)
        except RuntimeError as err:  # no room, too: the result is there, and the next one needs no graph
            log.warning("%s is run without CUDA graphs: %s", self._stage.name, err)
            self._notes_down = False

    @contextmanager
    def _as_ours(self, asked: str) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as err:
            self._shapes = OrderedDict()  # their memory, and that of their graphs
            if self._kind == "cuda":
                torch.cuda.empty_cache()
            raise OutOfDeviceMemory(f"{asked}: {err}") from err
        except RuntimeError as err:
            raise EngineFailed(f"{asked}: torch says {err}") from err


@dataclass(slots=True)
class _Staged:
    """Values on the GPU, and memory of the host that it copies them from, or to, by itself."""

    on_host: Tensor
    on_gpu: Tensor

    @classmethod
    def on(cls, device: Device, size: tuple[int, ...]) -> "_Staged":
        on_gpu = device.empty(prod(size), torch.float32).view(size)  # first: it is what there may be no room for
        return cls(device.pinned(prod(size), torch.float32).view(size), on_gpu)

    def put(self, values: Array) -> None:
        np.copyto(self.on_host.numpy(), values)
        self.on_gpu.copy_(self.on_host, non_blocking=True)

    def fetch(self) -> None:
        self.on_host.copy_(self.on_gpu, non_blocking=True)

    def taken(self) -> Array:
        """The host's values, once the stream is done, in memory that is the caller's."""
        return np.array(self.on_host.numpy())


@dataclass(slots=True)
class _Shape:
    """What a shape of input needs."""

    noisy: _Staged
    sigma: _Staged
    restored: _Staged
    runs: int = 0
    replay: Callable[[], None] | None = None  # the CUDA graph


def open_engine(
    spec: DenoiserSpec,
    stage: StageSpec,
    *,
    precision: Precision | None,
    threads: int,
    graphs_dir: Path,  # noqa: ARG001 - the network is built from its weights
    weights_dir: Path,
    compiled: bool = False,
) -> TorchEngine | GpuTorchEngine:
    """See `trtbuild.open.open_engine`; on a GPU it can be compiled, which takes minutes for each shape."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs: tuple[Precision, ...] = ("fp16", "bf16", "fp32") if device == "cuda" else ("fp32",)
    if precision is None:
        precision = runs[0]
    if precision not in runs:
        raise BackendUnavailable(f"torch on {device} runs in {', '.join(runs)}; not in {precision}")
    if device == "cpu":
        return open_reference(spec, stage, threads=threads, weights_dir=weights_dir)
    module = stage_modules(spec, weights_dir)[stage.name]
    return GpuTorchEngine(module, stage, precision, CudaDevice(), compiled=compiled)


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
    return TorchEngine(stage_modules(spec, weights_dir)[stage.name])


def _channels_last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _tensor(values: Array) -> Tensor:
    # Nothing here writes, but torch warns of memory that it could not write to.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
