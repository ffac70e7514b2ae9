"""Runs a stage on the CPU with OpenVINO: the default backend, in bfloat16 where the CPU has it."""

import io
import math
import zipfile
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from models.catalogue import DenoiserSpec, StageSpec
from trtbuild.engine import Array, BackendUnavailable, EngineFailed, Precision

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
QUANTISED = ("stage.xml", "stage.bin")  # the files in the archive that `quantise` makes
_CONVOLUTIONS = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
)
# A model in OpenVINO's own format with a layer that is marked to keep its precision. The mark's type cannot be named
# from Python, only read from a file and handed on.
_MARKED_LAYER = b"""<?xml version="1.0"?><net name="marked" version="11"><layers>
<layer id="0" name="in" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="marked" type="ReLU" version="opset1"><rt_info><attribute name="precise" version="0"/></rt_info>
<input><port id="0" precision="FP32"><dim>1</dim></port></input>
<output><port id="1" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="2" name="out" type="Result" version="opset1">
<input><port id="0" precision="FP32"><dim>1</dim></port></input></layer></layers>
<edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>"""


_cores: list[ov.Core] = []
_core_lock = Lock()


class OpenVinoEngine:
    """An ONNX graph compiled for this CPU, with one request that is used over and over.

    Height, width and batch stay dynamic. Measured 2026-11-21 on one core of an AMD EPYC with OpenVINO 2026.4, 256x256
    pixels: compiling takes 55 to 140 ms, a shape met for the first time 0 to 60 ms more than one met before, and a
    model compiled for one fixed shape runs no faster. A compiled model a shape would cost memory and gain nothing.
    """

    backend = "openvino"
    batch = 1
    contexts = 1

    def __init__(self, compiled: Any, precision: Precision) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = {port.get_any_name() for port in compiled.inputs}
        self.precision = precision

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        given = {"noisy": noisy, "sigma": sigma}
        # Inputs are read where they lie; the output is copied, for its memory is the request's and is written again.
        outputs = self._request.infer(
            {name: given[name] for name in self._inputs}, share_inputs=True, share_outputs=False
        )
        restored: Array = outputs[0]
        return restored


def open_engine(
    spec: DenoiserSpec,
    stage: StageSpec,
    *,
    precision: Precision | None,
    threads: int,
    graphs_dir: Path,
    weights_dir: Path,  # noqa: ARG001 - the graph holds them
) -> OpenVinoEngine:
    """See `trtbuild.open.open_engine`."""
    path = graphs_dir / f"{stage.name}.onnx"
    if not path.is_file():
        raise BackendUnavailable(
            f"there is no graph {path.name} in {graphs_dir}; make it with: python -m trtbuild.export"
        )
    if precision == "int8":
        raise BackendUnavailable("no shipped graph is in int8: it is made of one, and of your own pictures")
    return open_graph(path.read_bytes(), spec, stage, precision=precision, threads=threads)


def open_graph(
    graph: bytes,
    spec: DenoiserSpec,  # noqa: ARG001 - the graph says all that is needed
    stage: StageSpec,
    *,
    precision: Precision | None,
    threads: int,
) -> OpenVinoEngine:
    """Run a graph that is at hand.

    Args:
        graph: ONNX, weights inside: in float32, or for int8 as `trtbuild.quantise` made it.
        spec: the denoiser.
        stage: one of its stages.
        precision: of the inner layers; None for bfloat16 where the CPU has it, else float32.
        threads: of the CPU; 0 for all that the process may use.

    Raises:
        BackendUnavailable: this CPU cannot compute in that precision.
        EngineFailed: OpenVINO does not take the graph.
    """
    core = the_core()
    if precision is None:
        precision = "bf16" if has_bf16() else "fp32"
    # What is not 8-bit integers in an int8 graph is what else the CPU does well.
    floats: Precision = precision if precision != "int8" else "bf16" if has_bf16() else "fp32"
    if floats not in _HINTS or (floats == "bf16" and not has_bf16()):
        raise BackendUnavailable(f"openvino cannot run in {precision} on this CPU; it can in fp32")
    try:
        model = _read_quantised(core, graph) if precision == "int8" else core.read_model(graph)
    except (RuntimeError, zipfile.BadZipFile, KeyError) as err:
        raise EngineFailed(f"openvino does not take the graph of {stage.name}: {err}") from err
    if floats == "bf16":
        _keep_picture_exact(core, model)
        _keep_coordinates_exact(core, model)
    # Threads that are pinned are pinned to the first cores: two workers of one thread each share one core and leave the
    # other idle. Measured 2026-11-21 on two cores: 0.58 times the images of one worker of two threads, 1.07 unpinned.
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[floats],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    return OpenVinoEngine(core.compile_model(model, "CPU", properties), precision)


