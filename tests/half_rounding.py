"""What would half precision do to a graph, on a CPU that computes in float32 all the same?

ONNX Runtime has no float16 kernels for x86: it computes such nodes in float32, and leaves out casts there and back. So
here the rounding is written out: every result that is float16 in the graph is rounded to its 11 bits by arithmetic
that no optimizer knows (Dekker 1971, the splitting of a number by a multiplication with 2^13 + 1). Sums inside a
convolution stay float32, as on tensor cores. What float16 cannot hold at all is not shown: neither overflow nor the
loss of numbers below 6e-5.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

SPLITTER = "splitter"


def rounding(half: bytes) -> bytes:
    """A float32 graph that rounds where the given one is float16."""
    model = shape_inference.infer_shapes(onnx.load_model_from_string(half), strict_mode=True, data_prop=True)
    graph = model.graph
    in_half = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Cast" and node.output[0] not in in_half and node.input[0] in in_half:
            node.op_type = "Identity"
            del node.attribute[:]
        for place, name in enumerate(node.output):
            if name in in_half:
                exact, scaled, rest = (f"{name}.{part}" for part in ("exact", "scaled", "rest"))
                if node.op_type == "Cast":
                    node.op_type = "Identity"
                    del node.attribute[:]
                node.output[place] = exact
                nodes.append(helper.make_node("Mul", [exact, SPLITTER], [scaled]))
                nodes.append(helper.make_node("Sub", [scaled, exact], [rest]))
                nodes.append(helper.make_node("Sub", [scaled, rest], [name]))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.float32(2**13 + 1), SPLITTER))
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
