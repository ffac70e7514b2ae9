"""Turns a stage of a network into an ONNX graph: the same bytes on every machine, and no word of the machine in them.

`python -m trtbuild.export` writes the graphs of all shipped weights; with `--check` it only says which have strayed.
"""

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from models.catalogue import CATALOGUE, DenoiserSpec, StageSpec
from models.errors import NeedsExtra
from models.weights import GRAPHS_DIR, WEIGHTS_DIR, stage_modules

if TYPE_CHECKING:
    import onnx
    from torch import nn

# From 20 on GridSample changes its mode names, which TensorRT reads as "nearest" without a word; below 18 the exporter
# cannot go.
OPSET = 18
# Batch, height, width: all different and none 1, so that no dimension passes for another. The sides are rounded up to
# what the denoiser takes; they have to be what any other may be, or the exporter finds a contradiction.
EXAMPLE_SHAPE = (2, 64, 96)


def export_stage(
    spec: DenoiserSpec, stage: StageSpec, module: "nn.Module", precision: Literal["fp32", "fp16"] = "fp32"
) -> bytes:
    """The stage as a serialized ONNX model.

    Args:
        spec: whose stage it is; it says whether the graph has a `sigma` input.
        stage: says how many planes go in.
        module: the stage's module, float32 on the CPU; left in evaluation mode.
        precision: of the body; see `trtbuild/half.py`.

    Returns:
        A model of opset 18 with inputs `noisy` [batch, T*planes_in, height, width] and, unless blind, `sigma` [batch],
        and the output `restored` [batch, planes_out, height, width]; these are float32, weights are inside.

    Raises:
        NeedsExtra: torch, onnx or onnxscript is not installed.
        NotInHalf: a weight is beyond what float16 can hold.
    """
    try:
        import onnx
        import torch

        importlib.import_module("onnxscript")
    except ModuleNotFoundError as err:
        raise NeedsExtra(f"{err.name} is not installed; it comes with: pip install 'quietframe[torch]'") from err

    batch, height, width = EXAMPLE_SHAPE
    height, width = (-(-side // spec.multiple) * spec.multiple for side in (height, width))
    noisy = torch.rand(batch, stage.frames * stage.planes_in, height, width)
    sigma = torch.full((batch,), spec.trained_sigma[1])
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells at length that torchvision is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: of torch's future, of names that two axes share
        program = torch.onnx.export(
            module.eval(),
            (noisy, sigma),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"}, {0: "batch"}),
            input_names=["noisy", "sigma"],
            output_names=["restored"],
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    # Asked for an opset it cannot reach, the exporter gives another one without failing.
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)], model.opset_import
    _strip(model)
    if spec.sigma is None:
        _drop_sigma(model)
    _name_output_size(model)
    onnx.checker.check_model(model, full_check=True)
    graph: bytes = model.SerializeToString(deterministic=True)
    if precision == "fp16":
        from trtbuild.half import in_half

        return in_half(graph)
    return graph


def export_all(weights_dir: Path = WEIGHTS_DIR, graphs_dir: Path = GRAPHS_DIR) -> list[Path]:
    """Write `<stage>.onnx` for every stage in the catalogue.

    Raises:
        UnknownDenoiser: weights are missing.
        NeedsExtra: torch, onnx or onnxscript is not installed.
    """
    graphs_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for name, graph in _exported(weights_dir):
        path = graphs_dir / f"{name}.onnx"
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(graph)
        unfinished.replace(path)
        written.append(path)
    return written


def strayed(weights_dir: Path = WEIGHTS_DIR, graphs_dir: Path = GRAPHS_DIR) -> list[str]:
    """The stages whose graph is missing or is not, byte for byte, what the weights export to.

    Raises:
        as `export_all`.
    """
    names = []
    for name, graph in _exported(weights_dir):
        path = graphs_dir / f"{name}.onnx"
        if not path.is_file() or path.read_bytes() != graph:
            names.append(name)
    return names


def _exported(weights_dir: Path) -> Iterator[tuple[str, bytes]]:
    done = set()
    for spec in CATALOGUE.values():
        if not spec.weights or all(stage.name in done for stage in spec.stages):
            continue
        modules = stage_modules(spec, weights_dir)
        for stage in spec.stages:
            if stage.name not in done:  # denoisers share stages
                done.add(stage.name)
                yield stage.name, export_stage(spec, stage, modules[stage.name])


def _strip(model: "onnx.ModelProto") -> None:
    """Take out what is not computation: stack traces with the paths of this machine, versions, inferred shapes."""
    graph = model.graph
    model.ClearField("metadata_props")
    model.producer_name, model.producer_version = "quietframe", ""
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.name = "stage"


def _drop_sigma(model: "onnx.ModelProto") -> None:
    """Take away the input that a blind stage does not read."""
    inputs = model.graph.input
    assert not any("sigma" in node.input for node in model.graph.node), "a blind stage reads sigma"
    inputs.remove(next(value for value in inputs if value.name == "sigma"))


def _name_output_size(model: "onnx.ModelProto") -> None:
    """Say that the output is as large as the input, where the exporter says so by a formula of the strides.

    It is, for height and width are multiples of the stage's `multiple`.
    """
    noisy, restored = (value[0].type.tensor_type.shape.dim for value in (model.graph.input, model.graph.output))
    for axis in (0, 2, 3):
        restored[axis].dim_param = noisy[axis].dim_param


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trtbuild.export", description="Export the shipped weights to ONNX."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a graph is not what its weights give"
    )
    parser.add_argument("--weights-dir", type=Path, default=WEIGHTS_DIR)
    parser.add_argument("--graphs-dir", type=Path, default=GRAPHS_DIR)
    options = parser.parse_args(arguments)
    if options.check:
        names = strayed(options.weights_dir, options.graphs_dir)
        print("\n".join(f"{name}: the graph is not what the weights export to" for name in names) or "all graphs match")
        return 1 if names else 0
    for path in export_all(options.weights_dir, options.graphs_dir):
        print(f"{path.name}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
