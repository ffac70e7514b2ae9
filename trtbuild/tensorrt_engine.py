"""Runs a TensorRT plan: one engine for all threads, and for each a context with its own stream and its own memory.

A plan is code. It comes out of our own store, which has checked it; nothing here can tell a good one from a bad one.
"""

import logging
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import numpy as np
import tensorrt as trt
import torch
from numpy.typing import NDArray

from models.catalogue import DenoiserSpec, StageSpec
from models.errors import QuietframeError
from trtbuild.cuda_device import ALIGNMENT_BYTES, CudaDevice, Device
from trtbuild.engine import (
    Array,
    EngineFailed,
    OutOfDeviceMemory,
    Precision,
    PrecisionLost,
    ShapeOutsideProfile,
)
from trtbuild.tensorrt_api import Log, shape_of
from trtbuild.tensorrt_plan import Profile, Span

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Shape = tuple[int, int, int]  # batch, height, width

_WARM_UP_SIGMA = 25 / 255
# Of a graph's result against the same run without: kernels may add up in another order, but a graph that reads or
# writes in the wrong place is off by more.
_GRAPH_TOLERANCE = 1e-2
_MOST_DISAGREEMENT = 1e-4  # 40 dB, where each is to be 50 or 60 from the reference
_PINNED = {1: torch.uint8, 4: torch.float32}  # by the size of a value
Given = TypeVar("Given")
Grown = TypeVar("Grown", bound=NDArray[Any])


def open_plan(
    spec: DenoiserSpec,
    stage: StageSpec,
    plan: bytes,
    *,
    precision: Precision,
    contexts: int = 1,
    device: Device | None = None,
) -> "TensorRtEngine":
    """Load a plan and run every profile of it once, so that the first job is as fast as the next.

    Args:
        spec: says whether the stage is told a noise level.
        stage: that the plan was built for.
        plan: out of our own store, and from nowhere else: loading it runs what is in it.
        precision: that its graph has inside.
        contexts: threads that may run it at once; each takes memory for its own inputs, outputs and scratch.
        device: the current GPU, if none is given.

    Raises:
        EngineFailed: TensorRT does not take it, or it is of another stage; the message holds TensorRT's own words.
        OutOfDeviceMemory: the GPU has no room for it.
    """
    return TensorRtEngine(spec, stage, plan, precision=precision, contexts=contexts, device=device or CudaDevice())


