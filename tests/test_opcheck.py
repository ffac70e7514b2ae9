"""Is a graph that TensorRT would refuse, or compute otherwise, found out before the build?"""

import logging
import re
import warnings
from collections.abc import Callable

import onnx
import pytest
import torch
from seeded_networks import STAGES, graph_of
from torch import Tensor, nn
from torch.nn import functional as F

from models.catalogue import SHIPPED_DIR
from trtbuild.opcheck import GraphRefused, findings, insist, main

Compute = Callable[[Tensor], Tensor]


class Computing(nn.Module):
    def __init__(self, compute: Compute):
        super().__init__()
        self.compute = compute

    def forward(self, noisy: Tensor) -> Tensor:
        return self.compute(noisy)


def exported(compute: Compute, opset: int = 18) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Computing(compute),
            (torch.rand(2, 3, 64, 96),),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def written(body: str, opsets: str = '"" : 18') -> bytes:
    planes = "float[batch, 3, height, width]"
    head = f"<ir_version: 8, opset_import: [{opsets}]> stage ({planes} noisy) => ({planes} restored)"
    return onnx.parser.parse_model(f"{head} {body}").SerializeToString()


def grid_for(noisy: Tensor, axes: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    size = (noisy.shape[0], *[1] * (axes - 2), noisy.shape[2], noisy.shape[3], axes)
    return torch.zeros(size, dtype=dtype)


def sampled(noisy: Tensor) -> Tensor:
    return F.grid_sample(noisy, grid_for(noisy), align_corners=True)


def sampled_in_half(noisy: Tensor) -> Tensor:
    return F.grid_sample(noisy.half(), grid_for(noisy, dtype=torch.float16), align_corners=True).float()


def sampled_in_time(noisy: Tensor) -> Tensor:
    return F.grid_sample(noisy[:, :, None], grid_for(noisy, 3), align_corners=True)[:, :, 0]


def folded(noisy: Tensor) -> Tensor:
    return F.fold(F.unfold(noisy, 3, padding=1), list(noisy.shape[2:]), 3, padding=1)


def shrunk(noisy: Tensor) -> Tensor:
    size = (noisy.shape[2] // 2, noisy.shape[3] // 2)
    return F.interpolate(noisy, size=size, mode="bilinear", antialias=True)


def added_up(noisy: Tensor) -> Tensor:
    return torch.zeros_like(noisy).scatter_add(3, torch.zeros_like(noisy, dtype=torch.long), noisy)


@pytest.mark.parametrize(
    ("compute", "opset", "operator", "trouble", "instead"),
    [
        (sampled, 20, "GridSample", "'linear'.* is read as \"nearest\"", "opset 18"),
        (sampled_in_time, 18, "GridSample", "more than pictures", "sampling.py"),
        (sampled_in_half, 18, "GridSample", "grid is not float32", "float32"),
        (lambda noisy: (noisy.double() * 1.5).float(), 18, "Mul", "float64", "float32"),
        (folded, 18, "Col2Im", "no such operator", "shifted slices"),
        (lambda noisy: F.interpolate(noisy, scale_factor=2.0, mode="bicubic"), 18, "Resize", "cubic", "bilinear"),
        (shrunk, 18, "Resize", "antialias", "average first"),
        (lambda noisy: F.adaptive_avg_pool2d(noisy, 2), 18, "AveragePool", "32x48 .* baked in", "avg_pool2d"),
        (added_up, 18, "ScatterElements", "'add' is not supported", "gather"),
        (
            lambda noisy: noisy + torch.arange(noisy.shape[3], dtype=torch.float32),
            18,
            "Range",
            "range of floats",
            "int64",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_torch_exports_without_a_word_is_found(compute, opset, operator, trouble, instead):
    found = findings(exported(compute, opset))
    nodes = [one for one in found if one.operator == operator]
    assert nodes, found
    assert {one.operator for one in found} <= {operator, "Cast", f"opset {opset}"}  # nothing else is blamed
    assert any(re.search(trouble, one.trouble) and instead in one.instead for one in nodes), nodes


def test_pooling_and_means_of_any_size_are_let_through():
    def compute(noisy: Tensor) -> Tensor:
        pyramid = F.interpolate(F.avg_pool2d(noisy, 16), scale_factor=16.0, mode="bilinear")
        # A range of integers may be of any length.
        return (
            pyramid
            + torch.arange(noisy.shape[3]).float()
            + F.adaptive_avg_pool2d(noisy, 1)
            + F.max_pool2d(noisy, 2).amax((2, 3), keepdim=True)
        )

    assert findings(exported(compute)) == []


@pytest.mark.parametrize(
    ("body", "opsets", "said"),
    [
        ("{ restored = ours.Sharpen(noisy) }", '"" : 18, "ours" : 1', r"Sharpen\): its domain ours needs a plugin"),
        ("{ restored = Relu(noisy) }", '"" : 8', "opset 8.*opsets 9 to 19"),
        ("{ restored = Relu(noisy) }", '"" : 21', "opset 21.*export at 18"),
        ("{ axes = Shape(noisy) restored = ReduceMean(noisy, axes) }", '"" : 18', "axes is computed; .* constant"),
        (
            "<float s = {0.1}, uint8 z = {8}> {q = QuantizeLinear(noisy, s, z) restored = DequantizeLinear(q, s, z)}",
            '"" : 18',
            "zero point is not 0",
        ),
    ],
)
def test_what_a_graph_by_another_hand_may_hold_is_found(body, opsets, said):
    with pytest.raises(GraphRefused, match=said):
        insist(written(body, opsets))


@pytest.mark.parametrize("name", STAGES)
def test_every_network_that_we_have_passes(name):
    assert findings(graph_of(name)) == []


def test_the_command_names_file_node_and_way_out(tmp_path, capsys):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(written("{ restored = ours.Sharpen(noisy) }", '"" : 18, "ours" : 1'))
    shipped = SHIPPED_DIR / "dncnn.onnx"
    assert main([str(shipped)]) == 0
    assert main([str(shipped), str(bad)]) == 1
    good, good_again, found = capsys.readouterr().out.splitlines()
    assert good == good_again == "dncnn.onnx: nothing found"
    assert found.startswith("bad.onnx: restored (Sharpen): its domain ours")
