"""Which nodes of a graph would TensorRT refuse, or silently compute otherwise, and how are they written instead?

Asked before a build, which takes minutes and tells less. `python -m trtbuild.opcheck FILE.onnx…` prints what it finds.

What is supported is taken from the parser's own documentation (onnx/onnx-tensorrt, docs/operators.md, and the guide of
TensorRT 10 and 11); the silent changes from its issues, NVIDIA/TensorRT#4646 among them. A graph without findings can
still be refused by a TensorRT: this reads tables and asks nobody. That a graph computes what its network does is for
the guard and the tests of engines to say.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from models.errors import QuietframeError

OPSETS = range(9, 20)
# From this side on a pooling kernel is taken for one that adaptive pooling made of the size it was exported at: the
# largest of a network of ours is 16.
BAKED_KERNEL_PX = 17
ALLOWED_TYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.INT8,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.BOOL,
    }
)
_SUPPORTED = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf
    Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
    Greater GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid HardSwish Identity InstanceNormalization IsInf
    IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LRN LSTM MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mod Mul Neg Not OneHot Or Pad Pow PRelu QuantizeLinear Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize RNN Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where
    Xor
    """.split()  # noqa: SIM905 - to be read, not to be diffed
)
_RATHER = {
    "Col2Im": "add shifted slices, or use a transposed convolution with one-hot weights (F.fold exports as Col2Im)",
    "AffineGrid": "compute the grid by additions and multiplications in float32",
    "MaxUnpool": "use a transposed convolution or pixel_shuffle",
    "If": "decide before the export: a graph has one way through",
    "Loop": "unroll it: a window has a fixed number of frames",
    "Scan": "unroll it: a window has a fixed number of frames",
}


class GraphRefused(QuietframeError):
    """TensorRT would refuse this graph, or compute something else; the message names every such node."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A node that must not be as it is."""

    node: str  # its name, or if it has none, its first output
    operator: str
    trouble: str
    instead: str

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.trouble}; {self.instead}"


def insist(graph: bytes) -> None:
    """Let a graph through that `findings` has nothing against.

    Raises:
        GraphRefused: it has.
    """
    if found := findings(graph):
        raise GraphRefused("\n".join(map(str, found)))


def findings(graph: bytes) -> list[Finding]:
    """What TensorRT 10.16 or 11 would refuse or silently change, in the graph's order.

    Args:
        graph: a serialized ONNX model, weights inside.
    """
    model = onnx.load_model_from_string(graph)
    found = [
        Finding("the graph", f"opset {opset.version}", f"opsets {OPSETS[0]} to {OPSETS[-1]} are safe", "export at 18")
        for opset in model.opset_import
        if opset.domain in _STANDARD and opset.version not in OPSETS
    ]
    known = _Known.of(model)
    for node in model.graph.node:
        for trouble, instead in _troubles(node, known):
            found.append(Finding(node.name or node.output[0], node.op_type, trouble, instead))
    return found


_STANDARD = ("", "ai.onnx")
_Trouble = tuple[str, str]  # what is wrong, what to write instead


@dataclass(frozen=True, slots=True)
class _Known:
    """Of the tensors of a graph: which are constant, and of which type and rank those are that can be told."""

    constants: dict[str, TensorProto]
    types: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> "_Known":
        known = cls({weight.name: weight for weight in model.graph.initializer})
        for node in model.graph.node:
            if node.op_type == "Constant":
                known.constants.update((node.output[0], one.t) for one in node.attribute if one.name == "value")
        known.types.update({name: value.data_type for name, value in known.constants.items()})
        known.ranks.update({name: len(value.dims) for name, value in known.constants.items()})
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        for value in (*inferred.input, *inferred.output, *inferred.value_info):
            known.types[value.name] = value.type.tensor_type.elem_type
            if value.type.tensor_type.HasField("shape"):
                known.ranks[value.name] = len(value.type.tensor_type.shape.dim)
        return known


def _troubles(node: onnx.NodeProto, known: _Known) -> Iterator[_Trouble]:
    if node.domain not in _STANDARD:
        yield f"its domain {node.domain} needs a plugin", "write it by standard operators"
        return
    if node.op_type not in _SUPPORTED:
        yield "TensorRT has no such operator", _RATHER.get(node.op_type, "write it by others")
        return
    for name in (*node.input, *node.output):
        of_type = known.types.get(name, TensorProto.FLOAT)
        if of_type == TensorProto.DOUBLE:
            yield f"{name} is float64, which is cut down to float32", "compute it in float32"
        elif of_type not in ALLOWED_TYPES:
            yield f"{name} is {TensorProto.DataType.Name(of_type).lower()}", "use float32, float16, int32 or int64"
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    for index in _CONSTANT_INPUTS.get(node.op_type, ()):
        if index < len(node.input) and node.input[index] and node.input[index] not in known.constants:
            yield f"input {node.input[index]} is computed; it has to be a constant", "fix it when exporting"
    if node.op_type in _RULES:
        yield from _RULES[node.op_type](node, attributes, known)