class TensorRtEngine:
    """A loaded plan. As many threads as it has contexts run at once; more wait for their turn."""

    backend = "tensorrt"

    def __init__(
        self, spec: DenoiserSpec, stage: StageSpec, plan: bytes, *, precision: Precision, contexts: int, device: Device
    ) -> None:
        """See `open_plan`."""
        self.precision, self.contexts = precision, contexts
        self._stage = stage
        self._log = Log()
        with _as_ours(self._log, f"{stage.name}: its plan cannot be loaded"):
            self._runtime = trt.Runtime(self._log)
            self._runtime.engine_host_code_allowed = False  # of plans that bring a runtime along; ours bring none
            mark = self._log.mark()
            engine = self._runtime.deserialize_cuda_engine(plan)
            self._engine = self._log.insist(engine, f"{stage.name}: TensorRT does not load the plan", mark)
            self.profiles = _profiles(self._engine, spec, stage)
            self.batch = max(profile.batch.largest for profile in self.profiles)
            # The last one used is used again: its inputs may still lie in a cache.
            self._lanes: queue.LifoQueue[_Lane] = queue.LifoQueue()
            for _ in range(contexts):
                lane = _Lane(self._engine, stage, spec.sigma is None, self.profiles, device, self._log)
                lane.warm_up()
                self._lanes.put(lane)

    @property
    def takes_pixels(self) -> bool:
        """Whether `denoise_pixels` can be used: it reads one RGB frame and gives one."""
        stage = self._stage
        return stage.frames == 1 and stage.planes_in == stage.planes_out == 3

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        """See `Engine.denoise`.

        Raises:
            ShapeOutsideProfile: N, H or W is one that the plan was not built for.
            EngineFailed: TensorRT or the GPU fails; the message holds its own words.
            OutOfDeviceMemory: the GPU has no room.
        """
        noisy, (height, width) = self._grown(noisy, 2), noisy.shape[2:]
        with self._lane(len(noisy), *noisy.shape[2:]) as lane:
            return lane.denoise(noisy, sigma)[:, :, :height, :width]

    def denoise_pixels(self, pixels: Pixels, sigma: Array) -> Pixels:
        """As `denoise`, for pixels as files have them: a quarter or half of the bytes go to the GPU and back.

        Args:
            pixels: [N, H, W, 3] RGB, uint8 or uint16 over its full range; only if `takes_pixels`.
            sigma: [N], on the [0, 1] scale; ignored when blind.

        Returns:
            Like `pixels`, clipped and rounded, owned by the caller.

        Raises:
            as `denoise`.
        """
        assert self.takes_pixels, self._stage.name
        pixels, (height, width) = self._grown(pixels, 1), pixels.shape[1:3]
        with self._lane(len(pixels), *pixels.shape[1:3]) as lane:
            return lane.denoise_pixels(pixels, sigma)[:, :height, :width]

    def _grown(self, picture: Grown, axis: int) -> Grown:
        """Mirrored at its right and lower edge where it is smaller than any plan is built for: an icon, or a test."""
        smallest = [min(profile.height.smallest for profile in self.profiles)]
        smallest += [min(profile.width.smallest for profile in self.profiles)]
        sides = picture.shape[axis : axis + 2]
        lacking = [max(0, least - side) for least, side in zip(smallest, sides, strict=True)]
        if not any(lacking):
            return picture
        beyond = [(0, lacking[place - axis]) if place in (axis, axis + 1) else (0, 0) for place in range(4)]
        return cast("Grown", np.pad(picture, beyond, mode="reflect"))

    @contextmanager
    def _lane(self, batch: int, height: int, width: int) -> Iterator["_Lane"]:
        asked = f"{self._stage.name}: {batch} windows of {height} x {width}"
        if not any(profile.holds(batch, height, width) for profile in self.profiles):
            built = ", or ".join(str(profile) for profile in self.profiles)
            raise ShapeOutsideProfile(f"{asked}; the plan was built for {built}")
        if height % self._stage.multiple or width % self._stage.multiple:
            raise ShapeOutsideProfile(f"{asked}; both sides have to be multiples of {self._stage.multiple}")
        lane = self._lanes.get()
        try:
            with _as_ours(self._log, asked):
                yield lane
        except BaseException:
            lane.forget()
            raise
        finally:
            self._lanes.put(lane)


