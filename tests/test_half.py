"""Is a graph in half precision float16 where that is harmless and fast, and float32 where a picture would suffer?"""

import numpy as np
import onnx
import onnxruntime
import pytest
from half_rounding import rounding
from onnx import TensorProto, numpy_helper, shape_inference
from seeded_networks import STAGES, graph_of, network_of

from models.catalogue import DNCNN
from models.quality import psnr_db
from models.weights import cut_into_stages
from trtbuild.export import export_stage
from trtbuild.half import NotInHalf, in_half
from trtbuild.opcheck import findings

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
SAMPLING = ["toflow", "deform2d", "deform3d"]


def read(graph: bytes) -> onnx.ModelProto:
    return shape_inference.infer_shapes(onnx.load_model_from_string(graph), strict_mode=True, data_prop=True)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    known = {weight.name: weight.data_type for weight in graph.initializer}
    values = (*graph.input, *graph.output, *graph.value_info)
    return known | {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize("name", STAGES)
def test_every_network_is_half_inside_and_single_outside(name):
    half = in_half(graph_of(name))
    model, before = read(half), read(graph_of(name))
    types = types_of(model)
    for ours, theirs in ((model.graph.input, before.graph.input), (model.graph.output, before.graph.output)):
        assert [value.SerializeToString() for value in ours] == [value.SerializeToString() for value in theirs]
    products = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert products
    assert {types[name] for node in products for name in (*node.input, *node.output)} == {HALF}
    assert len(half) < 0.53 * len(graph_of(name))  # no weight is there twice
    assert not model.metadata_props
    assert findings(half) == []


@pytest.mark.parametrize("name", STAGES)
def test_every_network_restores_in_half_what_it_does_in_single(name):
    spec, stage = STAGES[name]
    side = -(-32 // spec.multiple) * spec.multiple
    rng = np.random.default_rng(1)
    # Beside noise a slope from black to white: places and light where rounding is coarsest.
    noisy = rng.normal(0, 0.1, (1, stage.frames * stage.planes_in, side, 2 * side)) + np.linspace(0, 1, 2 * side)
    given = {"noisy": noisy.astype(np.float32), "sigma": np.full(1, 0.1, np.float32)}
    exact, rounded = (run(graph, given) for graph in (graph_of(name), rounding(in_half(graph_of(name)))))
    assert rounded.dtype == np.float32
    # 68 to 100 dB are met; ten less would still be four times what 8-bit files can show.
    assert psnr_db(rounded, exact) > 60


def run(graph: bytes, given: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: given[value.name] for value in session.get_inputs()})[0]


@pytest.mark.parametrize("name", SAMPLING)
def test_where_a_picture_is_read_is_told_in_single_precision(name):
    model = read(in_half(graph_of(name)))
    types = types_of(model)
    maker = {output: node for node in model.graph.node for output in node.output}
    ahead = [name for node in model.graph.node if node.op_type == "GridSample" for name in (*node.input, *node.output)]
    assert ahead
    seen = set()
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        node = maker.get(name)
        if node is not None and node.op_type == "Cast" and types[node.input[0]] == HALF:
            assert maker[node.input[0]].op_type != "Cast"  # it comes from where it was computed, unspoilt before
            continue
        assert types[name] != HALF
        if node is not None and types[name] == SINGLE:
            ahead += [before for before in node.input if before]
    assert len(seen) > 20


@pytest.mark.parametrize("name", ["dncnn", "fitvnet-first", "fastdvdnet-second", "toflow"])
def test_a_correction_is_added_to_the_picture_in_single_precision(name):
    model = read(in_half(graph_of(name)))
    types = types_of(model)
    sums = [node for node in model.graph.node if node.op_type in ("Add", "Sub") and types[node.output[0]] == SINGLE]
    assert any(_is_the_picture(name, model) for node in sums for name in node.input)


def _is_the_picture(name: str, model: onnx.ModelProto) -> bool:
    """Nothing but cut out of the input."""
    maker = {output: node for node in model.graph.node for output in node.output}
    while name in maker and maker[name].op_type in ("Slice", "Reshape", "Gather", "Split", "Squeeze"):
        name = maker[name].input[0]
    return name == "noisy"


def test_large_sums_and_softmax_are_single():
    model = read(in_half(graph_of("pridnet")))
    types = types_of(model)
    wide = [node for node in model.graph.node if node.op_type in ("ReduceMean", "ReduceSum", "Softmax")]
    assert len(wide) >= 4
    assert {types[name] for node in wide for name in (node.input[0], node.output[0])} == {SINGLE}


def test_rewriting_twice_gives_the_same_bytes_and_export_gives_them_too():
    graph = graph_of("dncnn")
    assert in_half(graph) == in_half(graph)
    module = cut_into_stages(DNCNN, network_of("dncnn"))["dncnn"]
    assert export_stage(DNCNN, DNCNN.stages[0], module, "fp16") == in_half(graph)


def stage(body: str, weights: dict[str, np.ndarray]) -> bytes:
    head = '<ir_version: 8, opset_import: ["" : 18]> stage'
    values = "(float[n, 1, h, w] noisy) => (float[n, 1, h2, w2] restored)"
    model = onnx.parser.parse_model(f"{head} {values} {body}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model.SerializeToString()


def weight(value: float) -> np.ndarray:
    return np.full((1, 1, 1, 1), value, np.float32)


def test_what_both_halves_of_a_graph_read_is_cast_once_each_way():
    body = """{
        first = Conv(noisy, one)
        second = Conv(noisy, one)
        both = Add(first, second)
        third = Conv(both, one)
        mean = ReduceMean(both, axes)
        most = ReduceMax(both, axes)
        spread = Add(mean, most)
        shifted = Add(third, spread)
        restored = Conv(shifted, one)
    }"""
    graph = stage(body, {"one": weight(0.5), "axes": np.array([2, 3])})
    model = read(in_half(graph))
    casts = [(node.input[0], node.attribute[0].i) for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    to_half = {("noisy", HALF), ("mean", HALF), ("most", HALF)}
    assert set(casts) == to_half | {("both", SINGLE), ("restored_half", SINGLE)}
    noisy = np.random.default_rng(1).random((2, 1, 4, 6), np.float32)
    exact, rounded = (run(made, {"noisy": noisy}) for made in (graph, in_half(graph)))
    assert rounded.dtype == np.float32
    assert np.abs(rounded - exact).max() < 2e-3


def test_the_scales_of_a_resize_stay_as_its_operator_wants_them():
    body = '{ a = Conv(noisy, one) b = Resize<mode: string = "linear">(a, , scales) restored = Conv(b, one) }'
    graph = stage(body, {"one": weight(1.0), "scales": np.array([1, 1, 2, 2], np.float32)})
    model = read(in_half(graph))
    types = types_of(model)
    (resize,) = (node for node in model.graph.node if node.op_type == "Resize")
    assert types[resize.input[0]] == types[resize.output[0]] == HALF
    assert types[resize.input[2]] == SINGLE


def test_a_weight_that_half_precision_cannot_hold_is_refused():
    graph = stage("{ restored = Conv(noisy, huge) }", {"huge": weight(7e4)})
    with pytest.raises(NotInHalf, match="huge reaches 70000; float16 ends at 65504"):
        in_half(graph)
