"""What do tests of networks, graphs and engines run on? Networks with seeded weights, written as shipped ones are."""

import fcntl
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from models.catalogue import DESCRIBED, DenoiserSpec, StageSpec
from models.networks import WIRINGS
from models.weights import build_network, cut_into_stages
from trtbuild.export import export_stage


def _alike(name: str, other: str) -> bool:
    one, two = WIRINGS[name], WIRINGS[other]
    return (one.module, one.build, one.options) == (two.module, two.build, two.options)


# The papers' own widths are built and counted but not run here: the same layers, some of them for minutes.
DENOISERS: dict[str, DenoiserSpec] = {
    name: spec for name, spec in DESCRIBED.items() if name in WIRINGS and not name.endswith(".paper")
}
# Every stage once, with a denoiser that it belongs to. Of networks that differ in what they were taught, one is enough.
STAGES: dict[str, tuple[DenoiserSpec, StageSpec]] = {
    stage.name: (spec, stage)
    for name, spec in DENOISERS.items()
    if not any(_alike(name, before) for before in list(DENOISERS)[: list(DENOISERS).index(name)])
    for stage in spec.stages
}
NO_SIGMA = torch.zeros(1)  # what a blind network is told of one example


@cache
def network_of(name: str) -> nn.Module:
    """The same weights for every test. Where training starts at the identity, these have left it."""
    torch.manual_seed(sum(name.encode()))
    network = build_network(DENOISERS[name])
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 1.5)
                layer.weight.uniform_(0.7, 1.3)
                layer.bias.normal_(std=0.1)
        _correct_by(0.1, network.eval(), DENOISERS[name])
    parts = WIRINGS[name].parts
    for file in DENOISERS[name].weights:  # a video network is built over an image network, and may share its blocks
        if file != name:
            network.get_submodule(parts.get(file, "")).load_state_dict(_own_weights(file), strict=False)
    return network


def _correct_by(amount: float, network: nn.Module, spec: DenoiserSpec) -> None:
    """Let the last layers, which correct the picture or start at nothing, do so by about as much as noise is."""
    reach: dict[nn.Conv2d, float] = {}  # root mean square of what a last layer reads, but for the picture
    # 12: the wavelet bands of three planes, which add up where a picture is smooth
    last_planes = {3: amount, 12: amount / 4}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and (layer.out_channels in last_planes or not layer.weight.any()):
            layer.register_forward_pre_hook(
                lambda layer, maps: reach.update({layer: maps[0][:, 3:].square().mean() ** 0.5})
            )
    side = max(32, spec.multiple)
    network(torch.rand(1, spec.frames * spec.channels, side, side), NO_SIGMA)
    for layer, level in reach.items():
        layer._forward_pre_hooks.clear()
        correcting = layer.weight[:, 3:]
        by = last_planes.get(layer.out_channels, amount)  # the rest make kernels
        correcting += torch.randn_like(correcting) * by / level / correcting[0].numel() ** 0.5


def write_weights(folder: Path, names: Iterable[str] = DENOISERS) -> Path:
    """The files of denoisers, split as the shipped ones are."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec in map(DENOISERS.__getitem__, names):
        if spec.name in spec.weights:
            facts = {"recipe": spec.name, "data": "none", "minutes": "0.0", "steps": "0", "seed": "1", "device": "cpu"}
            save_file(_own_weights(spec.name), folder / f"{spec.name}.safetensors", metadata=facts)
    return folder


def _own_weights(name: str) -> dict[str, torch.Tensor]:
    """Without the parts that have a file of their own."""
    parts = WIRINGS[name].parts.values()
    return {key: value for key, value in network_of(name).state_dict().items() if key.split(".")[0] not in parts}


@cache
def graph_of(stage_name: str) -> bytes:
    """Exporting takes up to a minute: once a test run, whichever of its workers comes first."""
    spec, stage = next(
        (spec, stage) for spec in DENOISERS.values() for stage in spec.stages if stage.name == stage_name
    )
    path = Path(os.environ["QUIETFRAME_TEST_SHARED"]) / f"{stage_name}.onnx"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            graph = export_stage(spec, stage, cut_into_stages(spec, network_of(spec.name))[stage_name])
            unfinished = path.with_suffix(".part")  # a run that is stopped here leaves half a graph
            unfinished.write_bytes(graph)
            unfinished.replace(path)
        return path.read_bytes()


def write_graphs(folder: Path, names: Iterable[str] = STAGES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.onnx").write_bytes(graph_of(name))
    return folder