class _Lane:
    """A stream with memory of its own: what one thread at a time needs to run the engine.

    Its contexts run one after the other, so they share what each needs for intermediate results. One runs whatever
    shape comes; the others were noted down as CUDA graphs, each for one batch of full tiles. A graph is tied to the
    shapes and addresses that its context had, so a context that has one is never used for anything else.
    """

    def __init__(
        self,
        engine: trt.ICudaEngine,
        stage: StageSpec,
        blind: bool,
        profiles: list[Profile],
        device: Device,
        logger: Log,
    ) -> None:
        self._engine, self._stage, self._blind, self._profiles, self._log = engine, stage, blind, profiles, logger
        self._device, self._stream = device, device.stream()
        batch = max(profile.batch.largest for profile in profiles)
        area = max(profile.height.largest * profile.width.largest for profile in profiles)
        with self._stream.work():
            self._noisy = device.empty(batch * stage.frames * stage.planes_in * area, torch.float32)
            self._sigma = device.empty(batch, torch.float32)
            self._restored = device.empty(batch * stage.planes_out * area, torch.float32)
            self._scratch = device.empty(max(1, engine.device_memory_size_v2), torch.uint8)
        self._addresses = {
            "noisy": _address(self._noisy),
            **({} if blind else {"sigma": _address(self._sigma)}),
            "restored": _address(self._restored),
        }
        self._mark = logger.mark()
        self._ready: Shape | None = None  # what the loose context is set to
        self._graphs: dict[Shape, Callable[[], None]] = {}
        self._captured: list[trt.IExecutionContext] = []  # graphs use what belongs to them
        self._loose = self._context()

    def warm_up(self) -> None:
        """Run each profile once, and note down the fixed ones for a single window and for a full batch.

        Raises:
            PrecisionLost: two profiles give different results for one shape.
        """
        for profile in self._profiles:
            shape = profile.batch.best, profile.height.best, profile.width.best
            self._copy_in(*_windows(self._stage, shape))
            self._insist_that_profiles_agree(shape)
            if profile.is_fixed:
                for batch in sorted({profile.batch.smallest, profile.batch.largest}):
                    self._capture((batch, *shape[1:]))

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        self._mark = self._log.mark()
        batch, _planes, height, width = noisy.shape
        shape = batch, height, width
        self._copy_in(noisy, sigma)
        self._run(shape)
        given = self._output(shape)
        # Of the caller from here on: torch keeps such memory for the next one when it is given up.
        host = self._device.pinned(given.numel(), torch.float32)
        with self._stream.work():
            host.copy_(given.view(-1), non_blocking=True)
        self._stream.synchronize()
        restored: Array = host.numpy().reshape(tuple(given.shape))
        return restored

    def denoise_pixels(self, pixels: Pixels, sigma: Array) -> Pixels:
        self._mark = self._log.mark()
        batch, height, width, _channels = pixels.shape
        shape = batch, height, width
        host = self._pinned(np.ascontiguousarray(pixels).view(np.uint8))
        told = self._pinned(sigma)
        scale = float(np.iinfo(pixels.dtype).max)
        with self._stream.work():
            there = self._device.empty(host.numel(), torch.uint8)
            there.copy_(host, non_blocking=True)
            planes = _numbers(there, pixels.dtype).view(batch, height, width, 3).permute(0, 3, 1, 2)
            noisy = self._noisy[: planes.numel()].view(planes.shape)
            noisy.copy_(planes)
            noisy.mul_(float(np.float32(1 / scale)))
            self._sigma[:batch].copy_(told, non_blocking=True)
        self._run(shape)
        with self._stream.work():
            clean = self._output(shape)[:, :3].clamp(0, 1).mul_(scale).round_().permute(0, 2, 3, 1)
            host.copy_(_bytes_of(clean, pixels.dtype), non_blocking=True)
        self._stream.synchronize()
        restored: Pixels = host.numpy().view(pixels.dtype).reshape(pixels.shape)
        return restored

    def forget(self) -> None:
        """After a failure nobody knows what the context is set to."""
        self._ready = None
        with suppress(Exception):  # it has been told of already
            self._stream.synchronize()  # or the next one writes into memory that is still read

    def _pinned(self, values: NDArray[Any]) -> torch.Tensor:
        """A flat copy that the GPU can fetch by itself."""
        host = self._device.pinned(values.size, _PINNED[values.dtype.itemsize])
        np.copyto(host.numpy(), values.reshape(-1))
        return host

    def _copy_in(self, noisy: Array, sigma: Array) -> None:
        planes, told = self._pinned(noisy), self._pinned(sigma)
        with self._stream.work():
            self._noisy[: noisy.size].copy_(planes, non_blocking=True)
            self._sigma[: sigma.size].copy_(told, non_blocking=True)

    def _output(self, shape: Shape) -> torch.Tensor:
        batch, height, width = shape
        planes = self._stage.planes_out
        return self._restored[: batch * planes * height * width].view(batch, planes, height, width)

    def _run(self, shape: Shape) -> None:
        replay = self._graphs.get(shape)
        if replay is None:
            self._run_loose(shape)
        else:
            with self._stream.work():
                replay()

    def _run_loose(self, shape: Shape) -> None:
        if self._ready != shape:
            self._ready = None
            self._set_up(self._loose, shape)
            self._ready = shape
        self._execute(self._loose)

    def _execute(self, context: trt.IExecutionContext) -> None:
        with self._stream.work():
            self._insist(context.execute_async_v3(self._stream.handle), "cannot run")

    def _capture(self, shape: Shape) -> None:
        context = self._context()
        self._set_up(context, shape)
        self._execute(context)  # the first run after a change of shape sets up what a graph must not hold
        self._stream.synchronize()
        try:
            replay = self._stream.capture(lambda: self._execute(context))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, QuietframeError) as err:
            log.warning("%s: no CUDA graph for %s, which runs without: %s", self._stage.name, shape, err)
            return
        if not self._gives_the_same(replay, shape):
            log.warning("%s: the CUDA graph for %s gives something else, and is not used", self._stage.name, shape)
            return
        self._captured.append(context)
        self._graphs[shape] = replay

    def _insist_that_profiles_agree(self, shape: Shape) -> None:
        """Run what was copied in with each profile that takes it: each has kernels of its own.

        Whether one of them agrees with the float32 reference is for `guard` to say.
        """
        results = []
        for index, profile in enumerate(self._profiles):
            if profile.holds(*shape):
                self._ready = None
                self._set_up(self._loose, shape, index)
                self._execute(self._loose)
                with self._stream.work():
                    results.append(self._output(shape).clone())
        with self._stream.work():
            apart = [float((result - results[0]).square().mean()) for result in results]
        self._stream.synchronize()
        if not all(one <= _MOST_DISAGREEMENT for one in apart):  # where a value is not finite, neither is this
            raise PrecisionLost(
                f"{self._stage.name}: profiles of the plan give different results for {shape}, or none that are finite;"
                f" mean squared differences are {apart}, at most {_MOST_DISAGREEMENT:g} is accepted"
            )

    def _gives_the_same(self, replay: Callable[[], None], shape: Shape) -> bool:
        """Whether a graph does again what was just done."""
        output = self._output(shape)
        with self._stream.work():
            expected = output.clone()
            output.fill_(float("nan"))
            replay()
            same = torch.allclose(output, expected, rtol=0, atol=_GRAPH_TOLERANCE)
        self._stream.synchronize()
        return same

    def _context(self) -> trt.IExecutionContext:
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._insist(self._engine.create_execution_context(strategy), "cannot make a context")

    def _set_up(self, context: trt.IExecutionContext, shape: Shape, index: int | None = None) -> None:
        """Set the context to a shape: profile, scratch, inputs, addresses, in this order."""
        batch, height, width = shape
        if index is None:
            index = next(index for index, profile in enumerate(self._profiles) if profile.holds(*shape))
        with self._stream.work():
            chosen = context.set_optimization_profile_async(index, self._stream.handle)
        self._insist(chosen, f"cannot take profile {index}")
        context.set_device_memory(_address(self._scratch), self._engine.device_memory_size_v2)
        inputs: dict[str, tuple[int, ...]] = {
            "noisy": (batch, self._stage.frames * self._stage.planes_in, height, width)
        }
        if not self._blind:
            inputs["sigma"] = (batch,)
        for name, sizes in inputs.items():
            self._insist(context.set_input_shape(name, sizes), f"does not take {name} of {list(sizes)}")
        if unknown := context.infer_shapes():
            raise EngineFailed(f"{self._stage.name}: TensorRT does not know the shape of {', '.join(unknown)}")
        expected = batch, self._stage.planes_out, height, width
        if (given := shape_of(context.get_tensor_shape("restored"))) != expected:
            raise EngineFailed(f"{self._stage.name} gives {list(given)}; {list(expected)} was expected")
        for name, address in self._addresses.items():
            self._insist(context.set_tensor_address(name, address), f"does not take the memory of {name}")

    def _insist(self, given: Given | None, what: str) -> Given:
        return self._log.insist(given, f"{self._stage.name}: TensorRT {what}", self._mark)


