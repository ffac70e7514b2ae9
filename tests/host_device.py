"""A GPU that is none: the host's memory, streams in which all is done at once, graphs of the fake TensorRT's runs.

It shows whether the runner asks for the right things in the right order. What it cannot show is whether a GPU, which
does things later and beside each other, would have waited where it must.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count

import torch


class HostStream:
    handles = count(1)

    def __init__(self, recording: dict[int, list[Callable[[], None]]]) -> None:
        self.handle = next(self.handles)
        self._recording = recording
        self.replays = self.waits = 0

    def work(self) -> AbstractContextManager[object]:
        return nullcontext()

    def synchronize(self) -> None:
        if self.handle in self._recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.waits += 1

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self._recording[self.handle] = []
        try:
            run()
        finally:
            noted = self._recording.pop(self.handle)

        def replay() -> None:
            self.replays += 1
            for step in noted:
                step()

        return replay


class HostDevice:
    def __init__(self, recording: dict[int, list[Callable[[], None]]], *, room_bytes: int = 1 << 30) -> None:
        self._recording, self._room_bytes = recording, room_bytes
        self.streams: list[HostStream] = []

    def stream(self) -> HostStream:
        self.streams.append(HostStream(self._recording))
        return self.streams[-1]

    def empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        size_bytes = size * dtype.itemsize
        self._room_bytes -= size_bytes
        if self._room_bytes < 0:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size_bytes} bytes")
        memory = torch.full((size_bytes + 256,), 0xFF, dtype=torch.uint8)  # NaN, of floats that nobody has written
        start = -memory.data_ptr() % 256
        return memory[start : start + size_bytes].view(dtype)

    def pinned(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((size * dtype.itemsize,), 0xFF, dtype=torch.uint8).view(dtype)
