"""What the TensorRT runner wants of a GPU, as narrow as it can be, and how torch gives it on CUDA."""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from trtbuild.tensorrt_plan import GpuFacts

ALIGNMENT_BYTES = 256  # that TensorRT wants of every address


class Stream(Protocol):
    """An order of work on the GPU: what is put into it runs one after the other, beside other streams."""

    @property
    def handle(self) -> int:
        """The `cudaStream_t`; never the default stream, which waits for all others."""

    def work(self) -> AbstractContextManager[object]:
        """Inside, what torch does on the GPU goes into this stream, and memory it takes belongs to it."""

    def synchronize(self) -> None:
        """Wait until all that was put into it is done."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Note down what `run` puts into the stream, without doing it; the result, called inside `work`, does it."""


class Device(Protocol):
    """A GPU. Memory is torch's, so that torch can compute on it."""

    def stream(self) -> Stream: ...

    def empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """[size] on the GPU, its address a multiple of `ALIGNMENT_BYTES`.

        Raises:
            torch.OutOfMemoryError: there is no room.
        """

    def pinned(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """[size] in memory of the host that the GPU copies to and from by itself."""


class CudaStream:
    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        return int(self._stream.cuda_stream)

    def work(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may take memory meanwhile: it is nothing to this capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            run()
        return graph.replay


class CudaDevice:
    """The current GPU, which is the first that `CUDA_VISIBLE_DEVICES` leaves."""

    def __init__(self) -> None:
        self._device = torch.device("cuda", torch.cuda.current_device())

    def stream(self) -> CudaStream:
        return CudaStream(self._device)

    def empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=self._device)

    def pinned(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=True)


def gpu_facts() -> GpuFacts:
    """Of the current GPU. Call it where `tensorrt_probe.why_not` has nothing to say."""
    major, minor = torch.cuda.get_device_capability()
    return GpuFacts(
        name=torch.cuda.get_device_name(),
        compute_capability=f"{major}.{minor}",
        cuda=str(torch.version.cuda),
        driver=_driver_version().split(".")[0],
    )


def _driver_version() -> str:
    """As "580.65.06"; torch does not tell."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "unknown"
    told = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2() != 0:
        return "unknown"
    failed = nvml.nvmlSystemGetDriverVersion(told, len(told))
    nvml.nvmlShutdown()
    return "unknown" if failed else told.value.decode()
