"""Does torch give the TensorRT runner what it wants of a GPU? `pytest -m gpu`; never run on one so far."""

import numpy as np
import pytest
import torch

from trtbuild.cuda_device import ALIGNMENT_BYTES, CudaDevice, _driver_version, gpu_facts

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver here")
def test_where_there_is_no_driver_its_version_is_unknown():
    assert _driver_version() == "unknown"


@pytest.mark.gpu
@needs_a_gpu
def test_a_gpu_says_what_plans_depend_on():
    facts = gpu_facts()
    assert facts.name
    assert facts.driver.isdigit()
    assert all(part.isdigit() for part in facts.compute_capability.split("."))
    assert facts.cuda == torch.version.cuda


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("size", [1, 3, 1_000_003])
def test_memory_lies_where_tensorrt_wants_it(size):
    device = CudaDevice()
    with device.stream().work():
        assert device.empty(size, torch.float32).data_ptr() % ALIGNMENT_BYTES == 0
        assert device.empty(size, torch.uint8).data_ptr() % ALIGNMENT_BYTES == 0
    assert device.pinned(size, torch.float32).is_pinned()


@pytest.mark.gpu
@needs_a_gpu
def test_a_stream_is_not_the_default_one():
    device = CudaDevice()
    handles = {device.stream().handle for _ in range(3)}
    assert 0 not in handles
    assert len(handles) == 3


@pytest.mark.gpu
@needs_a_gpu
def test_a_graph_does_again_what_was_noted_down_with_what_lies_there_now():
    device = CudaDevice()
    stream = device.stream()
    with stream.work():
        numbers, doubled = device.empty(1000, torch.float32), device.empty(1000, torch.float32)
        numbers.fill_(1)
        doubled.fill_(0)
    stream.synchronize()

    def double() -> None:
        torch.mul(numbers, 2, out=doubled)

    replay = stream.capture(double)
    stream.synchronize()
    assert float(doubled.sum()) == 0  # it was noted, not done
    host = device.pinned(1000, torch.float32)
    for value in (3.0, 4.0):
        host.fill_(value)
        with stream.work():
            numbers.copy_(host, non_blocking=True)
            replay()
            host.copy_(doubled, non_blocking=True)
        stream.synchronize()
        assert np.array_equal(host.numpy(), np.full(1000, 2 * value, np.float32))


@pytest.mark.gpu
@needs_a_gpu
def test_no_room_is_told_by_torch():
    with pytest.raises(torch.OutOfMemoryError):
        CudaDevice().empty(1 << 50, torch.uint8)