def has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16."""
    return "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def the_core() -> ov.Core:
    """The one of this process, which is never let go, and never made on the main thread.

    OpenVINO's CPU plugin gives the thread that loads it a small stack for signals, and takes it away from the thread
    that unloads it, which may be another: the first is left with a stack that is gone. Signals come to the main thread,
    and Python takes them on that stack: a worker that was asked to stop died of it (OpenVINO 2026.4.1, 2026-11-21).
    """
    with _core_lock:
        if not _cores:
            maker = Thread(target=_make_core, name="openvino")
            maker.start()
            maker.join()
        return _cores[0]


def _make_core() -> None:
    core = ov.Core()
    core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # loads the plugin, here and for good
    _cores.append(core)


def _read_quantised(core: ov.Core, archive: bytes) -> ov.Model:
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        description, weights = (files.read(name) for name in QUANTISED)
    return core.read_model(description, weights)


def _keep_picture_exact(core: ov.Core, model: ov.Model) -> None:
    """Let the picture itself pass in float32 through a graph whose feature maps are bfloat16.

    bfloat16 rounds what is above a half to 1/256: coarser than an 8-bit file, and more so layer after layer. A
    correction that is added to the picture at the end can bear it, the picture cannot. Of all the ways from the input
    to the output, the picture takes those with the fewest convolutions: none where a correction is added, so there is
    next to nothing to keep; some of the first and the last where the picture passes through feature maps. What lies on
    them is marked to stay in float32. A convolution that reads feature maps joined with the noisy picture becomes a sum
    of two, one over the maps and one over the picture, and only the second is marked.

    Measured 2026-11-21 on FITVNet's spatial stage (an early state of its training, six pictures, noise level 5 / 25):
    52.5 / 52.6 dB against float32 before, 79.2 / 76.1 dB after. That is 0.26 / 0.04 dB of the restored picture's PSNR,
    for a fifth more time. Marking the last three layers whole gave 68.1 / 72.0 dB for 40 % more.
    Untrained, RED-Net went from 51.8 to 68.4 dB for 30 % more time, DSC from 49.3 to 66.3 dB for 15 %.
    """
    frame = _frame(model)
    exact = way_of_picture(model)
    for layer in model.get_ordered_ops():
        if layer.get_friendly_name() not in exact or layer.get_type_name() != "Convolution":
            continue
        joined = layer.input_value(0).get_node()
        if joined.get_type_name() != "Concat" or joined.get_attributes()["axis"] != 1:
            continue
        sources = joined.input_values()
        if any(source.get_node().get_type_name() == "Parameter" for source in sources):
            exact |= _split(layer, sources)
    behind = {frame.get_friendly_name()}
    marks = _marks(core)
    for layer in model.get_ordered_ops():
        name = layer.get_friendly_name()
        if any(value.get_node().get_friendly_name() in behind for value in layer.input_values()):
            behind.add(name)
        if name in exact or name in behind:
            for key, mark in marks.items():
                layer.set_rt_info(mark, key)


def _frame(model: ov.Model) -> ov.Node:
    """The layer that gives the restored frame."""
    frame = model.get_results()[0].input_value(0).get_node()
    while frame.get_type_name() == "Concat":
        frame = frame.input_value(0).get_node()  # the first planes are the frame
    return frame


def way_of_picture(model: ov.Model) -> set[str]:
    """The layers on the ways from the noisy picture to the frame that pass the fewest convolutions, by name."""
    passed: dict[str, float] = {}  # layer -> convolutions between it and the picture; infinite if it does not see it
    for layer in model.get_ordered_ops():
        name, kind = layer.get_friendly_name(), layer.get_type_name()
        before = [passed[value.get_node().get_friendly_name()] for value in layer.input_values()]
        if kind == "Parameter":
            passed[name] = 0 if "noisy" in layer.output(0).get_names() else math.inf
        elif kind == "ShapeOf":
            passed[name] = math.inf  # knows the picture's size, not the picture
        else:
            passed[name] = min(before, default=math.inf) + (kind in _CONVOLUTIONS)
    way: set[str] = set()
    ahead = [_frame(model)]
    while ahead:
        layer = ahead.pop()
        name = layer.get_friendly_name()
        if name in way or passed[name] == math.inf:
            continue
        way.add(name)
        left = passed[name] - (layer.get_type_name() in _CONVOLUTIONS)
        inputs = [value.get_node() for value in layer.input_values()]
        ahead += [node for node in inputs if passed[node.get_friendly_name()] == left]
    return way


def _keep_coordinates_exact(core: ov.Core, model: ov.Model) -> None:
    """Let what says where a picture is read be float32: in bfloat16 a row of 480 pixels is counted in steps of 2.

    All that lies between the convolutions that find a flow and where it is followed is marked; a network has to compute
    it by operations that are not rewritten, for marks are lost with them. Measured 2026-11-21 on TOFlow, untrained, a
    picture of 480x848: 33.5 dB against float32 before, 67.1 after, for 5 % more time.
    """
    marks = _marks(core)
    found = coordinates(model)
    for layer in model.get_ordered_ops():
        if layer.get_friendly_name() in found:
            for key, mark in marks.items():
                layer.set_rt_info(mark, key)


def coordinates(model: ov.Model) -> set[str]:
    """The layers between convolutions and the places where they say that a picture is read, by name."""
    ahead = [
        layer.input_value(1).get_node() for layer in model.get_ordered_ops() if layer.get_type_name() == "GridSample"
    ]
    seen: set[str] = set()
    while ahead:
        layer = ahead.pop()
        if layer.get_friendly_name() in seen or layer.get_type_name() in ("Convolution", "Parameter", "Constant"):
            continue
        seen.add(layer.get_friendly_name())
        ahead += [value.get_node() for value in layer.input_values()]
    return seen


def _split(layer: ov.Node, sources: list[Any]) -> set[str]:
    """Replace a convolution over joined planes by a sum of one over each; names those over the picture, and the sum."""
    attributes = layer.get_attributes()
    weights = layer.input_value(1).get_node().data
    first, terms, of_picture = 0, [], set()
    for index, source in enumerate(sources):
        planes = source.get_partial_shape()[1].get_length()
        share = np.ascontiguousarray(weights[:, first : first + planes])
        first += planes
        term = ops.convolution(
            source,
            ops.constant(share),
            attributes["strides"],
            attributes["pads_begin"],
            attributes["pads_end"],
            attributes["dilations"],
            name=f"{layer.get_friendly_name()}/{index}",
        )
        if source.get_node().get_type_name() == "Parameter":
            of_picture.add(term.get_friendly_name())
        terms.append(term)
    total = terms[0]
    for term in terms[1:]:
        total = ops.add(total, term)
        of_picture.add(total.get_friendly_name())
    layer.output(0).replace(total.output(0))
    return of_picture


def _marks(core: ov.Core) -> dict[str, Any]:
    """What says of a layer that it keeps its precision; empty if this OpenVINO knows no such thing."""
    model = core.read_model(_MARKED_LAYER, b"")
    layer = next(layer for layer in model.get_ordered_ops() if layer.get_friendly_name() == "marked")
    return dict(layer.get_rt_info().items())