# By operator, the inputs that have to be constant.
_CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (name for name in _SUPPORTED if name.startswith("Reduce")),
        (1,),  # axes
    ),
    "Pad": (3,),  # axes
    "Slice": (3,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "CumSum": (1,),
    "TopK": (1,),
    "InstanceNormalization": (1, 2),
}


def _grid_sample(node: onnx.NodeProto, attributes: dict[str, Any], known: _Known) -> Iterator[_Trouble]:
    if attributes.get("mode", b"bilinear") not in (b"bilinear", b"nearest", b"bicubic"):
        mode = attributes["mode"].decode()
        yield f'mode {mode!r}, of opset 20 and above, is read as "nearest" without a word', "export at opset 18"
    picture, grid = node.input[:2]
    if known.ranks.get(picture, 4) != 4:
        yield (
            "samples of more than pictures are not read",
            "lay the frames below each other: models/networks/sampling.py",
        )
    if known.types.get(grid) != TensorProto.FLOAT:
        yield "its grid is not float32: places are off by pixels", "keep coordinates and sampling in float32"
    elif known.types.get(picture) != TensorProto.FLOAT:
        yield "picture and grid are not of one type", "keep coordinates and sampling in float32"


def _resize(node: onnx.NodeProto, attributes: dict[str, Any], known: _Known) -> Iterator[_Trouble]:  # noqa: ARG001
    if attributes.get("mode", b"nearest") == b"cubic":
        yield "cubic is not documented as supported", "use bilinear, or a convolution with fixed weights"
    if attributes.get("antialias", 0):
        yield "antialias is not supported", "average first, then sample"
    transformation = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    if transformation not in (
        "half_pixel",
        "pytorch_half_pixel",
        "asymmetric",
        "align_corners",
        "tf_half_pixel_for_nn",
    ):
        yield f"coordinates {transformation} are not supported", "use half_pixel"


def _pool(node: onnx.NodeProto, attributes: dict[str, Any], known: _Known) -> Iterator[_Trouble]:  # noqa: ARG001
    kernel, strides = (list(attributes.get(name, ())) for name in ("kernel_shape", "strides"))
    if kernel == strides and (len(set(kernel)) > 1 or max(kernel) >= BAKED_KERNEL_PX):
        yield (
            f"a kernel of {'x'.join(map(str, kernel))} looks like adaptive pooling with the exported size baked in",
            "use avg_pool2d with a fixed kernel, or a mean over all of the picture",
        )
    if len(kernel) not in (2, 3):
        yield f"pooling over {len(kernel)} axes is not supported", "use 2 or 3"
    if any(step != 1 for step in attributes.get("dilations", ())):
        yield "dilations are not supported", "leave them out"
    if len(node.output) > 1:
        yield "it gives indices", "take the maximum alone"


def _scatter(node: onnx.NodeProto, attributes: dict[str, Any], known: _Known) -> Iterator[_Trouble]:  # noqa: ARG001
    reduction = attributes.get("reduction", b"none").decode()
    if reduction != "none":
        yield f"reduction {reduction!r} is not supported", "gather what is added, and sum it"


def _range(node: onnx.NodeProto, attributes: dict[str, Any], known: _Known) -> Iterator[_Trouble]:  # noqa: ARG001
    if known.types.get(node.output[0]) == TensorProto.FLOAT and not known.constants.keys() >= set(node.input):
        yield "a range of floats over a computed length is not supported", "count in int64, then cast"


def _weights(node: onnx.NodeProto, attributes: dict[str, Any], known: _Known) -> Iterator[_Trouble]:  # noqa: ARG001
    if known.ranks.get(node.input[1], 4) not in (4, 5):
        yield "convolutions are in two or three dimensions", "add a dimension of length 1"


def _quantised(node: onnx.NodeProto, attributes: dict[str, Any], known: _Known) -> Iterator[_Trouble]:  # noqa: ARG001
    zero = known.constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and numpy_helper.to_array(zero).any():
        yield "its zero point is not 0", "quantise symmetrically"


_RULES: dict[str, Callable[[onnx.NodeProto, dict[str, Any], _Known], Iterator[_Trouble]]] = {
    "GridSample": _grid_sample,
    "Resize": _resize,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "Range": _range,
    "Conv": _weights,
    "ConvTranspose": _weights,
    "QuantizeLinear": _quantised,
    "DequantizeLinear": _quantised,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trtbuild.opcheck", description="Say what TensorRT would refuse or silently change."
    )
    parser.add_argument("graphs", nargs="+", type=Path, metavar="FILE.onnx")
    status = 0
    for path in parser.parse_args(arguments).graphs:
        found = findings(path.read_bytes())
        print("\n".join(f"{path.name}: {one}" for one in found) or f"{path.name}: nothing found")
        status |= bool(found)
    return status


if __name__ == "__main__":
    sys.exit(main())
