"""The process that builds one plan: `python -m trtbuild.tensorrt_child`, started by `tensorrt_build`.

The builder takes minutes and much memory, runs code that it makes itself, and has been known to crash: in a process of
its own it takes nobody with it. It is told what to build by a line of JSON on its standard input, tells how it goes by
lines of JSON on its standard output, and is gone as soon as its parent is.

    in   {"graph": path, "plan": path, "timings_in": path, "timings_out": path, "profiles": [{input: [min, opt, max]}],
          "workspace_bytes": n, "optimization_level": n}
         "stop": give up; the timings that there are by then are kept
    out  {"share": 0.25, "phase": name}
         {"built": true} or {"failed": what, "no_memory": bool}, the last line
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TextIO

import tensorrt as trt

from models.errors import QuietframeError
from trtbuild.engine import EngineFailed, OutOfDeviceMemory
from trtbuild.tensorrt_api import Log, shape_of

Shapes = Mapping[str, Sequence[Sequence[int]]]  # of each input: smallest, best, largest
Tell = Callable[[float, str], None]  # the share that is done, and the phase that runs

_PR_SET_PDEATHSIG = 1
_PARENT_GONE = 3  # exit status


class Stopped(QuietframeError):
    """The build was given up, as was asked."""


def build(
    graph: bytes,
    profiles: Sequence[Shapes],
    *,
    workspace_bytes: int,
    optimization_level: int,
    timings: bytes,
    keep_timings: Callable[[bytes], object],
    tell: Tell,
    stop: Event,
) -> bytes:
    """Build a plan, in this process.

    Args:
        graph: ONNX, float32 at its inputs and outputs; what is inside is computed in the types that it says.
        profiles: the shapes that the plan is to take; inputs that the graph does not have are passed over.
        workspace_bytes: GPU memory that one kernel may want.
        optimization_level: 0 to 5.
        timings: what an earlier build kept, or nothing.
        keep_timings: is given the timings of this build, though it fail.
        tell: how far it is; called from several threads.
        stop: given up once it is set, at the end of a step.

    Raises:
        Stopped: it was asked to.
        EngineFailed, OutOfDeviceMemory: with TensorRT's reason.
    """
    logger = Log()
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as err:  # its library gave nothing, where the driver is too old for one thing
        raise logger.failed("TensorRT makes no builder") from err
    # Precision is the graph's own. The number behind the flag is another one in every major version.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = logger.insist(builder.create_network(flags), "TensorRT makes no network")
    _parse(graph, network, logger)
    config = logger.insist(builder.create_builder_config(), "TensorRT makes no builder configuration")
    config.builder_optimization_level = optimization_level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    for shapes in profiles:
        _add_profile(builder, network, config, shapes, logger)
    monitor = _Monitor(tell, stop)
    config.progress_monitor = monitor
    cache = _timing_cache(config, timings, logger)
    mark = logger.mark()
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        keep_timings(bytes(cache.serialize()))
    if stop.is_set():
        raise Stopped("the build was given up")
    return bytes(logger.insist(plan, "TensorRT builds no plan", mark))


def _parse(graph: bytes, network: trt.INetworkDefinition, logger: Log) -> None:
    parser = trt.OnnxParser(network, logger)
    mark = logger.mark()
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors)
        raise logger.failed(f"TensorRT cannot read the graph{': ' if told else ''}{told}", mark)
    # Only what we export is built: the runner has buffers for nothing else.
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in tensors:
        if tensor.dtype != trt.DataType.FLOAT:
            raise EngineFailed(f"{tensor.name} of the graph is {tensor.dtype}; inputs and outputs are to be float32")


def _add_profile(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, shapes: Shapes, logger: Log
) -> None:
    profile = logger.insist(builder.create_optimization_profile(), "TensorRT makes no optimization profile")
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in shapes:
            raise EngineFailed(f"the graph has an input {tensor.name}; there are shapes for {', '.join(shapes)}")
        smallest, best, largest = (tuple(shape) for shape in shapes[tensor.name])
        for axis, size in enumerate(shape_of(tensor.shape)):
            if size not in (-1, largest[axis]):
                raise EngineFailed(f"axis {axis} of {tensor.name} is always {size} in the graph, not {largest[axis]}")
        profile.set_shape(tensor.name, smallest, best, largest)
    mark = logger.mark()
    if config.add_optimization_profile(profile) < 0:
        raise logger.failed("TensorRT refuses an optimization profile", mark)


def _timing_cache(config: trt.IBuilderConfig, timings: bytes, logger: Log) -> trt.ITimingCache:
    """One with the timings, or an empty one where they are of another TensorRT or another GPU."""
    for content in (timings, b"") if timings else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    raise logger.failed("TensorRT takes no timing cache")


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@dataclass
class Shares:
    """How much of a build is done, of phases within steps of phases. An estimate, that never falls."""

    _phases: dict[str, _Phase] = field(default_factory=dict)
    _told: float = 0.0

    def started(self, name: str, parent: str | None, steps: int) -> float:
        self._phases[name] = _Phase(parent, max(1, steps))
        return self._share()

    def stepped(self, name: str, step: int) -> float:
        if name in self._phases:
            self._phases[name].done = step + 1
        return self._share()

    def finished(self, name: str) -> float:
        """A phase may end before its last step; then its parent's next step says so."""
        self._phases.pop(name, None)
        return self._share()

    def _share(self) -> float:
        outermost = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        share = max((self._of(name) for name in outermost), default=self._told)
        self._told = max(self._told, min(share, 1.0))
        return self._told

    def _of(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._of(child) for child, other in self._phases.items() if other.parent == name and child != name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / phase.steps)


