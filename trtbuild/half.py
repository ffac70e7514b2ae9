"""Which parts of a graph may be computed in half precision, and how is it rewritten so that they are?

A strongly typed build takes its types from the graph, so precision is decided here. Convolutions and matrix products
are float16, and so is what lies between them. float32 stay the input and the output, as they are for callers, and:

* what lies behind the last convolution: a correction is added to the picture, or samples are weighed, in float32;
* what lies before the first one;
* all that says where a picture is read, and the reading itself: float16 counts the pixels of a row of 4096 in twos;
* sums over many values, softmax, powers and divisions.

The rewriting needs `onnx` and no torch: graphs that ship, or were exported elsewhere, are rewritten where they run.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from models.errors import QuietframeError

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What may be float16 between two of those: it moves values, takes the larger one, or computes with a few.
_BETWEEN = frozenset(
    """
    Add AveragePool Clip Concat DepthToSpace Expand Flatten Gather Identity LeakyRelu Max MaxPool Min Mul Neg Pad PRelu
    Relu Reshape Resize Sigmoid Slice SpaceToDepth Split Squeeze Sub Tanh Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 - to be read, not to be diffed
)
_LARGEST_MEAN = 16  # values that an AveragePool in float16 may add up
_LARGEST = float(np.finfo(np.float16).max)


class NotInHalf(QuietframeError):
    """A weight is too large for float16; the message names it."""


def in_half(graph: bytes) -> bytes:
    """The same graph with a body of float16; its inputs and its output are float32 as before.

    Args:
        graph: a serialized ONNX model in float32, as `export_stage` gives it.

    Returns:
        The same bytes for the same graph, wherever it is done.

    Raises:
        NotInHalf: a weight is beyond what float16 can hold.
    """
    model = onnx.load_model_from_string(graph)
    floats = _floats(model)
    _rewrite(model, _halves(model, floats), floats)
    onnx.checker.check_model(model, full_check=True)
    rewritten: bytes = model.SerializeToString(deterministic=True)
    return rewritten


def _floats(model: onnx.ModelProto) -> set[str]:
    """The names of all float32 tensors."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {weight.name for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT}


def _halves(model: onnx.ModelProto, floats: set[str]) -> set[int]:
    """Which nodes, by their place in the graph, are to be float16."""
    nodes = model.graph.node
    products = {i for i, node in enumerate(nodes) if node.op_type in _PRODUCTS and node.output[0] in floats}
    maker = {name: i for i, node in enumerate(nodes) for name in node.output}
    reads = [[maker[name] for name in node.input if name in maker and name in floats] for node in nodes]
    behind: set[int] = set()  # it depends on a product
    for i in range(len(nodes)):
        if any(before in products or before in behind for before in reads[i]):
            behind.add(i)
    open_ended = {maker[value.name] for value in model.graph.output}  # the output depends on it by no product
    for i in reversed(range(len(nodes))):
        if i in open_ended and i not in products:
            open_ended.update(reads[i])
    exact = _coordinates(nodes, products, maker, floats)
    return {
        i
        for i, node in enumerate(nodes)
        if i not in exact
        and (i in products or (i in behind and i not in open_ended and node.output[0] in floats and _may_be_half(node)))
    }


def _may_be_half(node: onnx.NodeProto) -> bool:
    if node.op_type == "AveragePool":
        (kernel,) = (helper.get_attribute_value(one) for one in node.attribute if one.name == "kernel_shape")
        return int(np.prod(kernel)) <= _LARGEST_MEAN
    return node.op_type in _BETWEEN


def _coordinates(
    nodes: Iterable[onnx.NodeProto], products: set[int], maker: dict[str, int], floats: set[str]
) -> set[int]:
    """Where pictures are read, and all that says where, back to the products that it is made of."""
    listed = list(nodes)
    found = {i for i, node in enumerate(listed) if node.op_type == "GridSample"}
    ahead = [listed[i].input[1] for i in found]
    while ahead:
        i = maker.get(ahead.pop())
        if i is not None and i not in found and i not in products:
            found.add(i)
            ahead += [name for name in listed[i].input if name in floats]
    return found


def _rewrite(model: onnx.ModelProto, halves: set[int], floats: set[str]) -> None:
    """Give the chosen nodes float16 inputs and outputs, with a Cast wherever the type changes."""
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    written = {name for node in graph.node for name in node.output}
    taken = written | weights.keys() | {value.name for value in graph.input}
    results = {value.name for value in graph.output}
    in_half: dict[str, str] = {}  # float32 tensor -> its float16 twin
    made_half: set[str] = set()  # tensors that are float16 under their own name
    in_float: dict[str, str] = {}  # and the float32 twins of those
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, to: TensorProto.DataType, suffix: str) -> str:
        twin = f"{name}_{suffix}"
        assert twin not in taken, twin
        taken.add(twin)
        nodes.append(helper.make_node("Cast", [name], [twin], name=f"node_{twin}", to=to))
        return twin

    for i, node in enumerate(graph.node):
        half = i in halves
        alike = _like_the_output(node)
        for place, name in enumerate(node.input):
            if name not in floats:
                continue
            if half and place in alike and name not in made_half:
                if name not in in_half:
                    in_half[name] = (
                        _add_half(graph, weights[name]) if name in weights else cast(name, TensorProto.FLOAT16, "half")
                    )
                node.input[place] = in_half[name]
            elif not half and name in made_half and node.op_type != "Shape":
                if name not in in_float:
                    in_float[name] = cast(name, TensorProto.FLOAT, "float")
                node.input[place] = in_float[name]
        nodes.append(node)
        if half:
            for place, name in enumerate(node.output):
                if name in results:
                    node.output[place] = f"{name}_half"
                    nodes.append(
                        helper.make_node("Cast", [f"{name}_half"], [name], name=f"node_{name}", to=TensorProto.FLOAT)
                    )
                else:
                    made_half.add(name)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for weight in list(graph.initializer):
        if weight.name not in read:
            graph.initializer.remove(weight)


def _like_the_output(node: onnx.NodeProto) -> set[int]:
    """Which inputs are of the output's type. Not the scales of a Resize: they are float32 always."""
    schema = defs.get_schema(node.op_type, 18)
    last = len(schema.inputs) - 1  # of a list without end, like that of Concat, the last stands for the rest
    of_output = schema.outputs[0].type_str
    return {i for i in range(len(node.input)) if schema.inputs[min(i, last)].type_str == of_output}


def _add_half(graph: onnx.GraphProto, weight: TensorProto) -> str:
    values = numpy_helper.to_array(weight)
    if np.abs(values).max(initial=0) > _LARGEST:
        raise NotInHalf(f"{weight.name} reaches {np.abs(values).max():g}; float16 ends at {_LARGEST:g}")
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{weight.name}_half"))
    return f"{weight.name}_half"
