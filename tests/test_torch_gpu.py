"""Does torch on a GPU keep shapes, graphs and precisions apart? Here on the CPU's memory; with `-m gpu` on a GPU's.

The device of these tests hands out memory of the host, and its streams do work at once. What is computed, and in which
precision, is real: torch's autocast knows the CPU too.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from math import inf

import numpy as np
import pytest
import torch
from seeded_networks import STAGES, network_of
from torch import nn

from models.catalogue import StageSpec
from models.quality import psnr_db
from models.weights import cut_into_stages
from trtbuild.cuda_device import CudaDevice
from trtbuild.engine import EngineFailed, OutOfDeviceMemory, Precision
from trtbuild.torch_engine import SHAPES, GpuTorchEngine

STAGE = StageSpec(name="scaled", halo_px=0, parameters=1, macs_per_pixel=3)
TOLD = np.array([0.5, 0.25], np.float32)


class Stream:
    handle = 1

    def __init__(self, *, captures=True):
        self.captures, self.captured, self.replayed = captures, 0, 0

    def work(self):
        return nullcontext()

    def synchronize(self):
        pass

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        run()
        self.captured += 1

        def replay():
            self.replayed += 1
            run()

        return replay


class Device:
    def __init__(self, *, room_bytes=inf, captures=True):
        self.room_bytes, self.the_stream = room_bytes, Stream(captures=captures)

    def stream(self) -> Stream:
        return self.the_stream

    def empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        if size * dtype.itemsize > self.room_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return torch.full((size,), torch.nan, dtype=dtype)

    def pinned(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((size,), torch.nan, dtype=dtype)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        nn.init.constant_(self.layer.weight, 1 / 3)

    def forward(self, noisy, sigma):
        return noisy - sigma[:, None, None, None] * self.layer(noisy)


def scaled(device: Device, precision: Precision = "fp32", **options) -> GpuTorchEngine:
    return GpuTorchEngine(Scaled(), STAGE, precision, device, kind="cpu", **options)


def planes(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng([batch, height, width]).random((batch, 3, height, width), np.float32)


def restored_by_hand(noisy: np.ndarray) -> np.ndarray:
    return noisy * (1 - TOLD[: len(noisy)] / 3)[:, None, None, None]


def test_what_was_noted_down_gives_for_new_input_what_the_module_would():
    device = Device()
    engine = scaled(device)
    results = []
    for run in range(4):
        noisy = planes(2, 8, 16) + run
        results.append((engine.denoise(noisy, TOLD), restored_by_hand(noisy)))
    assert (device.the_stream.captured, device.the_stream.replayed) == (1, 2)  # the third and fourth run
    for restored, expected in results:  # each is the caller's own: later runs have not written into it
        assert np.abs(restored - expected).max() < 1e-6


def test_a_shape_that_comes_once_is_not_noted_down():
    device = Device()
    engine = scaled(device)
    for height in (8, 16, 24, 8):
        assert np.allclose(engine.denoise(planes(1, height, 8), TOLD[:1]), restored_by_hand(planes(1, height, 8)))
    assert device.the_stream.captured == 1  # of the one that came again


def test_only_the_last_few_shapes_are_kept():
    device = Device()
    engine = scaled(device)
    for height in range(8, 8 * (SHAPES + 3), 8):
        for _ in range(3):
            engine.denoise(planes(1, height, 8), TOLD[:1])
    assert len(engine._shapes) == SHAPES
    before = device.the_stream.captured
    engine.denoise(planes(1, 8, 8), TOLD[:1])  # forgotten: it begins anew
    assert device.the_stream.captured == before


def test_a_module_that_cannot_be_noted_down_is_run_as_it_comes(caplog):
    engine = scaled(Device(captures=False))
    for run in range(4):
        noisy = planes(2, 8, 8) + run
        assert np.abs(engine.denoise(noisy, TOLD) - restored_by_hand(noisy)).max() < 1e-6
    assert [record.message for record in caplog.records] == [
        "scaled is run without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_no_room_is_told_as_such_and_a_smaller_tile_still_runs():
    device = Device()
    engine = scaled(device)
    engine.denoise(planes(1, 8, 8), TOLD[:1])
    device.room_bytes = 1000
    with pytest.raises(OutOfDeviceMemory, match=r"scaled: 2 windows of 64 x 64: CUDA out of memory"):
        engine.denoise(planes(2, 64, 64), TOLD)
    assert not engine._shapes  # what was kept is given back
    assert np.allclose(engine.denoise(planes(1, 8, 8), TOLD[:1]), restored_by_hand(planes(1, 8, 8)))


def test_what_the_module_fails_of_is_told_in_torchs_words():
    engine = scaled(Device())
    with pytest.raises(EngineFailed, match=r"torch says .*channels"):
        engine.denoise(np.zeros((1, 5, 8, 8), np.float32), TOLD[:1])


def test_the_input_may_be_read_only_and_is_left_as_it_was():
    engine = scaled(Device())
    noisy = planes(1, 8, 8)
    before = noisy.copy()
    noisy.setflags(write=False)
    restored = engine.denoise(noisy, TOLD[:1])
    restored += 1
    assert np.array_equal(noisy, before)
    assert np.allclose(engine.denoise(noisy, TOLD[:1]) + 1, restored)


@cache
def tile_of(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows, level, and what the network gives in float32."""
    spec, stage = STAGES[name]
    side = -(-32 // spec.multiple) * spec.multiple
    rng = np.random.default_rng(7)
    slope = np.linspace(0, 1, side, dtype=np.float32)
    noisy = slope + 0.1 * rng.standard_normal((1, stage.frames * stage.planes_in, side, side), np.float32)
    sigma = np.full(1, 0.1, np.float32)
    module = cut_into_stages(spec, network_of(spec.name))[name]
    with torch.no_grad():
        return noisy, sigma, module(torch.from_numpy(noisy), torch.from_numpy(sigma)).numpy()


def engine_of(name: str, precision: Precision, device: Device | CudaDevice, kind: str) -> GpuTorchEngine:
    spec, stage = STAGES[name]
    network = copy.deepcopy(network_of(spec.name))  # engines change what they are given
    return GpuTorchEngine(cut_into_stages(spec, network)[name], stage, precision, device, kind=kind)


@pytest.mark.parametrize("name", STAGES)
def test_every_network_is_as_good_in_half_precision(name):
    noisy, sigma, exact = tile_of(name)
    restored = engine_of(name, "fp16", Device(), "cpu").denoise(noisy, sigma)
    assert restored.dtype == np.float32
    assert psnr_db(restored, exact) > 60  # 66 to 91 are met


def test_products_are_half_and_the_picture_is_not():
    seen: dict[str, torch.dtype] = {}
    module = Scaled()
    module.layer.register_forward_hook(lambda _layer, _given, gave: seen.update(product=gave.dtype))
    module.register_forward_hook(lambda _layer, _given, gave: seen.update(restored=gave.dtype))
    engine = GpuTorchEngine(module, STAGE, "bf16", Device(), kind="cpu")
    engine.denoise(planes(1, 8, 8), TOLD[:1])
    assert seen == {"product": torch.bfloat16, "restored": torch.float32}
    assert module.layer.weight.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", STAGES)
def test_on_a_gpu_every_network_restores_as_on_the_cpu_with_and_without_a_graph(name, precision):
    noisy, sigma, exact = tile_of(name)
    engine = engine_of(name, precision, CudaDevice(), "cuda")
    floor = {"fp16": 60, "bf16": 50, "fp32": 80}[precision]
    for _ in range(4):
        assert psnr_db(engine.denoise(noisy, sigma), exact) > floor
    (shape,) = engine._shapes.values()
    assert shape.replay is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_too_large_a_batch_is_refused_and_the_next_one_runs():
    engine = engine_of("dncnn", "fp16", CudaDevice(), "cuda")
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(OutOfDeviceMemory):
            engine.denoise(np.zeros((8, 3, 2048, 2048), np.float32), np.zeros(8, np.float32))
        assert np.isfinite(engine.denoise(np.zeros((1, 3, 64, 64), np.float32), np.zeros(1, np.float32))).all()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
