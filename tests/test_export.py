"""Are the graphs what the networks are, the same everywhere, and silent about the machine that made them?"""

import re
from dataclasses import replace

import onnx
import pytest
import torch
from seeded_networks import STAGES, graph_of, network_of, write_weights
from torch import nn

from models.catalogue import CATALOGUE, DNCNN, StageSpec
from models.errors import UnknownDenoiser
from models.weights import cut_into_stages
from trtbuild.export import export_all, export_stage, main, strayed


@pytest.fixture(params=STAGES)
def stage(request) -> StageSpec:
    return STAGES[request.param][1]


@pytest.fixture
def model(stage) -> onnx.ModelProto:
    return onnx.load_model_from_string(graph_of(stage.name))


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_a_graph_takes_and_gives_what_the_catalogue_says(model, stage):
    is_blind = STAGES[stage.name][0].sigma is None
    assert [value.name for value in model.graph.input] == (["noisy"] if is_blind else ["noisy", "sigma"])
    assert [value.name for value in model.graph.output] == ["restored"]
    assert dimensions(model.graph.input[0]) == ["batch", stage.frames * stage.planes_in, "height", "width"]
    assert dimensions(model.graph.output[0]) == ["batch", stage.planes_out, "height", "width"]


def test_a_graph_is_of_opset_18_and_holds_float32_only(model):
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    floats = {weight.data_type for weight in model.graph.initializer} - {onnx.TensorProto.INT64}  # axes and shapes
    assert floats == {onnx.TensorProto.FLOAT}
    assert not any(weight.external_data for weight in model.graph.initializer)


def test_a_graph_tells_nothing_of_where_it_was_made(model):
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    assert not any(part.metadata_props for part in parts)
    assert not any(part.doc_string for part in parts)
    assert not graph.value_info
    for weight in graph.initializer:
        weight.ClearField("raw_data")  # a million numbers spell anything
    assert not re.search(rb"site-packages|/home/|\.py\b", model.SerializeToString())


def test_a_normalisation_is_folded_before_it_can_get_into_a_graph(model):
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_exporting_twice_gives_the_same_bytes():
    module = cut_into_stages(DNCNN, network_of("dncnn"))["dncnn"]
    assert export_stage(DNCNN, DNCNN.stages[0], module) == graph_of("dncnn")


class _Scaled(nn.Module):
    """Takes out a share of the picture that grows with the level it is told."""

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return noisy * (1 - sigma[:, None, None, None])


def test_a_denoiser_that_is_told_the_level_has_an_input_for_it():
    told = replace(DNCNN, sigma=(0.0, 0.2))
    model = onnx.load_model_from_string(export_stage(told, told.stages[0], _Scaled()))
    assert [value.name for value in model.graph.input] == ["noisy", "sigma"]
    assert dimensions(model.graph.input[1]) == ["batch"]


def test_a_missing_and_a_changed_graph_are_found(tmp_path, monkeypatch, capsys):
    weights_dir, graphs_dir = write_weights(tmp_path / "weights"), tmp_path / "graphs"
    # Exporting anew takes seconds a stage and is looked at above; here the graphs that are at hand serve.
    monkeypatch.setattr("trtbuild.export.export_stage", lambda _spec, stage, _module: graph_of(stage.name))
    written = export_all(weights_dir, graphs_dir)
    stages = [stage.name for spec in CATALOGUE.values() if spec.weights for stage in spec.stages]
    assert [path.stem for path in written] == list(dict.fromkeys(stages))  # denoisers share stages
    assert strayed(weights_dir, graphs_dir) == []
    arguments = ["--check", "--weights-dir", str(weights_dir), "--graphs-dir", str(graphs_dir)]
    assert main(arguments) == 0

    (graphs_dir / "dncnn.onnx").unlink()
    (graphs_dir / "fitvnet-first.onnx").write_bytes(b"another")
    assert strayed(weights_dir, graphs_dir) == ["fitvnet-first", "dncnn"]
    assert main(arguments) == 1
    assert "fitvnet-first" in capsys.readouterr().out


def test_graphs_without_weights_cannot_be_checked(tmp_path):
    with pytest.raises(UnknownDenoiser, match="no weights"):
        strayed(tmp_path, tmp_path)


def test_the_shipped_graphs_are_what_the_shipped_weights_export_to():
    assert strayed() == []
