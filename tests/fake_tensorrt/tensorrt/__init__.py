"""Stands in for TensorRT where there is none: plans are run by ONNX Runtime, on the CPU, in memory of the host.

It knows TensorRT's manners, not its results or its speed: what it refuses, that it says False or None and tells a
logger why, in which order it wants to be asked. Nothing that passes here has been tried on TensorRT. A test holds it to
typings/tensorrt, so that it cannot grow what TensorRT lacks. Names with an underscore are for tests.
"""

import ctypes
import enum
import hashlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from threading import Thread

import numpy as np
import onnx
import onnxruntime

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "11.4.0")

_MAGIC = b"a plan for tests, which no TensorRT would take\n"
_GPU = os.environ.get("FAKE_TENSORRT_GPU", "a GPU that is none")

# What fails, and what TensorRT says then: {"OnnxParser.parse": "unsupported"}. Two more are of Builder alone:
# `_crash` is a signal's number that ends the process in the middle of a build, `_step_s` how long a step takes.
_faults: dict[str, str] = json.loads(os.environ.get("FAKE_TENSORRT_FAULTS", "{}"))
# Of streams that are being captured: what would have run.
_recording: dict[int, list[Callable[[], None]]] = {}


class Dims:
    def __init__(self, shape: Sequence[int]) -> None:
        self._sizes = tuple(shape)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, arg0: int) -> int:
        return self._sizes[arg0]


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, BF16, INT64 = 0, 1, 2, 3, 4, 5, 7, 8


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, USER_MANAGED = 0, 2


class NetworkDefinitionCreationFlag(enum.Enum):
    STRONGLY_TYPED = 0 if __version__.startswith("11") else 1

    def __int__(self) -> int:
        return self.value


class BuilderFlag(enum.Enum):
    TF32 = 7


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = 0, 1, 2, 3, 4

    def __init__(self) -> None:
        self._is_made = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        self._is_made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


def _fails(logger: ILogger, what: str) -> bool:
    if what not in _faults:
        return False
    return _refuses(logger, _faults[what])


def _refuses(logger: ILogger, why: str) -> bool:
    if why:
        logger.log(ILogger.Severity.ERROR, why)
    return True


def _checked(made: ILogger | IProgressMonitor) -> None:
    if not getattr(made, "_is_made", False):
        raise TypeError(f"{type(made).__name__}.__init__() must be called when overriding __init__")


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value
        self.name = value.name

    @property
    def dtype(self) -> DataType:
        kinds = {onnx.TensorProto.FLOAT: DataType.FLOAT, onnx.TensorProto.FLOAT16: DataType.HALF}
        return kinds[self._value.type.tensor_type.elem_type]

    @property
    def shape(self) -> Dims:
        return Dims([dim.dim_value or -1 for dim in self._value.type.tensor_type.shape.dim])


class INetworkDefinition:
    def __init__(self, logger: ILogger, flags: int) -> None:
        self._logger, self._flags = logger, flags
        self._model = onnx.ModelProto()

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._model.graph.input[index])

    def get_output(self, index: int) -> ITensor:
        return ITensor(self._model.graph.output[index])


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self._shapes[input] = [min, opt, max]


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._made_for, self._timings = _MAGIC.decode() + __version__ + _GPU, {}
        if content:
            self._made_for, self._timings = json.loads(content)

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps([self._made_for, self._timings]).encode())


class IBuilderConfig:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._flags = {BuilderFlag.TF32}
        self._pools: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._cache = ITimingCache(b"")
        self.builder_optimization_level = 3
        self.progress_monitor: IProgressMonitor | None = None

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        for shapes in profile._shapes.values():
            if not all(low <= best <= high for low, best, high in zip(*shapes, strict=True)):
                return -1
        if _fails(self._logger, "IBuilderConfig.add_optimization_profile"):
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if _fails(self._logger, "IBuilderConfig.create_timing_cache"):
            return None
        try:
            return ITimingCache(bytes(serialized_timing_cache))
        except ValueError:
            _refuses(self._logger, "the timing cache cannot be read")
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._made_for != ITimingCache(b"")._made_for and not ignore_mismatch:
            return not _refuses(self._logger, "the timing cache was made by another TensorRT or for another GPU")
        self._cache = cache
        return True