def _profiles(engine: trt.ICudaEngine, spec: DenoiserSpec, stage: StageSpec) -> list[Profile]:
    """The shapes that a plan takes.

    Raises:
        EngineFailed: it is not of this stage.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = {name: engine.get_tensor_mode(name) for name in names}
    expected = {"noisy": trt.TensorIOMode.INPUT, "restored": trt.TensorIOMode.OUTPUT}
    if spec.sigma is not None:
        expected["sigma"] = trt.TensorIOMode.INPUT
    if modes != expected:
        raise EngineFailed(f"{stage.name}: the plan has {', '.join(names)}; {', '.join(expected)} were expected")
    for name in names:
        kind, place = engine.get_tensor_dtype(name), engine.get_tensor_location(name)
        if kind != trt.DataType.FLOAT or place != trt.TensorLocation.DEVICE:
            raise EngineFailed(
                f"{stage.name}: {name} of the plan is {kind} on {place}; float32 on the GPU was expected"
            )
    profiles = []
    for index in range(engine.num_optimization_profiles):
        shapes = [shape_of(dims) for dims in engine.get_tensor_profile_shape("noisy", index)]
        batch, planes, height, width = (Span(*sizes) for sizes in zip(*shapes, strict=True))
        if set(planes) != {stage.frames * stage.planes_in}:
            raise EngineFailed(
                f"{stage.name}: the plan reads {planes} planes; {stage.frames * stage.planes_in} were expected"
            )
        profiles.append(Profile(batch=batch, height=height, width=width))
    return profiles


@contextmanager
def _as_ours(logger: Log, what: str) -> Iterator[None]:
    """Turn the errors of torch and of TensorRT's Python layer into ours."""
    mark = logger.mark()
    try:
        yield
    except QuietframeError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as err:
        raise OutOfDeviceMemory(f"{what}: {err}") from err
    except (RuntimeError, TypeError) as err:  # the latter where a constructor comes back with nothing
        raise logger.failed(f"{what}: {err}", mark) from err