class _Monitor(trt.IProgressMonitor):
    def __init__(self, tell: Tell, stop: Event) -> None:
        trt.IProgressMonitor.__init__(self)
        self._tell, self._stop = tell, stop
        self._shares, self._lock = Shares(), Lock()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with self._lock:
            self._tell(self._shares.started(phase_name, parent_phase or None, num_steps), phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        with self._lock:
            self._tell(self._shares.stepped(phase_name, step), phase_name)
        return not self._stop.is_set()

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            self._tell(self._shares.finished(phase_name), phase_name)


class _Parent:
    """The process that waits for the plan."""

    def __init__(self, lines: TextIO, answers: TextIO) -> None:
        self._lines, self._answers = lines, answers
        self._lock = Lock()
        self._last: tuple[float, str] | None = None
        self.stop = Event()

    def request(self) -> dict[str, Any]:
        asked: dict[str, Any] = json.loads(self._lines.readline())
        Thread(target=self._listen, daemon=True).start()
        return asked

    def _listen(self) -> None:
        for line in self._lines:
            if line.strip() == "stop":
                self.stop.set()
        os._exit(_PARENT_GONE)

    def progress(self, share: float, phase: str) -> None:
        told = round(share, 3), phase
        if told != self._last:  # a phase has thousands of steps
            self._last = told
            self.say({"share": told[0], "phase": phase})

    def say(self, answer: Mapping[str, Any]) -> None:
        try:
            with self._lock:
                print(json.dumps(answer), file=self._answers, flush=True)
        except OSError:
            self.stop.set()  # nobody listens any more; no exception may reach TensorRT


def _die_with_parent() -> None:
    if sys.platform != "linux":
        return  # the end of standard input has to do
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is no answer
    parent = _Parent(sys.stdin, answers)
    asked = parent.request()
    timings_in, timings_out = Path(asked["timings_in"]), Path(asked["timings_out"])
    try:
        plan = build(
            Path(asked["graph"]).read_bytes(),
            asked["profiles"],
            workspace_bytes=asked["workspace_bytes"],
            optimization_level=asked["optimization_level"],
            timings=timings_in.read_bytes(),
            keep_timings=timings_out.write_bytes,
            tell=parent.progress,
            stop=parent.stop,
        )
    except Exception as err:  # TensorRT's Python layer raises of every kind
        named = str(err) if isinstance(err, QuietframeError) else f"{type(err).__name__}: {err}"
        parent.say({"failed": named, "no_memory": isinstance(err, OutOfDeviceMemory | MemoryError)})
        return 1
    Path(asked["plan"]).write_bytes(plan)
    parent.say({"built": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
