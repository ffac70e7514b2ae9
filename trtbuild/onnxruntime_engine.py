"""Runs a stage with ONNX Runtime: on whatever this one was built for, and on the CPU in any case.

Of its execution providers CUDA and the CPU are meant; CoreML and DirectML are taken where they are, but have never been
tried. Its TensorRT provider is left out: it builds while the first request waits. See `docs/engines.md`.
"""

import logging
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as raised

from models.catalogue import DenoiserSpec, StageSpec
from trtbuild.engine import Array, BackendUnavailable, EngineFailed, OutOfDeviceMemory, Precision

log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_PROVIDERS: dict[str, dict[str, str]] = {  # the best first, each with its options
    # TF32 keeps 11 bits of a number, which is no float32. A search for the best algorithm takes seconds for every size
    # that is met, while a request waits.
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    "CoreMLExecutionProvider": {},
    "DmlExecutionProvider": {},
    _CPU: {},
}
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
_FAILURES = (
    raised.Fail,
    raised.InvalidArgument,
    raised.InvalidGraph,
    raised.InvalidProtobuf,
    raised.NotImplemented,
    raised.RuntimeException,
)
_NO_MEMORY = ("failed to allocate memory", "out of memory")


class OnnxRuntimeEngine:
    """A graph with a session of its own.

    The precision is the graph's. On a CPU float16 gains nothing: for x86 there are no such kernels, and the graph is
    computed in float32, with its weights of float16.
    """

    backend = "onnxruntime"
    batch = 1
    contexts = 1

    def __init__(self, session: onnxruntime.InferenceSession, precision: Precision) -> None:
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        self.provider: str = session.get_providers()[0]
        self.precision = precision

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        given = {"noisy": noisy, "sigma": sigma}
        try:
            outputs = self._session.run(None, {name: given[name] for name in self._inputs})
        except _FAILURES as err:
            if self.provider != _CPU and any(words in str(err).lower() for words in _NO_MEMORY):
                raise OutOfDeviceMemory(f"onnxruntime has no room for {list(noisy.shape)}: {err}") from err
            raise EngineFailed(f"onnxruntime on {self.provider}: {err}") from err
        restored: Array = np.asarray(outputs[0], np.float32)
        return restored


def open_engine(
    spec: DenoiserSpec,
    stage: StageSpec,
    *,
    precision: Precision | None,
    threads: int,
    graphs_dir: Path,
    weights_dir: Path,  # noqa: ARG001 - the graph holds them
) -> OnnxRuntimeEngine:
    """See `trtbuild.open.open_engine`. Without a precision it is float32; float16 is made of the shipped graph."""
    path = graphs_dir / f"{stage.name}.onnx"
    if not path.is_file():
        raise BackendUnavailable(
            f"there is no graph {path.name} in {graphs_dir}; make it with: python -m trtbuild.export"
        )
    if precision not in (None, "fp32", "fp16"):
        raise BackendUnavailable(f"onnxruntime runs shipped graphs in fp32 and fp16; not in {precision}")
    graph = path.read_bytes()
    if precision == "fp16":
        try:
            from trtbuild.half import in_half
        except ModuleNotFoundError as err:
            raise BackendUnavailable(
                f"{err.name} is not installed; it comes with: pip install 'quietframe[onnxruntime]'"
            ) from err
        graph = in_half(graph)
    return open_graph(graph, spec, stage, precision=precision or "fp32", threads=threads)


def open_graph(
    graph: bytes,
    spec: DenoiserSpec,  # noqa: ARG001 - the graph says all that is needed
    stage: StageSpec,
    *,
    precision: Precision,
    threads: int,
) -> OnnxRuntimeEngine:
    """Run a graph that is at hand.

    Args:
        graph: ONNX, weights inside; float16 where the precision says so.
        spec: the denoiser.
        stage: one of its stages.
        precision: of the graph.
        threads: of the CPU; 0 for all that the process may use.

    Raises:
        BackendUnavailable: no graph is in that precision.
        EngineFailed: ONNX Runtime does not take the graph.
    """
    if precision not in _PRECISIONS:
        raise BackendUnavailable(f"onnxruntime runs in {', '.join(_PRECISIONS)}; not in {precision}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # it plans for one shape, and here are many
    options.log_severity_level = 3  # errors: it warns of every node that stays on the CPU
    there = onnxruntime.get_available_providers()
    providers = [(name, asked) for name, asked in _PROVIDERS.items() if name in there]
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
    except _FAILURES as err:
        raise EngineFailed(f"onnxruntime does not take the graph of {stage.name}: {err}") from err
    if (best := providers[0][0]) not in session.get_providers():
        log.warning("onnxruntime comes with %s, which does not work here; it runs on the CPU", best)
    return OnnxRuntimeEngine(session, precision)