def _windows(stage: StageSpec, shape: Shape) -> tuple[Array, Array]:
    """Something like noisy pictures, of any size, for runs whose results are compared with each other."""
    batch, height, width = shape
    planes = stage.frames * stage.planes_in
    down, across = np.ogrid[0:height, 0:width]
    picture = 0.5 + 0.3 * np.sin(down / 17) * np.cos(across / 23)
    noise = np.random.default_rng(0).standard_normal((batch, planes, height, width), np.float32)
    noisy = picture.astype(np.float32) + np.float32(_WARM_UP_SIGMA) * noise
    return noisy, np.full(batch, _WARM_UP_SIGMA, np.float32)


def _address(memory: torch.Tensor) -> int:
    address = memory.data_ptr()
    assert memory.is_contiguous()
    assert address % ALIGNMENT_BYTES == 0, f"address {address:#x}"
    return address


def _numbers(raw: torch.Tensor, dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> torch.Tensor:
    """Bytes as the integers that they are; torch computes with none of 16 bits without a sign."""
    return raw if dtype.itemsize == 1 else raw.view(torch.int16).to(torch.int32) & 0xFFFF


def _bytes_of(values: torch.Tensor, dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> torch.Tensor:
    """The other way, from whole numbers."""
    if dtype.itemsize == 1:
        return values.to(torch.uint8).reshape(-1)
    return values.to(torch.int32).to(torch.int16).contiguous().view(torch.uint8).reshape(-1)