class Builder:
    def __init__(self, logger: ILogger) -> None:
        _checked(logger)
        self._logger = logger
        if _fails(logger, "Builder.__init__"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        return None if _fails(self._logger, "Builder.create_network") else INetworkDefinition(self._logger, flags)

    def create_builder_config(self) -> IBuilderConfig | None:
        return None if _fails(self._logger, "Builder.create_builder_config") else IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile | None:
        return None if _fails(self._logger, "Builder.create_optimization_profile") else IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            covered = config._profiles and all(tensor.name in profile._shapes for profile in config._profiles)
            if -1 in tensor.shape._sizes and not covered:
                _refuses(self._logger, f"{tensor.name}: dynamic input is missing dimensions in profile 0")
                return None
        finished: list[bool] = []
        # The real one calls back from threads of its own, too.
        thread = Thread(target=lambda: finished.append(self._phases(network, config)))
        thread.start()
        thread.join()
        if not finished or not finished[0]:
            _refuses(self._logger, "the build was cancelled")
            return None
        if "_crash" in _faults:
            print("a wild pointer", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.Signals(int(_faults["_crash"])))
        if _fails(self._logger, "Builder.build_serialized_network"):
            return None
        header = {
            "version": __version__,
            "profiles": [profile._shapes for profile in config._profiles],
            "strongly_typed": network._flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED),
            "tf32": BuilderFlag.TF32 in config._flags,
            "workspace_bytes": config._pools.get(MemoryPoolType.WORKSPACE),
            "optimization_level": config.builder_optimization_level,
        }
        return IHostMemory(_MAGIC + json.dumps(header).encode() + b"\n" + network._model.SerializeToString())

    def _phases(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        monitor, nodes = config.progress_monitor, list(network._model.graph.node)
        pause_s = float(_faults.get("_step_s", "0"))
        if monitor is None:
            return True
        _checked(monitor)
        monitor.phase_start("building the engine", None, 2)
        monitor.phase_start("timing kernels", "building the engine", len(nodes))
        for step, node in enumerate(nodes):
            kernel = hashlib.sha256(node.SerializeToString()).hexdigest()
            if kernel not in config._cache._timings:
                time.sleep(pause_s)
                config._cache._timings[kernel] = 1
            if not monitor.step_complete("timing kernels", step):
                return False
        monitor.phase_finish("timing kernels")
        monitor.step_complete("building the engine", 0)
        monitor.step_complete("building the engine", 1)
        monitor.phase_finish("building the engine")
        return True


class ParserError:
    def __init__(self, why: str) -> None:
        self._why = why

    def desc(self) -> str:
        return self._why

    def node_name(self) -> str:
        return "node_1"

    def node_operator(self) -> str:
        return "GridSample"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        _checked(logger)
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            self._network._model = onnx.load(io.BytesIO(bytes(model)))
            onnx.checker.check_model(self._network._model)
        except Exception as err:
            self._errors.append(ParserError(str(err).splitlines()[0]))
            return not _refuses(self._logger, "the model cannot be parsed")
        if _fails(self._logger, "OnnxParser.parse"):
            self._errors.append(ParserError("this operator is not supported"))
            return False
        return True

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IExecutionContext:
    def __init__(self, engine: "ICudaEngine", managed: bool) -> None:
        self._engine, self._logger = engine, engine._logger
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._needs_memory = managed

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if _fails(self._logger, "IExecutionContext.set_optimization_profile_async"):
            return False
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return not _refuses(self._logger, f"there is no profile {profile_index}")
        if profile_index != self._profile:
            self._shapes.clear()
            self._addresses.clear()
        self._profile = profile_index
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 256 or size < self._engine.device_memory_size_v2:
            _refuses(self._logger, f"{size} bytes at {memory:#x} are no device memory for this engine")
            return
        self._needs_memory = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if _fails(self._logger, "IExecutionContext.set_input_shape"):
            return False
        profile = self._engine._profiles[self._profile]
        if name not in profile:
            return not _refuses(self._logger, f"{name} is no input")
        low, _best, high = profile[name]
        inside = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not inside:
            why = f"shape {shape} of {name} is not within profile {self._profile}: {low} to {high}"
            return not _refuses(self._logger, why)
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        if "IExecutionContext.infer_shapes" in _faults:
            raise RuntimeError(_faults["IExecutionContext.infer_shapes"])
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Dims:
        known = {}
        for given, shape in self._shapes.items():
            dims = self._engine._values[given].type.tensor_type.shape.dim
            known |= {dim.dim_param: size for dim, size in zip(dims, shape, strict=True)}
        dims = self._engine._values[name].type.tensor_type.shape.dim
        return Dims([dim.dim_value or known.get(dim.dim_param, -1) for dim in dims])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if _fails(self._logger, "IExecutionContext.set_tensor_address"):
            return False
        if name not in self._engine._values:
            return not _refuses(self._logger, f"{name} is neither input nor output")
        if memory % 256:
            return not _refuses(self._logger, f"address {memory:#x} of {name} is no multiple of 256")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if _fails(self._logger, "IExecutionContext.execute_async_v3"):
            return False
        if stream_handle == 0:
            return not _refuses(self._logger, "the default stream was given")
        if self._needs_memory:
            return not _refuses(self._logger, "no device memory was given")
        lacking = [name for name in self._engine._values if name not in self._addresses]
        if lacking or self.infer_shapes():
            return not _refuses(self._logger, f"no address or no shape is set for {lacking or self.infer_shapes()}")
        # What is captured goes by the shapes and addresses of now, whatever is set later.
        run = self._engine._run(dict(self._shapes), dict(self._addresses))
        if stream_handle in _recording:
            _recording[stream_handle].append(run)
        else:
            run()
        return True


class ICudaEngine:
    def __init__(self, logger: ILogger, header: dict, model: bytes) -> None:
        self._logger = logger
        self._profiles = header["profiles"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(io.BytesIO(model)).graph
        self._inputs = [value.name for value in graph.input]
        self._values = {value.name: value for value in [*graph.input, *graph.output]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def device_memory_size_v2(self) -> int:
        return 4096

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return ITensor(self._values[name]).dtype

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return [Dims(shape) for shape in self._profiles[profile_index][name]]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        if _fails(self._logger, "ICudaEngine.create_execution_context"):
            return None
        return IExecutionContext(self, strategy == ExecutionContextAllocationStrategy.USER_MANAGED)

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> Callable[[], None]:
        def memory(name: str, shape: tuple[int, ...]) -> np.ndarray:
            numbers = (ctypes.c_float * int(np.prod(shape))).from_address(addresses[name])
            return np.frombuffer(numbers, np.float32).reshape(shape)

        def run() -> None:
            given = {name: memory(name, shape) for name, shape in shapes.items()}
            for name, result in zip(
                [name for name in self._values if name not in self._inputs],
                self._session.run(None, given),
                strict=True,
            ):
                memory(name, result.shape)[...] = result

        return run


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        _checked(logger)
        self._logger = logger
        self.engine_host_code_allowed = False
        if _fails(logger, "Runtime.__init__"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        plan = bytes(serialized_engine)
        if _fails(self._logger, "Runtime.deserialize_cuda_engine"):
            return None
        if not plan.startswith(_MAGIC):
            _refuses(self._logger, "the plan has a wrong magic tag")
            return None
        header, model = plan.removeprefix(_MAGIC).split(b"\n", 1)
        told = json.loads(header)
        if told["version"] != __version__:
            _refuses(self._logger, f"the plan was made by version {told['version']}, this is {__version__}")
            return None
        return ICudaEngine(self._logger, told, model)
